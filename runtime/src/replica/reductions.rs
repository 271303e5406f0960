//! Means, computed one after the other beside the executor's thread and the loop.

use std::collections::VecDeque;

use bytes::Bytes;
use swarmline_scheduler::Attempt;
use swarmline_scheduler::averaging::{Event, Fault, MEMBERS_MAX, PartIndex, Round};
use tokio::task::JoinHandle;

use crate::averaging::reduce;

/// Means that can wait: a round has one part for each member open. Of more the oldest is given up; its owner's
/// patience ends, and another one's turn comes.
const WAITING_MAX: usize = MEMBERS_MAX;

/// A mean to compute.
#[derive(Debug)]
pub(super) struct Reduction {
    pub(super) round: Round,
    pub(super) part: PartIndex,
    pub(super) attempt: Attempt,
    pub(super) own: Bytes,
    pub(super) inputs: Vec<(u64, Bytes)>,
}

impl Reduction {
    fn compute(&self) -> Event<Bytes> {
        self.answer(reduce(&self.own, &self.inputs))
    }

    /// No input is to blame.
    fn failed(&self) -> Event<Bytes> {
        self.answer(Err((usize::MAX, Fault::Malformed)))
    }

    fn answer(&self, outcome: Result<Bytes, (usize, Fault)>) -> Event<Bytes> {
        Event::Reduced { round: self.round, part: self.part, attempt: self.attempt, outcome }
    }
}

/// The means that wait, and the one being computed.
#[derive(Debug, Default)]
pub(super) struct Reductions {
    waiting: VecDeque<Reduction>,
    running: Option<(JoinHandle<Event<Bytes>>, Event<Bytes>)>,
}

impl Reductions {
    pub(super) fn add(&mut self, reduction: Reduction) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(reduction);
        self.start();
    }

    /// The next mean computed; never, if there is none. Nothing is lost if the wait is broken off.
    pub(super) async fn next(&mut self) -> Event<Bytes> {
        let Some((running, failed)) = &mut self.running else { return std::future::pending().await };
        let event = running.await.unwrap_or_else(|_| failed.clone());
        self.running = None;
        self.start();
        event
    }

    fn start(&mut self) {
        if self.running.is_none()
            && let Some(reduction) = self.waiting.pop_front()
        {
            let failed = reduction.failed();
            self.running = Some((tokio::task::spawn_blocking(move || reduction.compute()), failed));
        }
    }
}
