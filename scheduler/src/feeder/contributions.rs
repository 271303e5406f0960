//! Contributions that were granted and may still be lost with their replica.
//!
//! Replicas of a stage average one fragment a round. Until every fragment was averaged once, the contributions that a
//! replica was granted exist in its weights only.

use std::collections::BTreeMap;

use crate::Hop;

/// The schedule of averaging rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AveragingSchedule {
    /// Finished microbatches of the run between two rounds; at least 1.
    pub interval: u64,
    /// Number of fragments: rounds until every fragment was averaged once.
    pub fragments: u64,
}

/// Grants by replica and by the round they fell into.
#[derive(Clone, Debug)]
pub(super) struct Contributions {
    schedule: Option<AveragingSchedule>,
    by_hop: BTreeMap<Hop, BTreeMap<u64, u64>>,
}

impl Contributions {
    /// Without a `schedule` no contribution ever reaches another replica.
    pub(super) fn new(schedule: Option<AveragingSchedule>) -> Self {
        Self { schedule, by_hop: BTreeMap::new() }
    }

    /// Counts a grant to `hop` after `round` averaging rounds.
    pub(super) fn grant(&mut self, hop: Hop, round: u64) {
        let averaged = round.saturating_sub(self.schedule.map_or(u64::MAX, |schedule| schedule.fragments));
        let rounds = self.by_hop.entry(hop).or_default();
        *rounds = rounds.split_off(&averaged);
        *rounds.entry(round).or_default() += 1;
    }

    /// One of the latest contributions of `hop` was never applied.
    pub(super) fn forfeit(&mut self, hop: &Hop) {
        if let Some(mut latest) = self.by_hop.get_mut(hop).and_then(BTreeMap::last_entry) {
            *latest.get_mut() -= 1;
            if *latest.get() == 0 {
                latest.remove();
            }
        }
    }

    /// `hop` is dead. Returns how many contributions may be lost with it: the feeder knows only that it died after its
    /// last claim, not in which round.
    pub(super) fn lose(&mut self, hop: &Hop) -> u64 {
        self.by_hop.remove(hop).unwrap_or_default().values().sum()
    }

    /// The replicas with contributions that may be lost.
    pub(super) fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.by_hop.keys()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Instance, PeerId, StageIndex};

    const HOP: Hop = Hop::replica(StageIndex(1), Instance::new(PeerId([1; 32]), Incarnation(1)));

    #[test]
    fn only_contributions_that_no_full_cycle_has_averaged_are_lost() {
        let mut contributions = Contributions::new(Some(AveragingSchedule { interval: 10, fragments: 3 }));
        (0..100).for_each(|granted| contributions.grant(HOP, granted / 10));
        assert_eq!(contributions.by_hop[&HOP].len(), 4);
        assert_eq!(contributions.lose(&HOP), 40);
        assert_eq!(contributions.lose(&HOP), 0);
    }

    #[test]
    fn without_averaging_every_contribution_is_lost() {
        let mut contributions = Contributions::new(None);
        (0..100).for_each(|granted| contributions.grant(HOP, granted / 10));
        assert_eq!(contributions.lose(&HOP), 100);
    }
}
