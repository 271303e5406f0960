//! The microbatches that wait for the executor, and the jobs that the executor has.

use std::collections::VecDeque;

use super::EXECUTOR_DEPTH;
use crate::{Duration, MicrobatchId, MovingAverage, Time};

/// First come first served, but retries go first: their feeder has waited for them longest.
#[derive(Clone, Debug, Default)]
pub(super) struct ExecutorQueue {
    retries: VecDeque<MicrobatchId>,
    regular: VecDeque<MicrobatchId>,
    /// Jobs without a reply.
    running: usize,
    /// The microbatch whose gradients the executor keeps, or computes, without a grant; at most one.
    ungranted: Option<MicrobatchId>,
    /// Average time of a forward.
    pub(super) service: MovingAverage,
    computing_since: Time,
    replies: u64,
}

impl ExecutorQueue {
    pub(super) fn push(&mut self, id: MicrobatchId, is_retry: bool) {
        if is_retry { self.retries.push_back(id) } else { self.regular.push_back(id) }
    }

    /// Takes the first microbatch that may start now.
    pub(super) fn pop(&mut self, startable: impl Fn(MicrobatchId) -> bool) -> Option<MicrobatchId> {
        [&mut self.retries, &mut self.regular].into_iter().find_map(|queue| {
            let index = queue.iter().position(|&id| startable(id))?;
            queue.remove(index)
        })
    }

    pub(super) fn remove(&mut self, id: MicrobatchId) {
        self.retries.retain(|&queued| queued != id);
        self.regular.retain(|&queued| queued != id);
    }

    /// The first microbatch of which `which` holds.
    pub(super) fn first(&self, which: impl Fn(MicrobatchId) -> bool) -> Option<MicrobatchId> {
        self.retries.iter().chain(&self.regular).copied().find(|&id| which(id))
    }

    pub(super) fn len(&self) -> usize {
        self.retries.len() + self.regular.len()
    }

    // --- Jobs of the executor -------------------------------------------------------------------------------

    pub(super) fn has_room(&self) -> bool {
        self.running < EXECUTOR_DEPTH
    }

    /// A job that will have a reply was given to the executor.
    pub(super) fn started(&mut self, now: Time) {
        if self.running == 0 {
            self.computing_since = now;
        }
        self.running += 1;
    }

    /// A job that will have a reply, but costs next to nothing, was given to the executor.
    pub(super) fn started_short(&mut self) {
        self.running += 1;
    }

    /// The executor replied to a job. Returns how long the job took.
    pub(super) fn replied(&mut self, now: Time) -> Duration {
        self.running = self.running.saturating_sub(1);
        self.replies += 1;
        let took = now.since(self.computing_since);
        self.computing_since = now;
        took
    }

    /// Replies since the replica started.
    pub(super) fn replies(&self) -> u64 {
        self.replies
    }

    // --- Gradients without a grant --------------------------------------------------------------------------

    pub(super) fn is_blocked(&self) -> bool {
        self.ungranted.is_some()
    }

    /// Whether the executor waits for the feeder's answer to a claim and for nothing else.
    pub(super) fn waits_for_grant(&self) -> bool {
        self.running == 0 && self.is_blocked()
    }

    pub(super) fn block(&mut self, id: MicrobatchId) {
        self.ungranted = Some(id);
    }

    pub(super) fn unblock(&mut self, id: MicrobatchId) {
        self.ungranted = self.ungranted.filter(|&ungranted| ungranted != id);
    }
}
