//! The grants of each replica in the last rounds: no replica weighs more than they in a mean.
//!
//! A replica says its own weight, the contributions that no mean of the fragment has carried. It cannot have applied more
//! than it was granted since the fragment had its last turn. A mean may go on without a replica once, so the feeder
//! counts the grants of two turns of every fragment, whatever the replica reports.

use crate::{Hop, StageIndex};

use super::AveragingSchedule;
use super::grants_by_round::GrantsByRound;

/// Contributions that a replica may have applied since the feeder called the round.
pub(crate) const SINCE_THE_CALL: u64 = 4;

/// Turns of every fragment that are counted.
pub(super) const TURNS: u64 = 2;

/// Grants of the rounds that count.
#[derive(Clone, Debug)]
pub(super) struct Confirmed {
    rounds: u64,
    granted: GrantsByRound,
}

impl Confirmed {
    /// Without a `schedule` there are no rounds.
    pub(super) fn new(schedule: Option<AveragingSchedule>) -> Self {
        let rounds = schedule.map_or(0, |schedule| schedule.fragments.saturating_mul(TURNS));
        Self { rounds, granted: GrantsByRound::default() }
    }

    /// Counts grants to a replica in `round`.
    pub(super) fn grant(&mut self, hop: Hop, round: u64, grants: u64) {
        let rounds = self.granted.add(hop, round, grants);
        while rounds.first_key_value().is_some_and(|(first, _)| first.saturating_add(self.rounds) < round) {
            rounds.pop_first();
        }
    }

    /// The rounds of a stage are ahead of this feeder, which calls `round` next.
    pub(super) fn catch_up(&mut self, stage: StageIndex, round: u64) {
        self.granted.catch_up(stage, round);
    }

    /// The largest weight of a replica in a mean of `round`.
    pub(super) fn weight(&self, hop: &Hop, round: u64) -> u64 {
        let rounds = self.granted.of(hop);
        let counted = rounds.filter(|(granted, _)| granted.saturating_add(self.rounds) >= round);
        counted.fold(SINCE_THE_CALL, |sum, (_, count)| sum.saturating_add(count))
    }

    /// A replica has left.
    pub(super) fn forget(&mut self, hop: &Hop) {
        self.granted.remove(hop);
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
        assert!(confirmed.granted.of(&a(1)).count() <= 7);
        confirmed.catch_up(StageIndex(1), 90);
        assert_eq!(confirmed.weight(&a(1), 90), 70 + SINCE_THE_CALL, "a feeder that learns of later rounds");
        confirmed.forget(&a(1));
        assert_eq!(confirmed.weight(&a(1), 20), SINCE_THE_CALL);
    }
}
