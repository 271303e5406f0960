//! How a replica leaves: it finishes its microbatches, then averaging gives the others the updates that only it has.

use std::collections::BTreeSet;

use crate::averaging::{FragmentIndex, Round};
use crate::{Duration, Time};

/// A replica that is asked to leave gets this long to finish its microbatches.
pub const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// A drained replica waits at most this long until each fragment is averaged once more and joiners have its state.
/// Rounds may stand still: no replica is kept for longer.
pub const HAND_OVER_WITHIN: Duration = Duration::from_secs(30);

/// The progress of a departure.
#[derive(Debug, Default)]
pub(super) struct Departure {
    phase: Phase,
    /// Every microbatch has its outcome and was averaged: there is nothing to hand over.
    run_finished: bool,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Serving,
    /// A request to leave came; unfinished microbatches are given up at this time.
    Draining(Time),
    HandingOver(HandOver),
}

#[derive(Debug)]
struct HandOver {
    until: Time,
    /// The round that was open when the replica was drained: its snapshot may lack the last contributions.
    before: Option<Round>,
    /// Fragments that were not averaged in full since.
    missing: BTreeSet<FragmentIndex>,
}

/// The other replicas that a departure concerns.
#[derive(Clone, Copy, Debug)]
pub(super) struct Others {
    /// Replicas of the stage to average with; none where no feeder calls rounds.
    pub(super) members: usize,
    /// Joiners that take the state from this replica now.
    pub(super) joiners: usize,
}

/// The work that a replica left behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unfinished {
    /// Microbatches held when [`DRAIN_WITHIN`] was over; other replicas recover them.
    Microbatches(usize),
    /// Fragments that were not averaged after the last update: the other replicas lack its part of them.
    Fragments(usize),
}

impl Departure {
    /// A person, or the coordinator, wants the replica to leave.
    pub(super) fn requested(&mut self, now: Time) {
        if !matches!(self.phase, Phase::HandingOver(_)) {
            self.phase = Phase::Draining(now + DRAIN_WITHIN);
        }
    }

    /// The coordinator says that the run is over.
    pub(super) fn run_finished(&mut self) {
        self.run_finished = true;
    }

    /// No microbatch is held any more. `fragments` are to be averaged once more, in rounds after the round `under_way`.
    pub(super) fn drained(&mut self, now: Time, fragments: u32, under_way: Option<Round>) {
        let missing = (0..fragments).map(FragmentIndex).collect();
        let until = now + HAND_OVER_WITHIN;
        self.phase = Phase::HandingOver(HandOver { until, before: under_way, missing });
    }

    /// A fragment was averaged in full.
    pub(super) fn averaged(&mut self, round: Round, fragment: FragmentIndex) {
        if let Phase::HandingOver(hand_over) = &mut self.phase
            && Some(round) > hand_over.before
        {
            hand_over.missing.remove(&fragment);
        }
    }

    /// The latest time to call [`Departure::is_done`].
    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Serving => None,
            Phase::Draining(until) => Some(*until),
            Phase::HandingOver(hand_over) => Some(hand_over.until),
        }
    }

    /// Whether there is nothing left to do, or no time.
    pub(super) fn is_done(&self, now: Time, others: Others) -> bool {
        let late = self.deadline().is_some_and(|until| until <= now);
        match &self.phase {
            Phase::Serving => false,
            Phase::Draining(_) => late,
            Phase::HandingOver(HandOver { missing, .. }) => {
                let handed_over = missing.is_empty() || others.members == 0;
                late || self.run_finished || (handed_over && others.joiners == 0)
            }
        }
    }

    /// Whether the run is over.
    pub(super) fn is_run_finished(&self) -> bool {
        self.run_finished
    }

    /// The work left behind, with `held` microbatches unfinished; `None` if there is none.
    pub(super) fn unfinished(&self, held: usize, others: Others) -> Option<Unfinished> {
        match &self.phase {
            Phase::Draining(_) => Some(Unfinished::Microbatches(held)),
            Phase::HandingOver(HandOver { missing, .. })
                if !self.run_finished && others.members > 0 && !missing.is_empty() =>
            {
                Some(Unfinished::Fragments(missing.len()))
            }
            Phase::Serving | Phase::HandingOver(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Others = Others { members: 1, joiners: 0 };

    #[test]
    fn leaves_when_every_fragment_was_averaged_after_the_last_contribution() {
        let mut departure = Departure::default();
        departure.requested(Time(0));
        assert!(!departure.is_done(Time(1), PAIR));
        departure.drained(Time(2), 2, Some(Round(4)));
        departure.averaged(Round(4), FragmentIndex(0));
        departure.averaged(Round(5), FragmentIndex(1));
        assert!(!departure.is_done(Time(3), PAIR));
        assert_eq!(departure.unfinished(0, PAIR), Some(Unfinished::Fragments(1)));
        departure.averaged(Round(6), FragmentIndex(0));
        assert!(departure.is_done(Time(3), PAIR));
        assert_eq!(departure.unfinished(0, PAIR), None);
        assert!(!departure.is_done(Time(3), Others { joiners: 1, ..PAIR }), "a joiner takes its state");
    }

    #[test]
    fn a_replica_that_is_alone_late_or_at_the_end_of_the_run_just_leaves() {
        let mut departure = Departure::default();
        assert_eq!(departure.deadline(), None);
        departure.drained(Time(0), 20, None);
        assert!(departure.is_done(Time(1), Others { members: 0, joiners: 0 }));
        assert!(!departure.is_done(Time(1), PAIR));
        assert!(departure.is_done(Time(0) + HAND_OVER_WITHIN, PAIR));
        departure.run_finished();
        assert!(departure.is_done(Time(1), PAIR));
    }

    #[test]
    fn microbatches_that_do_not_drain_are_left_to_others() {
        let mut departure = Departure::default();
        departure.requested(Time(0));
        assert!(departure.is_done(Time(0) + DRAIN_WITHIN, PAIR));
        assert_eq!(departure.unfinished(3, PAIR), Some(Unfinished::Microbatches(3)));
    }
}
