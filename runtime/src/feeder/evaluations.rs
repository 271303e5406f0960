//! When a feeder measures the loss on held-out text.

use bytes::Bytes;
use swarmline_scheduler::Purpose;
use swarmline_scheduler::feeder::Event;

use crate::config::Run;

/// When the loss on held-out text is measured.
pub(super) struct Evaluations {
    microbatches: u64,
    /// Training microbatches of the run; after the last one there is an evaluation anyway.
    total: u64,
    every: Option<u64>,
    stages: usize,
    last_due: u64,
    open: usize,
}

impl Evaluations {
    pub(super) fn new(run: &Run, every: Option<u64>) -> Self {
        Self {
            microbatches: run.data.heldout_microbatches as u64,
            total: run.microbatches(),
            every,
            stages: run.pipeline.stages,
            last_due: 0,
            open: 0,
        }
    }

    pub(super) fn start(&mut self, purpose: Purpose) -> Event<Bytes> {
        self.open += 1;
        Event::Evaluate { first: 0, count: self.microbatches, purpose }
    }

    /// The one between two others, if it is time. Asked for when its last microbatch is sent, so that training runs
    /// dry behind that one; after the last of the run comes [`Self::at_the_end`] anyhow.
    pub(super) fn due(&mut self, injected: u64) -> Option<Event<Bytes>> {
        let due = injected - injected % self.every?;
        if due <= self.last_due || due >= self.total {
            return None;
        }
        self.last_due = due;
        Some(self.start(Purpose::Evaluate))
    }

    /// The last ones: with the upstream and, where there is one, without.
    pub(super) fn at_the_end(&mut self) -> Vec<Event<Bytes>> {
        let mut last = vec![self.start(Purpose::Evaluate)];
        if self.stages > 1 {
            last.push(self.start(Purpose::EvaluateCut));
        }
        last
    }

    pub(super) fn finished(&mut self) {
        self.open = self.open.saturating_sub(1);
    }

    pub(super) fn declined(&mut self) {
        self.finished();
    }

    pub(super) fn over(&self) -> bool {
        self.open == 0
    }
}
