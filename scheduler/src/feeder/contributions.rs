//! Contributions that were granted and may still die with their replica.
//!
//! A replica carries its contributions on to the others of its stage in averaging rounds, one index set a round. Until
//! every set has been round once, what it was granted dies with it.

use std::collections::BTreeMap;

use crate::Hop;

/// When contributions are carried on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carrying {
    /// Microbatches of the run between two averaging rounds; at least 1.
    pub every: u64,
    /// Rounds until every index set has been averaged once.
    pub sets: u64,
}

/// Grants by replica and by the round they fell into.
#[derive(Clone, Debug)]
pub(super) struct Contributions {
    carrying: Option<Carrying>,
    by_hop: BTreeMap<Hop, BTreeMap<u64, u64>>,
}

impl Contributions {
    /// Without `carrying` nothing is ever carried on.
    pub(super) fn new(carrying: Option<Carrying>) -> Self {
        Self { carrying, by_hop: BTreeMap::new() }
    }

    /// `hop` may apply one more, after `round` averaging rounds.
    pub(super) fn grant(&mut self, hop: Hop, round: u64) {
        let carried = round.saturating_sub(self.carrying.map_or(u64::MAX, |carrying| carrying.sets));
        let rounds = self.by_hop.entry(hop).or_default();
        *rounds = rounds.split_off(&carried);
        *rounds.entry(round).or_default() += 1;
    }

    /// `hop` is dead: how many contributions may have died with it. Nobody knows in which round it died; it was not
    /// before its last claim.
    pub(super) fn lose(&mut self, hop: &Hop) -> u64 {
        self.by_hop.remove(hop).unwrap_or_default().values().sum()
    }

    /// Everyone with contributions on the account.
    pub(super) fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.by_hop.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId, StageIndex};

    const HOP: Hop = Hop { stage: Some(StageIndex(1)), peer: PeerId([1; 32]), incarnation: Incarnation(1) };

    #[test]
    fn only_what_no_full_cycle_has_carried_on_is_lost() {
        let mut contributions = Contributions::new(Some(Carrying { every: 10, sets: 3 }));
        (0..100).for_each(|granted| contributions.grant(HOP, granted / 10));
        assert_eq!(contributions.by_hop[&HOP].len(), 4);
        assert_eq!(contributions.lose(&HOP), 40);
        assert_eq!(contributions.lose(&HOP), 0);
    }

    #[test]
    fn without_averaging_everything_is_lost() {
        let mut contributions = Contributions::new(None);
        (0..100).for_each(|granted| contributions.grant(HOP, granted / 10));
        assert_eq!(contributions.lose(&HOP), 100);
    }
}
