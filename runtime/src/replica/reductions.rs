//! Means of averaging rounds, computed in order on a thread of their own.

use std::collections::VecDeque;

use bytes::Bytes;
use swarmline_scheduler::Attempt;
use swarmline_scheduler::averaging::{Fault, PARTS_IN_FLIGHT_MAX, PartIndex, Reply, Round};
use tokio::task::JoinHandle;

use crate::averaging::reduce;

/// Limit of the waiting reductions: no member owns more of the parts in flight. Beyond it the oldest is dropped; its
/// owner times out, and the next owner computes it.
const WAITING_MAX: usize = PARTS_IN_FLIGHT_MAX;

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
    fn compute(&self) -> Reply<Bytes> {
        self.reply(reduce(&self.own, &self.inputs))
    }

    /// The reply after a panic of the thread: no input is to blame.
    fn failed(&self) -> Reply<Bytes> {
        self.reply(Err((usize::MAX, Fault::Malformed)))
    }

    fn reply(&self, outcome: Result<Bytes, (usize, Fault)>) -> Reply<Bytes> {
        Reply::Reduced { round: self.round, part: self.part, attempt: self.attempt, outcome }
    }
}

/// The waiting reductions and the running one.
#[derive(Debug, Default)]
pub(super) struct Reductions {
    waiting: VecDeque<Reduction>,
    running: Option<(JoinHandle<Reply<Bytes>>, Reply<Bytes>)>,
}

impl Reductions {
    pub(super) fn add(&mut self, reduction: Reduction) {
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
        }
        self.waiting.push_back(reduction);
        self.start();
    }

    /// The next mean; never resolves without a running reduction. Cancelling the wait loses no mean.
    pub(super) async fn next(&mut self) -> Reply<Bytes> {
        let Some((running, failed)) = &mut self.running else { return std::future::pending().await };
        let reply = running.await.unwrap_or_else(|_| failed.clone());
        self.running = None;
        self.start();
        reply
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
