//! An executor without tensors: keeps the books on stashes and takes a random time.

use std::collections::BTreeSet;

use crate::stage::{Completion, Done, Evaluation, Job};
use crate::{Duration, Loss, MicrobatchId, Refusal, Rng, Time, WeightVersion};

#[derive(Debug, Default)]
pub(crate) struct Executor {
    pub(crate) stashes: BTreeSet<MicrobatchId>,
    /// Stashes at the worst moment.
    pub(crate) stashes_max: usize,
    /// Jobs refused on purpose.
    pub(crate) refused: u64,
    free_at: Time,
}

impl Executor {
    /// Runs a job; the answer and when it is there. Jobs run in order, so their effects can be noted at once.
    pub(crate) fn run(
        &mut self,
        now: Time,
        job: &Job<u8>,
        last: bool,
        refuse: bool,
        service: Duration,
    ) -> Option<(Time, Completion<u8>)> {
        if let Job::Forget { microbatch } = *job {
            assert!(self.stashes.remove(&microbatch), "forget of {microbatch} without a stash");
            return None;
        }
        self.free_at = self.free_at.max(now) + service;
        let (microbatch, done) = self.compute(job, last);
        if refuse {
            self.refused += 1;
            self.stashes.remove(&microbatch);
        }
        self.stashes_max = self.stashes_max.max(self.stashes.len());
        let done = if refuse { Done::Refused(Refusal::NonFinite) } else { done };
        Some((self.free_at, Completion { microbatch, done }))
    }

    fn compute(&mut self, job: &Job<u8>, last: bool) -> (MicrobatchId, Done<u8>) {
        let loss = Loss { sum: 2.0, tokens: 1 };
        let version = WeightVersion(1);
        match *job {
            Job::Forward { microbatch, .. } => {
                assert!(self.stashes.insert(microbatch), "{microbatch} is stashed twice");
                (microbatch, Done::Forwarded { version, code: 1 })
            }
            Job::LossAndBackward { microbatch, .. } => {
                (microbatch, Done::LossAndBackward { loss, gradient: 1 })
            }
            Job::Backward { microbatch, .. } => {
                assert!(self.stashes.remove(&microbatch), "backward of {microbatch} without a stash");
                (microbatch, Done::Backwarded { gradient: 1 })
            }
            Job::Evaluate { microbatch, cut, .. } => {
                assert!(last || !cut, "only the last stage cuts");
                let evaluation =
                    if last { Evaluation::Loss(loss) } else { Evaluation::Code { version, code: 1 } };
                (microbatch, Done::Evaluated(evaluation))
            }
            Job::Forget { microbatch } => (microbatch, Done::Refused(Refusal::Unknown)),
        }
    }
}

/// A time below `limit`, at least a nanosecond.
pub(crate) fn time_below(rng: &mut Rng, limit: Duration) -> Duration {
    let limit = u64::try_from(limit.as_nanos()).unwrap_or(u64::MAX);
    Duration::from_nanos(1 + rng.below(limit.saturating_sub(1)))
}
