//! The averaging rounds that a feeder calls, and the reports to the feeder.

use std::collections::BTreeMap;

use crate::{Duration, PeerId, Time};

use super::{FragmentIndex, Round};

/// A report is repeated after this time if the feeder goes on calling a round that has ended here.
const REPORT_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// A call that is further ahead of the last round than this is not believed: it would end all rounds.
pub const ROUND_JUMP_MAX: u64 = 1 << 20;

/// The first round that is heard of may be this high at most.
const FIRST_ROUND_MAX: u64 = 1 << 48;

/// The rounds of the run as one replica knows them. [`Averaging`](super::Averaging) works on one round at a time.
#[derive(Clone, Debug, Default)]
pub struct RoundTracker {
    /// The round that the feeder called last, if it has not begun here.
    called: Option<Round>,
    /// The round called last comes after the last microbatch.
    closing: bool,
    /// The feeder that called last: it waits for the end of the round.
    feeder: Option<PeerId>,
    /// Every round up to this one has ended here; `None` before a feeder was heard.
    ended: Option<Round>,
    /// The last round of each fragment that has carried this replica's contribution, and whether that was complete.
    carried: BTreeMap<FragmentIndex, (Round, bool)>,
    /// When the current round began, no contribution waited for the rest of its optimizer step.
    begun_complete: bool,
    /// Number of fragments; 0 before the first round.
    fragments: usize,
    /// The last report, the feeder that had called, and the time.
    reported: Option<(RoundReport, PeerId, Time)>,
}

/// A report to the feeder: every round up to `ended` has ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundReport {
    /// The last round that has ended here.
    pub ended: Round,
    /// Every fragment has been averaged with this replica's contribution in this round or a later one; `None` before
    /// that.
    pub carried: Option<Round>,
    /// When the rounds began that carried the fragments last, no contribution waited for the rest of its optimizer step.
    pub is_complete: bool,
}

/// The highest round that is believed after this one; `None`: after none.
pub(crate) fn highest_believed(last: Option<Round>) -> Round {
    Round(last.map_or(FIRST_ROUND_MAX, |last| last.0.saturating_add(ROUND_JUMP_MAX)))
}

impl RoundTracker {
    /// A feeder called a round. If the round has ended here, the feeder may have missed the report. The first round
    /// heard of may be under way at the other members, so it is left to them.
    pub fn on_call(
        &mut self,
        now: Time,
        feeder: PeerId,
        round: Round,
        is_closing: bool,
    ) -> Option<RoundReport> {
        if round > highest_believed(self.ended) {
            return None;
        }
        (self.feeder, self.closing) = (Some(feeder), is_closing);
        let ended = *self.ended.get_or_insert(round);
        if round > ended {
            self.called = self.called.max(Some(round));
            return None;
        }
        let again = |&(report, to, at): &(RoundReport, PeerId, Time)| {
            at + REPORT_AGAIN_AFTER <= now || to != feeder || self.report() != Some(report)
        };
        self.reported.as_ref().is_none_or(again).then(|| self.report_at(now)).flatten()
    }

    /// Takes the round that should begin now: a closing round waits until no microbatch is `held` that could still
    /// change the weights. `waiting`: contributions that wait for the rest of their optimizer step.
    pub fn next_round(&mut self, held: usize, waiting: u64) -> Option<Round> {
        let unsettled = self.closing && held > 0;
        let next = self.called.take_if(|_| !unsettled)?;
        self.begun_complete = (held, waiting) == (0, 0);
        Some(next)
    }

    /// Whether the round called last comes after the last microbatch.
    #[must_use]
    pub fn is_closing(&self) -> bool {
        self.closing
    }

    /// A round has ended here, or had no other member. Returns the report; `None` before a feeder has called.
    pub fn end(&mut self, now: Time, round: Round) -> Option<RoundReport> {
        self.ended = self.ended.max(Some(round));
        self.report_at(now)
    }

    /// A round has carried this replica's contribution to a fragment, or there was none; the run has `fragments`.
    pub fn carry(&mut self, round: Round, fragment: FragmentIndex, fragments: u32) {
        self.carried.insert(fragment, (round, self.begun_complete));
        self.fragments = fragments as usize;
    }

    fn report_at(&mut self, now: Time) -> Option<RoundReport> {
        let (report, feeder) = (self.report()?, self.feeder?);
        self.reported = Some((report, feeder, now));
        Some(report)
    }

    fn report(&self) -> Option<RoundReport> {
        let all = self.fragments > 0 && self.carried.len() >= self.fragments;
        let carried = self.carried.values().map(|(round, _)| *round).min().filter(|_| all);
        let is_complete = carried.is_some() && self.carried.values().all(|(_, is_complete)| *is_complete);
        Some(RoundReport { ended: self.ended?, carried, is_complete })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEEDER: PeerId = PeerId([7; 32]);
    const NOW: Time = Time(0);

    fn report(ended: u64) -> Option<RoundReport> {
        Some(RoundReport { ended: Round(ended), carried: None, is_complete: false })
    }

    #[test]
    fn the_first_round_heard_of_is_left_to_the_others() {
        let mut tracker = RoundTracker::default();
        assert_eq!(tracker.on_call(NOW, FEEDER, Round(4), false), report(4));
        assert_eq!(tracker.next_round(0, 0), None);
        assert_eq!(tracker.on_call(NOW, FEEDER, Round(5), false), None);
        assert_eq!((tracker.next_round(3, 0), tracker.next_round(3, 0)), (Some(Round(5)), None));
        assert_eq!(tracker.end(NOW, Round(5)), report(5));
    }

    #[test]
    fn a_report_says_since_when_every_fragment_has_carried_the_replica() {
        let mut tracker = RoundTracker::default();
        tracker.on_call(NOW, FEEDER, Round(4), false);
        let mut carried = |round, fragment| {
            tracker.carry(Round(round), FragmentIndex(fragment), 2);
            tracker.end(NOW, Round(round)).and_then(|report| report.carried)
        };
        assert_eq!(carried(5, 1), None, "the other fragment has not had its turn");
        assert_eq!(carried(6, 0), Some(Round(5)));
        assert_eq!(carried(8, 0), Some(Round(5)), "round 7 left this replica out");
        assert_eq!(carried(9, 1), Some(Round(8)));
    }

    #[test]
    fn a_report_says_whether_any_contribution_waited_for_its_step_when_the_last_rounds_began() {
        let mut tracker = RoundTracker::default();
        tracker.on_call(NOW, FEEDER, Round(1), false);
        let mut carried = |round, fragment, held, waiting| {
            tracker.on_call(NOW, FEEDER, Round(round), false);
            tracker.next_round(held, waiting).unwrap();
            tracker.carry(Round(round), FragmentIndex(fragment), 2);
            tracker.end(NOW, Round(round)).unwrap().is_complete
        };
        assert!(!carried(2, 0, 0, 0), "the other fragment has not had its turn");
        assert!(carried(3, 1, 0, 0));
        assert!(!carried(4, 0, 0, 1), "a contribution waited");
        assert!(!carried(5, 1, 1, 0), "a microbatch was under way");
        assert!(!carried(6, 0, 0, 0));
        assert!(carried(7, 1, 0, 0), "each fragment was carried since");
    }

    #[test]
    fn a_call_far_ahead_is_not_believed() {
        let mut tracker = RoundTracker::default();
        assert_eq!(tracker.on_call(NOW, FEEDER, Round(u64::MAX), false), None);
        assert_eq!(tracker.on_call(NOW, FEEDER, Round(4), false), report(4));
        assert_eq!(tracker.on_call(NOW, FEEDER, Round(u64::MAX), false), None);
        assert_eq!(tracker.next_round(0, 0), None);
        tracker.on_call(NOW, FEEDER, Round(5), false);
        assert_eq!(tracker.next_round(0, 0), Some(Round(5)));
    }

    #[test]
    fn a_feeder_that_missed_the_end_hears_it_again_in_time() {
        let mut tracker = RoundTracker::default();
        tracker.on_call(NOW, FEEDER, Round(4), false);
        assert_eq!(tracker.on_call(NOW + REPORT_AGAIN_AFTER / 2, FEEDER, Round(4), false), None);
        assert_eq!(tracker.on_call(NOW + REPORT_AGAIN_AFTER, FEEDER, Round(3), false), report(4));
        let other = PeerId([8; 32]);
        assert_eq!(tracker.on_call(NOW + REPORT_AGAIN_AFTER, other, Round(4), false), report(4));
    }

    #[test]
    fn the_last_rounds_wait_until_nothing_is_held() {
        let mut tracker = RoundTracker::default();
        tracker.on_call(NOW, FEEDER, Round(0), false);
        tracker.on_call(NOW, FEEDER, Round(1), true);
        assert_eq!((tracker.next_round(1, 0), tracker.next_round(0, 0)), (None, Some(Round(1))));
    }
}
