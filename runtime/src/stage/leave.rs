//! How a replica leaves: it finishes what it holds; then averaging carries away what only its own weights have.

use std::collections::BTreeSet;
use std::time::Duration;

use swarmline_scheduler::Time;
use swarmline_scheduler::averaging::{Round, SetIndex};

/// A replica that is asked to leave gets this long to finish what it holds.
pub(super) const DRAIN_WITHIN: Duration = Duration::from_secs(30);
/// Then this long for each index set to go round once more, and for those who take its state. Rounds may stand still:
/// nobody is kept for longer.
pub(super) const HAND_OVER_WITHIN: Duration = Duration::from_secs(30);

/// How far a farewell is.
#[derive(Debug, Default)]
pub(super) struct Farewell {
    phase: Phase,
    /// Everything has its outcome and was averaged: there is nothing to hand over.
    run_over: bool,
}

#[derive(Debug, Default)]
enum Phase {
    #[default]
    Serving,
    /// Until then, if a person asked.
    Draining(Option<Time>),
    HandingOver(HandOver),
}

#[derive(Debug)]
struct HandOver {
    until: Time,
    /// Its copy was made while something was still learned.
    before: Option<Round>,
    /// Sets that have not been round since.
    missing: BTreeSet<SetIndex>,
}

/// Who else is concerned when a replica leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Company {
    /// Other replicas of the stage to average with; none where no feeder calls rounds.
    pub(super) others: usize,
    /// Replicas that take the state from this one now.
    pub(super) joiners: usize,
}

impl Farewell {
    /// A person wants the replica to leave.
    pub(super) fn asked(&mut self, now: Time) {
        if !matches!(self.phase, Phase::HandingOver(_)) {
            self.phase = Phase::Draining(Some(now + DRAIN_WITHIN));
        }
    }

    /// The coordinator says that the run is over.
    pub(super) fn run_over(&mut self) {
        self.run_over = true;
    }

    /// Nothing is held any more. `sets` are to go round once more, in rounds after the one `under_way`.
    pub(super) fn drained(&mut self, now: Time, sets: u32, under_way: Option<Round>) {
        let missing = (0..sets).map(SetIndex).collect();
        let until = now + HAND_OVER_WITHIN;
        self.phase = Phase::HandingOver(HandOver { until, before: under_way, missing });
    }

    /// A set has been round.
    pub(super) fn went_round(&mut self, round: Round, set: SetIndex) {
        if let Phase::HandingOver(hand_over) = &mut self.phase
            && Some(round) > hand_over.before
        {
            hand_over.missing.remove(&set);
        }
    }

    /// When to ask [`Farewell::may_go`] at the latest.
    pub(super) fn deadline(&self) -> Option<Time> {
        match &self.phase {
            Phase::Serving => None,
            Phase::Draining(until) => *until,
            Phase::HandingOver(hand_over) => Some(hand_over.until),
        }
    }

    /// Whether there is nothing left to do, or no time.
    pub(super) fn may_go(&self, now: Time, company: Company) -> bool {
        let late = self.deadline().is_some_and(|until| until <= now);
        match &self.phase {
            Phase::Serving => false,
            Phase::Draining(_) => late,
            Phase::HandingOver(HandOver { missing, .. }) => {
                let handed_over = missing.is_empty() || company.others == 0;
                late || self.run_over || (handed_over && company.joiners == 0)
            }
        }
    }

    /// For people: what is left behind, where `held` microbatches are unfinished; `None` if nothing is.
    pub(super) fn left_behind(&self, held: usize, company: Company) -> Option<String> {
        match &self.phase {
            Phase::Draining(_) => Some(format!(
                "left after {} s with {held} microbatches unfinished here; others take them over",
                DRAIN_WITHIN.as_secs()
            )),
            Phase::HandingOver(HandOver { missing, .. })
                if !self.run_over && company.others > 0 && !missing.is_empty() =>
            {
                Some(format!(
                    "left after {} s; {} index sets did not go round meanwhile, and of what this replica learned last \
                     they lack its part",
                    HAND_OVER_WITHIN.as_secs(),
                    missing.len()
                ))
            }
            Phase::Serving | Phase::HandingOver(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAIR: Company = Company { others: 1, joiners: 0 };

    #[test]
    fn leaves_when_every_set_has_been_round_after_the_last_contribution() {
        let mut farewell = Farewell::default();
        farewell.asked(Time(0));
        assert!(!farewell.may_go(Time(1), PAIR));
        farewell.drained(Time(2), 2, Some(Round(4)));
        farewell.went_round(Round(4), SetIndex(0));
        farewell.went_round(Round(5), SetIndex(1));
        assert!(!farewell.may_go(Time(3), PAIR) && farewell.left_behind(0, PAIR).is_some());
        farewell.went_round(Round(6), SetIndex(0));
        assert!(farewell.may_go(Time(3), PAIR) && farewell.left_behind(0, PAIR).is_none());
        assert!(!farewell.may_go(Time(3), Company { joiners: 1, ..PAIR }), "somebody takes its state");
    }

    #[test]
    fn who_is_alone_late_or_at_the_end_of_the_run_just_goes() {
        let mut farewell = Farewell::default();
        assert_eq!(farewell.deadline(), None);
        farewell.drained(Time(0), 20, None);
        assert!(farewell.may_go(Time(1), Company { others: 0, joiners: 0 }));
        assert!(!farewell.may_go(Time(1), PAIR));
        assert!(farewell.may_go(Time(0) + HAND_OVER_WITHIN, PAIR));
        farewell.run_over();
        assert!(farewell.may_go(Time(1), PAIR));
    }

    #[test]
    fn what_does_not_drain_is_left_to_others() {
        let mut farewell = Farewell::default();
        farewell.asked(Time(0));
        assert!(farewell.may_go(Time(0) + DRAIN_WITHIN, PAIR));
        assert!(farewell.left_behind(3, PAIR).is_some_and(|text| text.contains("3 microbatches")));
    }
}
