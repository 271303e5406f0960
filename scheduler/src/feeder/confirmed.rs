//! The grants of each replica in the last rounds: no replica weighs more than they in a mean.
//!
//! A replica says its own weight, the contributions that no mean of the fragment has carried. It cannot have applied more
//! than it was granted since the fragment had its last turn. A mean may go on without a replica once, so the feeder
//! counts the grants of two turns of every fragment, whatever the replica reports.

use std::collections::{BTreeMap, VecDeque};

use crate::{Hop, StageIndex};

use super::AveragingSchedule;

/// Contributions that a replica may have applied since the feeder called the round.
pub(crate) const SINCE_THE_CALL: u64 = 4;

/// Turns of every fragment that are counted.
pub(super) const TURNS: u64 = 2;

/// Grants by replica and by the round they fell into.
#[derive(Clone, Debug)]
pub(super) struct Confirmed {
    rounds: u64,
    by_hop: BTreeMap<Hop, VecDeque<(u64, u64)>>,
}

impl Confirmed {
    /// Without a `schedule` there are no rounds.
    pub(super) fn new(schedule: Option<AveragingSchedule>) -> Self {
        let rounds = schedule.map_or(0, |schedule| schedule.fragments.saturating_mul(TURNS));
        Self { rounds, by_hop: BTreeMap::new() }
    }

    /// Counts grants to a replica in `round`.
    pub(super) fn grant(&mut self, hop: Hop, round: u64, grants: u64) {
        let rounds = self.by_hop.entry(hop).or_default();
        match rounds.back_mut().filter(|(last, _)| *last == round) {
            Some((_, count)) => *count = count.saturating_add(grants),
            None => rounds.push_back((round, grants)),
        }
        while rounds.front().is_some_and(|(first, _)| first.saturating_add(self.rounds) < round) {
            rounds.pop_front();
        }
    }

    /// The rounds of a stage are ahead of this feeder, which calls `round` next: all grants that it knows may be as late
    /// as the round before.
    pub(super) fn catch_up(&mut self, stage: StageIndex, round: u64) {
        let of_stage = self.by_hop.iter_mut().filter(|(hop, _)| hop.stage == Some(stage));
        for (_, rounds) in of_stage {
            let all = rounds.iter().fold(0, |sum: u64, (_, count)| sum.saturating_add(*count));
            *rounds = VecDeque::from([(round.saturating_sub(1), all)]);
        }
    }

    /// The largest weight of a replica in a mean of `round`.
    pub(super) fn weight(&self, hop: &Hop, round: u64) -> u64 {
        let rounds = self.by_hop.get(hop).into_iter().flatten();
        let counted = rounds.filter(|(granted, _)| granted.saturating_add(self.rounds) >= round);
        counted.map(|(_, count)| count).fold(SINCE_THE_CALL, |sum, count| sum.saturating_add(*count))
    }

    /// A replica has left.
    pub(super) fn forget(&mut self, hop: &Hop) {
        self.by_hop.remove(hop);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b};

    #[test]
    fn a_replica_weighs_at_most_what_it_was_granted_in_two_turns() {
        let mut confirmed = Confirmed::new(Some(AveragingSchedule { interval: 10, fragments: 3 }));
        for round in 0..20 {
            confirmed.grant(a(1), round, 5);
            confirmed.grant(a(1), round, 5);
        }
        assert_eq!(confirmed.weight(&a(1), 20), 60 + SINCE_THE_CALL);
        assert_eq!(confirmed.weight(&a(1), 23), 30 + SINCE_THE_CALL, "it was granted nothing since");
        assert_eq!(confirmed.weight(&b(1), 20), SINCE_THE_CALL);
        assert!(confirmed.by_hop[&a(1)].len() <= 7);
        confirmed.catch_up(StageIndex(1), 90);
        assert_eq!(confirmed.weight(&a(1), 90), 70 + SINCE_THE_CALL, "a feeder that learns of later rounds");
        confirmed.forget(&a(1));
        assert_eq!(confirmed.weight(&a(1), 20), SINCE_THE_CALL);
    }
}
