//! Contributions that were granted and may still be lost with their replica.
//!
//! Replicas of a stage average one fragment a round. Until every fragment was averaged once, the contributions that a
//! replica was granted exist in its weights only. The replica reports in which rounds its contributions were in the
//! mean: a round that went on without it has carried nothing of it. Nor has it carried the contributions of an optimizer
//! step that was not complete when the round began; the replica says if there was none.

use std::collections::BTreeMap;

use crate::{Hop, StageIndex};

use super::grants_by_round::GrantsByRound;

/// The schedule of averaging rounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AveragingSchedule {
    /// Finished microbatches of the run between two rounds; at least 1.
    pub interval: u64,
    /// Number of fragments: rounds until every fragment was averaged once.
    pub fragments: u64,
}

/// Rounds of a replica that are told apart; beyond it the oldest counts as the next.
const ROUNDS_MAX: usize = 256;

/// Grants by replica and by the round they fell into.
#[derive(Clone, Debug)]
pub(super) struct Contributions {
    /// Contributions of an optimizer step that is not complete, at most.
    incomplete_max: u64,
    granted: GrantsByRound,
}

impl Contributions {
    /// No grants yet. A replica steps once for `gradient_accumulation_steps` contributions.
    pub(super) fn new(gradient_accumulation_steps: u64) -> Self {
        Self {
            incomplete_max: gradient_accumulation_steps.saturating_sub(1),
            granted: GrantsByRound::default(),
        }
    }

    /// Counts a grant to `hop` in `round`.
    pub(super) fn grant(&mut self, hop: Hop, round: u64) {
        let rounds = self.granted.add(hop, round, 1);
        if rounds.len() > ROUNDS_MAX
            && let Some((_, oldest)) = rounds.pop_first()
            && let Some(mut next) = rounds.first_entry()
        {
            *next.get_mut() += oldest;
        }
    }

    /// Every fragment has been averaged with the contribution of `hop` in this round or a later one. The latest of the
    /// contributions before may have waited for their step, unless it says that its steps were complete.
    pub(super) fn carried(&mut self, hop: &Hop, round: u64, is_complete: bool) {
        let Some(rounds) = self.granted.of_mut(hop) else { return };
        let later = rounds.split_off(&round);
        let earlier: u64 = std::mem::replace(rounds, later).into_values().sum();
        let waiting = if is_complete { 0 } else { earlier.min(self.incomplete_max) };
        if waiting > 0 {
            rounds.insert(round.saturating_sub(1), waiting);
        }
    }

    /// The rounds of a stage are ahead of this feeder, which calls `round` next.
    pub(super) fn catch_up(&mut self, stage: StageIndex, round: u64) {
        self.granted.catch_up(stage, round);
    }

    /// One of the latest contributions of `hop` was never applied.
    pub(super) fn forfeit(&mut self, hop: &Hop) {
        if let Some(mut latest) = self.granted.of_mut(hop).and_then(BTreeMap::last_entry) {
            *latest.get_mut() -= 1;
            if *latest.get() == 0 {
                latest.remove();
            }
        }
    }

    /// Contributions before this round have been averaged in full when `round` rounds were called, as far as a journal
    /// tells: it has no reports of replicas, so every round counts as one that has carried them. Without a schedule no
    /// contribution ever reaches another replica.
    pub(super) fn averaged_before(schedule: Option<AveragingSchedule>, round: u64) -> u64 {
        round.saturating_sub(schedule.map_or(u64::MAX, |schedule| schedule.fragments))
    }

    /// Counts grants of a former start of the feeder.
    pub(super) fn restore(&mut self, hop: Hop, round: u64, count: u64) {
        self.granted.add(hop, round, count);
    }

    /// `hop` is dead. Returns how many contributions may be lost with it: the feeder knows only that it died after its
    /// last claim, not in which round.
    pub(super) fn lose(&mut self, hop: &Hop) -> u64 {
        self.granted.remove(hop)
    }

    /// The replicas with contributions that may be lost.
    pub(super) fn hops(&self) -> impl Iterator<Item = &Hop> {
        self.granted.hops()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Instance, PeerId};

    const HOP: Hop = Hop::replica(StageIndex(1), Instance::new(PeerId([1; 32]), Incarnation(1)));

    #[test]
    fn only_contributions_that_no_full_cycle_has_averaged_are_lost() {
        let mut contributions = Contributions::new(1);
        (0..100).for_each(|granted| contributions.grant(HOP, granted / 10));
        contributions.carried(&HOP, 6, false);
        assert_eq!(contributions.lose(&HOP), 40);
        assert_eq!(contributions.lose(&HOP), 0);
    }

    #[test]
    fn contributions_that_wait_for_their_step_are_carried_with_it() {
        let mut contributions = Contributions::new(4);
        (0..10).for_each(|_| contributions.grant(HOP, 2));
        contributions.carried(&HOP, 3, false);
        contributions.carried(&HOP, 4, false);
        assert_eq!(contributions.clone().lose(&HOP), 3);
        contributions.grant(HOP, 4);
        assert_eq!(contributions.clone().lose(&HOP), 4);
        contributions.carried(&HOP, 5, false);
        assert_eq!(contributions.lose(&HOP), 3);
    }

    #[test]
    fn of_a_replica_whose_steps_were_complete_nothing_waits() {
        let mut contributions = Contributions::new(4);
        (0..10).for_each(|_| contributions.grant(HOP, 2));
        contributions.carried(&HOP, 3, false);
        contributions.grant(HOP, 5);
        contributions.carried(&HOP, 5, true);
        assert_eq!(contributions.clone().lose(&HOP), 1, "what was granted since the round");
        contributions.carried(&HOP, 6, true);
        assert_eq!(contributions.lose(&HOP), 0);
    }

    #[test]
    fn rounds_that_went_on_without_a_replica_have_carried_nothing_of_it() {
        let mut contributions = Contributions::new(1);
        (0..1_000).for_each(|granted| contributions.grant(HOP, granted));
        assert_eq!(contributions.granted.of(&HOP).count(), ROUNDS_MAX);
        assert_eq!(contributions.lose(&HOP), 1_000);
    }

    #[test]
    fn a_feeder_behind_the_rounds_of_the_run_takes_its_grants_for_new() {
        let mut contributions = Contributions::new(1);
        (0..5).for_each(|granted| contributions.grant(HOP, granted));
        contributions.catch_up(StageIndex(1), 40);
        contributions.carried(&HOP, 39, false);
        assert_eq!(contributions.lose(&HOP), 5);
    }

    #[test]
    fn a_replica_whose_grants_were_all_carried_has_none_to_forfeit() {
        let mut contributions = Contributions::new(1);
        contributions.grant(HOP, 3);
        contributions.carried(&HOP, 4, false);
        contributions.catch_up(StageIndex(1), 9);
        contributions.forfeit(&HOP);
        assert_eq!(contributions.lose(&HOP), 0);
    }
}
