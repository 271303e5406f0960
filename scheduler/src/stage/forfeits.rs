//! Grants that a replica hands back. A replica claims a microbatch when its forward arrives, long before it has gradients
//! to apply. Where it never gets any, because the microbatch went another way, it tells the feeder. While the microbatch
//! is open, the feeder may then grant it to the replica that computes it; afterwards it counts the contribution as lost.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::microbatch::{ClaimState, Microbatch, UpdateState};
use super::{Note, Stage};
use crate::message::CLAIM_MAX;
use crate::{Hop, MicrobatchId, PeerId};

/// Grants handed back whose microbatch is open, and those that a feeder has not acknowledged, at most. Beyond that a
/// replica keeps its grants to itself.
const FORFEITS_MAX: usize = 8_192;

/// The grants handed back.
#[derive(Clone, Debug, Default)]
pub(super) struct Forfeits {
    /// Open microbatches that this replica never applies, even if their forward comes again: the feeder may have granted
    /// them to another replica.
    open: BTreeSet<MicrobatchId>,
    /// Those that their feeder has not acknowledged.
    unacknowledged: BTreeMap<PeerId, BTreeSet<MicrobatchId>>,
}

impl Forfeits {
    pub(super) fn contain(&self, microbatch: MicrobatchId) -> bool {
        self.open.contains(&microbatch)
    }

    /// Adds a microbatch; `false` if there is no room.
    fn add(&mut self, feeder: PeerId, microbatch: MicrobatchId) -> bool {
        let has_room = self.open.len() < FORFEITS_MAX && self.count_unacknowledged() < FORFEITS_MAX;
        if has_room {
            self.open.insert(microbatch);
            self.unacknowledged.entry(feeder).or_default().insert(microbatch);
        }
        has_room
    }

    /// A feeder has acknowledged these.
    pub(super) fn acknowledged(&mut self, feeder: PeerId, microbatches: &[MicrobatchId]) {
        if let Some(waiting) = self.unacknowledged.get_mut(&feeder) {
            waiting.retain(|id| !microbatches.contains(id));
            if waiting.is_empty() {
                self.unacknowledged.remove(&feeder);
            }
        }
    }

    /// Forgets the microbatches that have their outcome.
    pub(super) fn release(&mut self, has_ended: impl Fn(MicrobatchId) -> bool) {
        self.open.retain(|&id| !has_ended(id));
    }

    /// Forgets what a feeder that is no member any more was not told.
    pub(super) fn keep_feeders(&mut self, is_member: impl Fn(PeerId) -> bool) {
        self.unacknowledged.retain(|&feeder, _| is_member(feeder));
    }

    /// What this feeder has not acknowledged, as much as one claim can name.
    pub(super) fn owed_to(&self, feeder: PeerId) -> Vec<MicrobatchId> {
        let waiting = self.unacknowledged.get(&feeder);
        waiting.into_iter().flatten().take(CLAIM_MAX).copied().collect()
    }

    /// The feeders that have not acknowledged everything.
    pub(super) fn feeders(&self) -> impl Iterator<Item = PeerId> {
        self.unacknowledged.keys().copied()
    }

    fn count_unacknowledged(&self) -> usize {
        self.unacknowledged.values().map(BTreeSet::len).sum()
    }
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// A microbatch leaves this replica. If it was claimed and never applied, the claim is handed back.
    pub(super) fn forfeit_unapplied(&mut self, id: MicrobatchId, held: &Microbatch<P>) {
        let claimed = matches!(held.claim, ClaimState::Claimed { .. } | ClaimState::Granted);
        let unapplied = held.update == UpdateState::NotComputed && !self.applied.contains(id);
        if let Some(feeder) = held.feeder().filter(|_| claimed && unapplied && !self.finished) {
            self.forfeit(id, feeder);
        }
    }

    /// Promises the feeder that this replica never applies the microbatch.
    pub(super) fn forfeit(&mut self, id: MicrobatchId, feeder: Hop) {
        if self.forfeits.add(feeder.peer(), id) {
            self.forfeiting.insert(feeder);
            self.count(Note::Forfeited(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEEDER: PeerId = PeerId([1; 32]);

    #[test]
    fn what_is_not_acknowledged_is_owed_and_what_is_open_stays_forfeited() {
        let mut forfeits = Forfeits::default();
        assert!(forfeits.add(FEEDER, MicrobatchId(3)) && forfeits.add(FEEDER, MicrobatchId(4)));
        forfeits.acknowledged(FEEDER, &[MicrobatchId(3), MicrobatchId(9)]);
        assert_eq!(forfeits.owed_to(FEEDER), [MicrobatchId(4)]);
        assert!(forfeits.contain(MicrobatchId(3)));
        forfeits.release(|id| id == MicrobatchId(3));
        assert!(!forfeits.contain(MicrobatchId(3)) && forfeits.contain(MicrobatchId(4)));
        forfeits.keep_feeders(|_| false);
        assert_eq!(forfeits.owed_to(FEEDER), []);
    }

    #[test]
    fn a_feeder_that_acknowledges_nothing_fills_no_memory() {
        let mut forfeits = Forfeits::default();
        let added = (0..2 * FORFEITS_MAX as u64).filter(|&id| forfeits.add(FEEDER, MicrobatchId(id)));
        assert_eq!(added.count(), FORFEITS_MAX);
    }
}
