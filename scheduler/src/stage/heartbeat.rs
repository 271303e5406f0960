//! Signs of life of a replica's stage: its progress for the coordinator, heartbeats and credits for its neighbours.

use std::fmt::Debug;

use super::microbatch::Microbatch;
use super::{Progress, Stage};
use crate::{Heartbeat, Message, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    /// The contents of the next heartbeat to the coordinator.
    #[must_use]
    pub fn progress(&self, now: Time) -> Progress {
        let front = self.queue.front().and_then(|id| self.microbatches.get(&id));
        let since = front.and_then(Microbatch::queued_since);
        let since = since.filter(|_| !self.queue.waits_for_grant()).unwrap_or(now);
        Progress {
            done: self.counts.applied,
            refused: self.counts.refused,
            queued: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            oldest: now.since(since),
        }
    }

    /// Tells both neighbouring stages, and at stage 0 the feeders, that this replica lives, and deals out credits.
    pub(super) fn send_heartbeats(&mut self, now: Time) {
        if now < self.heartbeat_at {
            return;
        }
        self.heartbeat_at = now + self.config.heartbeat_interval;
        let senders = self.table.senders_to(self.config.stage);
        let slots = if self.draining { 0 } else { self.config.slots };
        let heartbeat = self.heartbeat(now);
        for (sender, credit) in self.credits.deal(slots, &senders) {
            self.send(sender, Message::Heartbeat(Heartbeat { credit, ..heartbeat }));
        }
        for next in self.table.hops(self.config.next_stage()) {
            self.send(next, Message::Heartbeat(heartbeat));
        }
    }

    fn heartbeat(&self, now: Time) -> Heartbeat {
        let Progress { queued, oldest, .. } = self.progress(now);
        let (counter, service) = (self.queue.replies(), self.queue.service.get());
        Heartbeat { counter, queued, oldest, service, credit: 0 }
    }
}
