//! The room for microbatches, and the end of a replica that takes no more.

use std::fmt::Debug;

use super::microbatch::{Arrival, Microbatch};
use super::{Action, Stage};
use crate::{Hop, MicrobatchId, Purpose, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    /// Slots taken: training microbatches in flight here that are no retries.
    #[must_use]
    pub fn slots_used(&self) -> usize {
        self.microbatches.values().filter(|microbatch| microbatch.takes_slot).count()
    }

    /// Microbatches held: training, retries and evaluations.
    #[must_use]
    pub fn held(&self) -> usize {
        self.microbatches.len()
    }

    /// Whether this replica holds the microbatch in any phase.
    #[must_use]
    pub fn holds(&self, microbatch: MicrobatchId) -> bool {
        self.microbatches.contains_key(&microbatch)
    }

    pub(super) fn has_room(&self, purpose: Purpose, takes_slot: bool) -> bool {
        let count = |which: &dyn Fn(&Microbatch<P>) -> bool| {
            self.microbatches.values().filter(|held| which(held)).count()
        };
        match purpose {
            Purpose::Train if takes_slot => self.slots_used() < self.config.slots,
            Purpose::Train => count(&|held| held.trains() && !held.takes_slot) < self.config.retries_max(),
            Purpose::Evaluate | Purpose::EvaluateCut => {
                count(&|held| !held.trains()) < self.config.evaluations_max
            }
        }
    }

    /// Whether this replica takes nothing of the feeder of a forward now, or not from this sender. What is sent again while
    /// its feeder is away would be kept for a successor here for as long as it was at its sender.
    pub(super) fn refuses(&self, now: Time, sender: Hop, arrival: &Arrival<P>) -> bool {
        let Some(feeder) = arrival.route.first() else { return false };
        let peer = feeder.peer();
        self.distrust.holds(now, peer, sender.peer())
            || self.feeders.is_lost(peer)
            || (arrival.is_retry && self.table.address(peer).is_none())
            || self.holds_too_many_of(feeder)
    }

    /// Without a free slot, a microbatch that is kept for the successor of a feeder gives way.
    pub(super) fn make_room(&mut self, now: Time) {
        if self.slots_used() < self.config.slots {
            return;
        }
        let is_gone = |feeder: Hop| self.table.address(feeder.peer()).is_none();
        let kept = |held: &Microbatch<P>| {
            held.takes_slot && !held.is_running() && !held.is_granted() && held.feeder().is_some_and(is_gone)
        };
        let oldest = self.microbatches.iter().find(|(_, held)| kept(held)).map(|(&id, _)| id);
        if let Some(id) = oldest {
            self.give_up(now, id);
        }
    }

    /// Whether this replica takes no more microbatches of a feeder that lets too few of them end.
    fn holds_too_many_of(&self, feeder: &Hop) -> bool {
        let held_max = self.config.held_max();
        let of_feeder = |held: &&Microbatch<P>| held.feeder().as_ref() == Some(feeder);
        self.held() >= held_max && self.microbatches.values().filter(of_feeder).count() >= held_max
    }

    pub(super) fn notice_drained(&mut self) {
        // A microbatch is kept for its feeder's sake only: without the feeder it needs no keeping.
        let kept = |held: &Microbatch<P>| {
            let feeder = held.feeder().map(|feeder| feeder.peer());
            held.is_settled() && feeder.is_some_and(|feeder| self.table.address(feeder).is_none())
        };
        if self.draining && !self.drained && self.microbatches.values().all(kept) {
            self.drained = true;
            self.actions.push_back(Action::Drained);
        }
    }
}
