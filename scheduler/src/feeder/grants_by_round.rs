//! Grants by replica and by the averaging round that they fell into.

use std::collections::BTreeMap;

use crate::{Hop, StageIndex};

/// The numbers of grants.
#[derive(Clone, Debug, Default)]
pub(super) struct GrantsByRound(BTreeMap<Hop, BTreeMap<u64, u64>>);

impl GrantsByRound {
    /// Counts grants to a replica in `round`. Returns the rounds of the replica, to trim them.
    pub(super) fn add(&mut self, hop: Hop, round: u64, count: u64) -> &mut BTreeMap<u64, u64> {
        let rounds = self.0.entry(hop).or_default();
        let grants = rounds.entry(round).or_default();
        *grants = grants.saturating_add(count);
        rounds
    }

    /// The rounds of a replica with their grants.
    pub(super) fn of(&self, hop: &Hop) -> impl Iterator<Item = (u64, u64)> {
        self.0.get(hop).into_iter().flatten().map(|(&round, &grants)| (round, grants))
    }

    /// The same, to change.
    pub(super) fn of_mut(&mut self, hop: &Hop) -> Option<&mut BTreeMap<u64, u64>> {
        self.0.get_mut(hop)
    }

    /// Removes a replica. Returns its grants.
    pub(super) fn remove(&mut self, hop: &Hop) -> u64 {
        sum(&self.0.remove(hop).unwrap_or_default())
    }

    /// The rounds of a stage are ahead of this feeder, which calls `round` next: all grants that it knows may be as late
    /// as the round before.
    pub(super) fn catch_up(&mut self, stage: StageIndex, round: u64) {
        let of_stage = self.0.iter_mut().filter(|(hop, _)| hop.stage == Some(stage));
        for rounds in of_stage.map(|(_, rounds)| rounds).filter(|rounds| !rounds.is_empty()) {
            *rounds = BTreeMap::from([(round.saturating_sub(1), sum(rounds))]);
        }
    }

    /// The replicas.
    pub(super) fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.0.keys()
    }
}

fn sum(rounds: &BTreeMap<u64, u64>) -> u64 {
    rounds.values().fold(0, |sum, grants| sum.saturating_add(*grants))
}
