//! The room for microbatches, and the end of a replica that takes no more.

use std::fmt::Debug;

use super::microbatch::Microbatch;
use super::{Action, Stage};
use crate::{MicrobatchId, Purpose};

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
