//! Signs of life of a replica's stage: its progress for the coordinator, heartbeats and credits for its neighbours.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::microbatch::Microbatch;
use super::{Progress, Stage};
use crate::{Duration, Heartbeat, Hop, Message, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    /// The contents of the next heartbeat to the coordinator.
    #[must_use]
    pub fn progress(&self, now: Time) -> Progress {
        // What waits for a feeder's answer does not wait for this replica.
        let (shared, last) = (self.table.is_shared(), self.config.is_last());
        let held = |id| self.microbatches.get(&id);
        let ready = |id| held(id).is_some_and(|held| !(shared && held.waits_for_answer(last)));
        let since = self.queue.first(ready).and_then(held).and_then(Microbatch::queued_since);
        let since = since.filter(|_| !self.queue.waits_for_grant()).unwrap_or(now);
        Progress {
            done: self.counts.applied,
            refused: self.counts.refused,
            queued: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            oldest: now.since(since),
        }
    }

    /// Follows a change of the table: the neighbours are those that the routing pairs with this replica, and those that
    /// still have work of it, or it of them.
    pub(super) fn renew_contacts(&mut self, now: Time) {
        let table = &self.table;
        let placed = |hop: &Hop| table.placed(hop);
        let gave = self.microbatches.values().filter(|held| !held.is_settled()).map(|held| held.upstream.hop);
        let senders: BTreeSet<Hop> = table.upstream().iter().copied().chain(gave.filter(placed)).collect();
        let upstream = senders.iter().copied().filter(|hop| hop.stage.is_some());
        let downstream = table.downstream().iter().copied();
        let receivers = self.handoff.watch(now, upstream, downstream, placed);
        self.contacts.renew(senders, receivers);
    }

    /// A microbatch came from `sender`, which waits for its credit and its heartbeats from now on.
    pub(super) fn meet_sender(&mut self, now: Time, sender: Hop, takes_slot: bool) {
        if self.contacts.meet(sender) && sender.stage.is_some() {
            self.handoff.neighbours.watch_too(now, sender, 0);
        }
        if takes_slot && self.credits.used(sender) {
            self.contacts.hurry(sender);
        }
    }

    /// Tells the neighbours that this replica lives, and deals out credits: every second to all of them, at once to new
    /// ones.
    pub(super) fn send_heartbeats(&mut self, now: Time) {
        if self.heartbeat_at <= now {
            self.heartbeat_at = now + self.config.heartbeat_interval;
            self.watch_next_stage(now);
            self.judge_feeders(now);
            for id in std::mem::take(&mut self.unsent_gradients) {
                self.send_gradient(id);
            }
            self.contacts.take_waiting();
            let credits = self.credits.deal(self.slots_open(), self.contacts.senders());
            let receivers: Vec<_> = self.contacts.receivers().iter().map(|&hop| (hop, 0)).collect();
            self.send_heartbeat(now, credits.into_iter().chain(receivers));
        }
        let waiting = self.contacts.take_waiting();
        if waiting.is_empty() {
            return;
        }
        let (slots, senders) = (self.slots_open(), self.contacts.senders().len());
        let levels: Vec<_> =
            waiting.iter().map(|hop| (*hop, self.credits.level(slots, hop, senders))).collect();
        self.send_heartbeat(now, levels);
    }

    fn send_heartbeat(&mut self, now: Time, to: impl IntoIterator<Item = (Hop, u32)>) {
        let heartbeat = self.heartbeat(now);
        for (hop, credit) in to {
            self.send(hop, Message::Heartbeat(Heartbeat { credit, ..heartbeat }));
        }
    }

    /// The slots that senders may use.
    fn slots_open(&self) -> usize {
        let takes_none = self.draining || self.is_cut_off() || self.is_next_stage_lost(self.now);
        if takes_none { 0 } else { self.config.slots }
    }

    /// Neighbours wait for the first figure: a replica that has none is tried with one microbatch only.
    pub(super) fn measure(&mut self, now: Time, took: Duration) {
        if self.queue.service.get().is_none() {
            self.heartbeat_at = now;
        }
        self.queue.service.add(took);
    }

    fn heartbeat(&self, now: Time) -> Heartbeat {
        let Progress { queued, oldest, .. } = self.progress(now);
        let (counter, service) = (self.queue.replies(), self.queue.service.get());
        Heartbeat { counter, queued, oldest, service, credit: 0 }
    }
}
