//! The clock of the averaging rounds of one stage.
//!
//! Replicas average only if they are in the same round at the same time. A round is not called before the current round
//! has ended at every member, however many microbatches finish meanwhile: a replica that is called in the middle of a
//! round would find no other member, and leave fragments out.
//!
//! A replica that died is a member until its lease ends. Once more than half of the stage have ended a round, the feeder
//! waits for the others as long as the round took, at least [`ROUND_GRACE`]. That breaks nothing: a replica left behind
//! finds no other member in its round, ends it, and takes part in the current round. A live replica that is always
//! slower than the rest would always be left behind. So the feeder waits longer for a member that was late: the whole
//! patience after the first late round, and half as long after each further one. A member that is late every round is
//! soon waited for no longer than the dead, until it is on time once.
//!
//! A member that reports nothing while others end a round may be out of reach for good. The feeder waits for it half as
//! long after each such round, the last ones included, so that a missing link does not hold up the end of the run.
//!
//! A round in which no member is ready when the patience is over is long, not lost: members go on with it although the
//! next is called. The patience grows to fit.
//!
//! When every microbatch has its outcome and weights no longer change, each fragment is averaged once more, and
//! replicas of a stage end equal: in these rounds, and in the round before them, the feeder waits for every member.
//! Where a mean went on without a member, or a member joined late, each fragment has one turn more. Replicas of a stage
//! that averages in groups end almost equal, after more turns.

use std::collections::{BTreeMap, BTreeSet};

use crate::averaging::{DrawnGroups, GROUP_MAX, Round, highest_believed};
use crate::feeder::AveragingSchedule;
use crate::{Duration, Instance, Time};

use super::Training;

/// How long the feeder waits for a replica that has not ended a round. Members give up on silent members far sooner;
/// this limit is for replicas that stay in the table and do not answer at all.
const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// The same where rounds are long: 10^9 parameters take minutes on a thin link.
const ROUND_TIMEOUT_MAX: Duration = Duration::from_secs(3_600);

/// How long the feeder waits for the others at least when more than half of a stage have ended a round.
const ROUND_GRACE: Duration = Duration::from_secs(3);

/// A late member is waited for half as long after each late round, until this is as good as nothing.
const HALVINGS_MAX: u32 = 16;

/// Turns of each fragment when every microbatch has its outcome.
const CLOSING_TURNS: u64 = 1;

/// The same where a stage averages in groups: two turns leave a hundredth of the variance between its replicas, three a
/// thousandth.
const CLOSING_TURNS_OF_GROUPS: u64 = 3;

/// How long the last rounds of a stage may take in all, beside the time that they would take undisturbed: replicas that go
/// on dying and joining must not hold up the end of a run.
const CLOSING_DISTURBED_MAX: Duration = Duration::from_secs(60);

/// Rounds of the same stage differ: the last ones may take so many times as long as the longest one before them.
const CLOSING_SLACK: u64 = 2;

/// The clock of one stage.
#[derive(Clone, Debug)]
pub(super) struct StageRounds {
    schedule: AveragingSchedule,
    /// The current round; 0 before the first.
    round: u64,
    /// The time at which it was called.
    called_at: Time,
    /// Microbatches finished when it was called.
    finished: u64,
    members: BTreeMap<Instance, Member>,
    /// The members that average with each other in the current round.
    groups: DrawnGroups,
    /// Members that have not ended the current round.
    pending: BTreeSet<Instance>,
    /// The time at which more than half had ended it.
    most_ended_at: Option<Time>,
    /// The feeder waits for pending members until this time.
    until: Option<Time>,
    /// How long the feeder waits for members at most.
    timeout: Duration,
    /// Rounds that began after every microbatch had its outcome, and the first of them.
    closing: u64,
    first_closing: u64,
    /// They end by then at the latest.
    closes_by: Option<Time>,
    /// The longest round that every member has ended.
    longest: Duration,
    over: bool,
    /// Members have reported, come or gone since the last look.
    news: bool,
}

/// What a member has reported.
#[derive(Clone, Copy, Debug, Default)]
struct Member {
    /// The last round that it has ended.
    ended: u64,
    /// The round since which every fragment was averaged with it.
    carried: Option<u64>,
    /// It had not ended the round before the current one, and has not reported since.
    is_behind: bool,
    /// Rounds in a row that others have ended, and of which it has reported nothing.
    missed: u32,
    /// Rounds that it has reported late in a row.
    late: u32,
}

impl StageRounds {
    /// A clock at round 0; with an interval of 0 it calls no round.
    pub(super) fn new(schedule: AveragingSchedule) -> Self {
        Self {
            schedule,
            round: 0,
            called_at: Time::default(),
            finished: 0,
            members: BTreeMap::new(),
            groups: DrawnGroups::new(Round(0), std::iter::empty()),
            pending: BTreeSet::new(),
            most_ended_at: None,
            until: None,
            timeout: ROUND_TIMEOUT,
            closing: 0,
            first_closing: 0,
            closes_by: None,
            longest: Duration::ZERO,
            over: false,
            news: true,
        }
    }

    /// The current round.
    pub(super) fn current(&self) -> Round {
        Round(self.round)
    }

    /// Former starts of the feeder called this many rounds more.
    pub(super) fn remember(&mut self, rounds: u64) {
        self.round = self.round.saturating_add(rounds);
        self.draw();
    }

    /// The members that average with this one in the current round; empty if it is no member.
    pub(super) fn group_of(&self, member: Instance) -> &[Instance] {
        self.groups.of(member)
    }

    /// Whether the current round is one of the last.
    pub(super) fn closes(&self) -> bool {
        self.closing > 0
    }

    /// Whether the last round has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// The time after `now` at which the feeder goes on without the members that have not ended the current round.
    pub(super) fn deadline(&self, now: Time) -> Option<Time> {
        let ends = [self.until, self.closes_by].into_iter().flatten();
        ends.filter(|&end| now < end && !self.over).min()
    }

    /// A replica averages from now on.
    pub(super) fn enter(&mut self, member: Instance) {
        let Member { ended, .. } = *self.members.entry(member).or_default();
        if ended < self.round {
            self.pending.insert(member);
        }
        self.groups.enter(member);
        self.news = true;
    }

    /// A replica averages no more.
    pub(super) fn leave(&mut self, member: Instance) {
        self.members.remove(&member);
        self.pending.remove(&member);
        self.groups.leave(member);
        self.news = true;
    }

    /// A member has ended this round and all before it; `carried`: every fragment was averaged with its contribution
    /// since then. A round far ahead of the current one is not believed: no replica would follow its successor.
    pub(super) fn ended(&mut self, now: Time, member: Instance, round: Round, carried: Option<Round>) {
        if round > highest_believed((self.round > 0).then_some(self.current())) {
            return;
        }
        let overdue = self.grace().is_some_and(|until| until <= now);
        let Some(reported) = self.members.get_mut(&member) else { return };
        let ends = round.0 >= self.round && self.pending.remove(&member);
        if reported.is_behind || (ends && overdue) {
            reported.late = reported.late.saturating_add(1);
        } else if ends {
            reported.late = 0;
        }
        (reported.is_behind, reported.missed) = (false, 0);
        if ends && self.pending.is_empty() {
            self.longest = self.longest.max(now.since(self.called_at));
        }
        reported.ended = round.0;
        reported.carried = carried.map_or(reported.carried, |carried| Some(carried.0));
        self.news = true;
    }

    /// Another feeder calls: the round behind the last that all members have ended may be under way. Returns it.
    pub(super) fn learn(&mut self) -> Round {
        let ended = self.members.values().map(|member| member.ended).min().unwrap_or(0);
        if self.round <= ended {
            self.round = ended.saturating_add(1);
            self.draw();
        }
        self.current()
    }

    /// Calls the next round, if it is due and the feeder waits for no member any more. Returns whether a round was
    /// called.
    pub(super) fn proceed(&mut self, now: Time, training: Training) -> bool {
        self.over |= self.closes_by.is_some_and(|by| by <= now);
        if self.over || self.waits(now, training.over) {
            return false;
        }
        self.over = training.over && self.is_closed();
        let due = training.over || self.is_due(training.finished);
        let calls = due && !self.over && self.members.len() > 1;
        if calls {
            self.call(now, training);
        }
        calls
    }

    fn call(&mut self, now: Time, training: Training) {
        let others_ended = u32::from(self.pending.len() < self.members.len());
        for member in &self.pending {
            if let Some(member) = self.members.get_mut(member) {
                member.is_behind = true;
                member.missed = member.missed.saturating_add(others_ended);
            }
        }
        // All members may have ended more rounds than this start of the feeder knows.
        let ended = self.members.values().map(|member| member.ended).min();
        self.round = self.round.max(ended.unwrap_or(0)).saturating_add(1);
        if training.over {
            self.closing += 1;
            self.first_closing = if self.closing == 1 { self.round } else { self.first_closing };
            self.closes_by = self.closes_by.or(Some(now + self.closing_max()));
        }
        (self.called_at, self.finished, self.most_ended_at) = (now, training.finished, None);
        self.draw();
        self.until = self.waits_until(training.over);
    }

    // --- Waiting --------------------------------------------------------------------------------------------

    fn waits(&mut self, now: Time, is_closing: bool) -> bool {
        if std::mem::take(&mut self.news) || is_closing {
            self.notice_most(now);
            self.until = self.until.and_then(|_| self.waits_until(is_closing));
        }
        let Some(until) = self.until else { return false };
        if until <= now && self.called_at + self.timeout <= now {
            self.until = None;
            if self.pending.len() == self.members.len() {
                self.timeout = (self.timeout * 2).min(ROUND_TIMEOUT_MAX);
            }
        }
        now < until
    }

    /// Notes when more than half have ended the round. A patience far too long shrinks.
    fn notice_most(&mut self, now: Time) {
        let most = self.members.len() - self.pending.len() > self.members.len() / 2;
        if most && self.most_ended_at.is_none() && now.since(self.called_at) < self.timeout / 4 {
            self.timeout = (self.timeout / 2).max(ROUND_TIMEOUT);
        }
        self.most_ended_at = self.most_ended_at.or(Some(now)).filter(|_| most);
    }

    /// The time until which the feeder waits for pending members; `None` if there are none.
    fn waits_until(&self, is_closing: bool) -> Option<Time> {
        let missed =
            self.pending.iter().filter_map(|member| self.members.get(member)).map(|member| member.missed);
        let missed = missed.min().unwrap_or(0).min(HALVINGS_MAX);
        let longest = self.called_at + (self.timeout / (1 << missed)).max(ROUND_GRACE);
        if self.pending.is_empty() {
            return None;
        }
        let Some(grace) = self.grace().filter(|_| !is_closing) else { return Some(longest) };
        let late =
            self.pending.iter().filter_map(|member| self.members.get(member)).map(|member| member.late);
        let patience = |late: u32| self.timeout / (1 << (late - 1).min(HALVINGS_MAX));
        let latest = late.filter(|&late| late > 0).map(|late| self.called_at + patience(late)).max();
        Some(latest.map_or(grace, |latest| latest.max(grace)).min(longest))
    }

    /// The time until which members are waited for that were never late, once most have ended the round.
    fn grace(&self) -> Option<Time> {
        let most_ended_at = self.most_ended_at?;
        Some(most_ended_at + most_ended_at.since(self.called_at).max(ROUND_GRACE))
    }

    /// Notes who takes part in the current round.
    fn draw(&mut self) {
        let pending = self.members.iter().filter(|(_, member)| member.ended < self.round);
        self.pending = pending.map(|(member, _)| *member).collect();
        self.groups = DrawnGroups::new(self.current(), self.members.keys().copied());
    }

    fn is_due(&self, finished: u64) -> bool {
        self.schedule.interval > 0 && finished.saturating_sub(self.finished) >= self.schedule.interval
    }

    /// The time that the last rounds may take. Where a member is out of reach they need not more than two patiences.
    fn closing_max(&self) -> Duration {
        let rounds = self.schedule.fragments.saturating_mul(self.turns() + 1);
        let rounds = u32::try_from(rounds.saturating_mul(CLOSING_SLACK)).unwrap_or(u32::MAX);
        self.longest.saturating_mul(rounds).saturating_add(CLOSING_DISTURBED_MAX + self.timeout)
    }

    fn turns(&self) -> u64 {
        if self.members.len() > GROUP_MAX { CLOSING_TURNS_OF_GROUPS } else { CLOSING_TURNS }
    }

    /// Whether the last rounds have carried every member, or each fragment has had one turn more.
    fn is_closed(&self) -> bool {
        let turns = self.turns();
        let rounds = |turns: u64| self.schedule.fragments.saturating_mul(turns);
        let carried = |member: &Member| member.carried.is_some_and(|round| round >= self.first_closing);
        let all = self.closing >= rounds(turns) && self.members.values().all(carried);
        self.members.len() < 2 || all || self.closing >= rounds(turns + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    fn member(key: u8) -> Instance {
        Instance::new(PeerId([key; 32]), Incarnation(1))
    }

    /// The clock of a stage with these members.
    fn rounds(keys: std::ops::RangeInclusive<u8>) -> StageRounds {
        let mut rounds = StageRounds::new(AveragingSchedule { interval: 10, fragments: 2 });
        keys.for_each(|key| rounds.enter(member(key)));
        rounds
    }

    fn at(finished: u64) -> Training {
        Training { finished, over: false }
    }

    const OVER: Training = Training { finished: 99, over: true };

    /// These members end a round, at a time, and were carried by it.
    fn end(rounds: &mut StageRounds, now: Time, keys: std::ops::RangeInclusive<u8>, round: u64) {
        keys.for_each(|key| rounds.ended(now, member(key), Round(round), Some(Round(round))));
    }

    #[test]
    fn a_member_that_is_out_of_reach_for_good_holds_up_the_last_rounds_for_two_minutes_at_most() {
        let mut rounds = rounds(1..=2);
        let mut now = Time(0);
        while !rounds.is_over() {
            if rounds.proceed(now, OVER) {
                let Round(round) = rounds.current();
                end(&mut rounds, now, 1..=1, round);
            }
            now = now + Duration::from_secs(1);
            assert!(now < Time(0) + 2 * ROUND_TIMEOUT, "{:?}", rounds.current());
        }
        assert_eq!(rounds.current(), Round(4), "each fragment had a turn more");
    }

    #[test]
    fn replicas_that_go_on_dying_and_joining_hold_up_the_last_rounds_for_a_limited_time() {
        let mut rounds = rounds(1..=3);
        assert!(rounds.proceed(Time(0), at(10)));
        let second = Duration::from_secs(1);
        let mut now = Time(0) + second;
        end(&mut rounds, now, 1..=3, 1);
        let began = now;
        while !rounds.is_over() {
            rounds.proceed(now, OVER);
            let Round(round) = rounds.current();
            end(&mut rounds, now, 1..=2, round);
            // One of the stage dies, and another replica takes its place before it was averaged.
            let turn = (now.0 / second.as_nanos() as u64 % 200) as u8;
            rounds.leave(member(3 + turn));
            rounds.enter(member(4 + turn));
            now = now + second;
            assert!(now < began + 3 * ROUND_TIMEOUT, "{:?}", rounds.current());
        }
        assert_eq!(rounds.deadline(now), None);
    }

    #[test]
    fn the_next_round_waits_for_microbatches_and_for_the_last_to_end_this_one() {
        let mut rounds = rounds(1..=3);
        assert!(!rounds.proceed(Time(0), at(9)));
        assert!(rounds.proceed(Time(0), at(10)));
        end(&mut rounds, Time(1), 1..=2, 1);
        assert!(!rounds.proceed(Time(1), at(99)));
        end(&mut rounds, Time(2), 3..=3, 1);
        assert!(rounds.proceed(Time(2), at(99)));
        assert_eq!(rounds.current(), Round(2));
        end(&mut rounds, Time(3), 1..=2, 2);
        rounds.leave(member(3));
        assert!(rounds.proceed(Time(3), at(109)), "the other one has left");
    }

    #[test]
    fn no_member_is_waited_for_for_ever() {
        let mut rounds = rounds(1..=2);
        assert!(rounds.proceed(Time(0), at(10)));
        assert_eq!(rounds.deadline(Time(0)), Some(Time(0) + ROUND_TIMEOUT));
        assert!(!rounds.proceed(Time(0) + ROUND_TIMEOUT / 2, at(20)));
        assert!(!rounds.proceed(Time(0) + ROUND_TIMEOUT, at(19)));
        assert_eq!(rounds.deadline(Time(0) + ROUND_TIMEOUT), None);
        assert!(rounds.proceed(Time(1) + ROUND_TIMEOUT, at(20)));
    }

    #[test]
    fn rounds_that_take_long_get_more_time_and_short_ones_less() {
        let (mut rounds, mut now) = (rounds(1..=2), Time(0));
        let mut call = |rounds: &mut StageRounds, lasts: Duration, expected: Duration| {
            assert!(rounds.proceed(now, at(u64::MAX)));
            assert_eq!(rounds.deadline(now), Some(now + expected));
            now = now + lasts;
            if lasts < expected {
                end(rounds, now, 1..=2, rounds.current().0);
            }
            assert!(!rounds.proceed(now, at(0)));
            rounds.finished = 0;
        };
        let long = ROUND_TIMEOUT * 5;
        call(&mut rounds, long, ROUND_TIMEOUT);
        call(&mut rounds, long, ROUND_TIMEOUT * 2);
        call(&mut rounds, long, ROUND_TIMEOUT * 4);
        call(&mut rounds, long, ROUND_TIMEOUT * 8);
        call(&mut rounds, ROUND_TIMEOUT, ROUND_TIMEOUT * 8);
        call(&mut rounds, ROUND_TIMEOUT, ROUND_TIMEOUT * 4);
        call(&mut rounds, ROUND_TIMEOUT / 2, ROUND_TIMEOUT * 4);
        call(&mut rounds, ROUND_TIMEOUT / 60, ROUND_TIMEOUT * 2);
        call(&mut rounds, ROUND_TIMEOUT / 60, ROUND_TIMEOUT);
    }

    /// Round 1 is called at 0; these members end it at 1.
    fn under_way(members: std::ops::RangeInclusive<u8>, ended: std::ops::RangeInclusive<u8>) -> StageRounds {
        let mut rounds = rounds(members);
        assert!(rounds.proceed(Time(0), at(10)));
        end(&mut rounds, Time(1), ended, 1);
        assert!(!rounds.proceed(Time(1), at(99)));
        rounds
    }

    #[test]
    fn when_most_have_ended_the_others_have_a_grace() {
        let (grace, almost) = (Time(1) + ROUND_GRACE, Time(0) + ROUND_GRACE);
        let mut rounds = under_way(1..=4, 1..=3);
        assert_eq!(rounds.deadline(Time(1)), Some(grace));
        assert!(!rounds.proceed(almost, at(99)));
        assert!(!rounds.proceed(grace, at(19)), "not due");
        assert_eq!(rounds.deadline(grace), None, "nothing happens before");
        assert!(rounds.proceed(grace, at(20)));
        assert_eq!(rounds.deadline(grace), Some(grace + ROUND_TIMEOUT));

        let mut half = under_way(1..=4, 1..=2);
        assert_eq!(half.deadline(Time(1)), Some(Time(0) + ROUND_TIMEOUT));
        assert!(!half.proceed(grace, at(99)));
        let late = Time(0) + ROUND_TIMEOUT / 3;
        end(&mut half, late, 3..=3, 1);
        assert!(!half.proceed(late, at(99)));
        assert_eq!(half.deadline(late), Some(late + ROUND_TIMEOUT / 3), "as long as the round took");
    }

    #[test]
    fn a_member_that_was_left_behind_and_lives_is_waited_for_from_then_on() {
        let mut rounds = under_way(1..=3, 1..=2);
        let second = Time(1) + ROUND_GRACE;
        assert!(rounds.proceed(second, at(20)));
        end(&mut rounds, second, 1..=2, 2);
        end(&mut rounds, second, 3..=3, 1);
        assert!(!rounds.proceed(second + ROUND_GRACE, at(99)));
        assert!(!rounds.proceed(second + ROUND_GRACE * 2, at(99)));
        assert_eq!(rounds.deadline(second), Some(second + ROUND_TIMEOUT));
        end(&mut rounds, second + ROUND_GRACE / 2, 3..=3, 2);
        let third = second + ROUND_GRACE * 3;
        assert!(rounds.proceed(third, at(99)));
        end(&mut rounds, third, 1..=2, 3);
        assert!(!rounds.proceed(third, at(199)));
        assert_eq!(rounds.deadline(third), Some(third + ROUND_GRACE), "it was on time");
    }

    #[test]
    fn a_member_that_is_late_every_round_costs_its_stage_less_and_less_until_it_is_on_time_once() {
        let mut rounds = rounds(1..=3);
        let (mut now, mut waits) = (Time(0), Vec::new());
        for round in 1..=9 {
            assert!(rounds.proceed(now, at(u64::MAX)));
            end(&mut rounds, now, 1..=2, round);
            assert!(!rounds.proceed(now, at(u64::MAX)));
            now = rounds.deadline(now).unwrap();
            waits.push(now.since(rounds.called_at).as_secs());
            let reports = if round == 8 { rounds.called_at } else { now };
            end(&mut rounds, reports, 3..=3, round);
            rounds.finished = 0;
        }
        assert_eq!(waits, [3, 60, 30, 15, 7, 3, 3, 3, 3], "seconds");
    }

    #[test]
    fn the_dead_cost_a_grace_each_round() {
        let mut rounds = under_way(1..=3, 1..=2);
        let mut now = Time(1);
        for round in 2..9 {
            assert!(rounds.proceed(now + ROUND_GRACE, at(round * 10)));
            now = now + ROUND_GRACE;
            end(&mut rounds, now, 1..=2, round);
            assert!(!rounds.proceed(now, at(999)));
        }
    }

    #[test]
    fn no_member_is_left_behind_at_the_end() {
        let mut rounds = under_way(1..=3, 1..=2);
        let late = Time(0) + ROUND_TIMEOUT / 2;
        assert!(!rounds.proceed(late, at(19)), "its grace is over, the next round not due");
        for round in 1..=3 {
            assert!(!rounds.proceed(late, OVER));
            assert!(rounds.deadline(late) > Some(late));
            end(&mut rounds, late, 1..=3, round);
            assert_eq!(rounds.proceed(late, OVER), round < 3);
            end(&mut rounds, late, 1..=2, round + 1);
        }
        assert!(rounds.is_over());
    }

    #[test]
    fn at_the_end_each_fragment_is_averaged_once_more() {
        let mut rounds = rounds(1..=2);
        for round in 1..=2 {
            assert!(rounds.proceed(Time(round), OVER) && rounds.closes());
            assert!(!rounds.proceed(Time(round), OVER) && !rounds.is_over());
            end(&mut rounds, Time(round), 1..=2, round);
        }
        assert!(!rounds.proceed(Time(3), OVER) && rounds.is_over());
        assert!(!rounds.proceed(Time(4), OVER));
    }

    #[test]
    fn a_stage_that_averages_in_groups_has_three_turns_at_the_end() {
        let mut rounds = rounds(1..=20);
        for round in 1..=6 {
            assert!(rounds.proceed(Time(round), OVER));
            end(&mut rounds, Time(round), 1..=20, round);
        }
        assert!(!rounds.proceed(Time(9), OVER) && rounds.is_over());
    }

    #[test]
    fn a_member_that_the_last_rounds_have_not_carried_has_a_second_turn_and_no_third() {
        let mut rounds = rounds(1..=2);
        for round in 1..=4 {
            assert!(rounds.proceed(Time(round), OVER), "round {round}");
            end(&mut rounds, Time(round), 1..=1, round);
            rounds.ended(Time(round), member(2), Round(round), None);
        }
        assert!(!rounds.proceed(Time(5), OVER) && rounds.is_over());
    }

    #[test]
    fn a_restarted_feeder_goes_on_after_the_rounds_that_all_members_have_ended() {
        let mut rounds = rounds(1..=2);
        assert!(rounds.proceed(Time(0), at(10)));
        end(&mut rounds, Time(0), 1..=1, 1_000);
        end(&mut rounds, Time(0), 2..=2, 40);
        assert!(rounds.proceed(Time(1), at(20)));
        assert_eq!(rounds.current(), Round(41));
    }

    #[test]
    fn a_replica_alone_has_no_rounds_and_is_over_at_once() {
        let empty = StageRounds::new(AveragingSchedule { interval: 10, fragments: 2 });
        for mut rounds in [empty, rounds(1..=1)] {
            assert!(!rounds.proceed(Time(0), at(90)));
            assert!(!rounds.proceed(Time(0), OVER) && rounds.is_over());
        }
        let mut off = StageRounds::new(AveragingSchedule { interval: 0, fragments: 0 });
        (1..=2).for_each(|key| off.enter(member(key)));
        assert!(!off.proceed(Time(0), at(90)));
        assert!(!off.proceed(Time(0), OVER) && off.is_over());
    }
}
