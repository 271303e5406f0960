//! The clock of averaging rounds: the feeder decides when each round begins.
//!
//! Replicas average only if they are in the same round at the same time. A round is not called before the current round
//! has ended at every member, however many microbatches finish meanwhile: a replica that is called in the middle of a
//! round would find no other member, and leave fragments out.
//!
//! A replica that died is a member until its lease ends. Once more than half of each stage have ended a round, the
//! feeder waits for the others only [`ROUND_GRACE`] longer. That breaks nothing: a replica left behind finds no other
//! member in its round, ends it, and takes part in the current round. A live replica that is always slower than the
//! rest would always be left behind. A replica that reports after the next round was called without it therefore counts
//! as slow, and the feeder waits for it in full from then on.
//!
//! When every microbatch has its outcome and weights no longer change, each fragment is averaged once more, and
//! replicas of a stage end equal: in these rounds, and in the round before them, the feeder waits for every member in
//! full. Where a mean went on without a member, or a member joined late, each fragment has a second turn.

use std::collections::{BTreeMap, BTreeSet};

use crate::averaging::Round;
use crate::{Duration, Instance, Time};

use super::AveragingSchedule;

/// How long the feeder waits for a replica that has not ended a round. Members give up on silent members far sooner;
/// this limit is for replicas that stay in the table and do not answer at all.
pub const ROUND_TIMEOUT: Duration = Duration::from_secs(60);

/// How long the feeder waits for the others when more than half of each stage have ended a round.
pub const ROUND_GRACE: Duration = Duration::from_secs(3);

/// Times that each fragment is averaged at most when every microbatch has its outcome.
const CLOSING_TURNS: u64 = 2;

/// The clock of averaging rounds.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    schedule: AveragingSchedule,
    /// The current round; 0 before the first.
    round: u64,
    /// Rounds that began after every microbatch had its outcome.
    closing: u64,
    /// Microbatches finished when the current round was called.
    finished: u64,
    /// The time until which the feeder waits for members that have not ended the current round.
    open_until: Option<Time>,
    /// The same when more than half of each stage have ended it; the earlier time counts.
    grace_until: Option<Time>,
    /// The last round that each member has ended. Contains members only.
    ended: BTreeMap<Instance, u64>,
    /// The round since which every fragment was averaged with each member. Contains members only.
    carried: BTreeMap<Instance, u64>,
    /// The first of the last rounds.
    first_closing: u64,
    /// Members that had not ended the round before the current one and have not reported since.
    behind: BTreeSet<Instance>,
    /// Members that were behind and reported later.
    slow: BTreeSet<Instance>,
    over: bool,
    /// A member has reported since the last look at all members.
    news: bool,
}

/// The progress of training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Training {
    /// Microbatches finished.
    pub(super) finished: u64,
    /// Every microbatch has its outcome.
    pub(super) over: bool,
}

impl Rounds {
    /// A clock at round 0; without a `schedule` it calls no round.
    pub(super) fn new(schedule: Option<AveragingSchedule>) -> Self {
        Self {
            schedule: schedule.unwrap_or(AveragingSchedule { interval: 0, fragments: 0 }),
            round: 0,
            closing: 0,
            finished: 0,
            open_until: None,
            grace_until: None,
            ended: BTreeMap::new(),
            carried: BTreeMap::new(),
            first_closing: 0,
            behind: BTreeSet::new(),
            slow: BTreeSet::new(),
            over: false,
            news: true,
        }
    }

    /// The current round.
    pub(super) fn current(&self) -> Round {
        Round(self.round)
    }

    /// A former start of the feeder called a round.
    pub(super) fn remember(&mut self) {
        self.round += 1;
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
        let open_until = self.open_until?;
        Some(self.grace_until.filter(|&until| now < until).map_or(open_until, |until| until.min(open_until)))
    }

    /// A member has ended this round and all before it; `carried`: every fragment was averaged with its contribution
    /// since then.
    pub(super) fn ended(&mut self, member: Instance, round: Round, carried: Option<Round>) {
        self.news = true;
        self.ended.insert(member, round.0);
        if let Some(carried) = carried {
            self.carried.insert(member, carried.0);
        }
        if self.behind.remove(&member) {
            self.slow.insert(member);
        }
    }

    /// Whether `proceed` may find more than at its last call, while the members are the same: it looks at all of them,
    /// and events are frequent.
    pub(super) fn may_proceed(&mut self, now: Time, training: Training) -> bool {
        let expired = |until: Option<Time>| until.is_some_and(|until| until <= now);
        let waits = self.open_until.is_some() && !expired(self.open_until) && !expired(self.grace_until);
        let due = !waits && self.is_due(training.finished);
        std::mem::take(&mut self.news) || expired(self.open_until) || due || training.over
    }

    /// Calls the next round, if it is due and the feeder waits for no member any more. Returns whether a round was
    /// called.
    pub(super) fn proceed(&mut self, now: Time, training: Training, stages: &[Vec<Instance>]) -> bool {
        let members: BTreeSet<Instance> = stages.iter().flatten().copied().collect();
        self.ended.retain(|member, _| members.contains(member));
        self.carried.retain(|member, _| members.contains(member));
        self.behind.retain(|member| members.contains(member));
        self.slow.retain(|member| members.contains(member));
        let ended = members.iter().map(|member| self.ended_by(member)).min();
        let all = ended.is_none_or(|ended| ended >= self.round);
        self.open_until = self.open_until.filter(|&until| now < until && !all);
        let hurries = self.open_until.is_some() && !training.over && self.most_have_ended(stages);
        self.grace_until = self.grace_until.or(Some(now + ROUND_GRACE)).filter(|_| hurries);
        let waits = self.open_until.is_some() && self.grace_until.is_none_or(|until| now < until);
        if self.over || waits {
            return false;
        }
        if training.over {
            self.over = members.is_empty() || self.is_closed(&members);
            self.closing += u64::from(!self.over);
        }
        let due = !training.over && self.is_due(training.finished) && !members.is_empty();
        let calls = due || (training.over && !self.over);
        if calls {
            self.behind = members.into_iter().filter(|member| self.ended_by(member) < self.round).collect();
            // All members may have ended more rounds than this start of the feeder knows.
            self.round = self.round.max(ended.unwrap_or(0)).saturating_add(1);
            if self.closing == 1 {
                self.first_closing = self.round;
            }
            self.finished = training.finished;
            self.open_until = Some(now + ROUND_TIMEOUT);
            self.grace_until = None;
        }
        calls
    }

    /// Whether the last rounds have carried every member, or each fragment has had two turns.
    fn is_closed(&self, members: &BTreeSet<Instance>) -> bool {
        let fragments = self.schedule.fragments;
        let carried = |member| self.carried.get(member).is_some_and(|&round| round >= self.first_closing);
        let all = self.closing >= fragments && members.iter().all(carried);
        all || self.closing >= fragments.saturating_mul(CLOSING_TURNS)
    }

    /// Whether more than half of each stage, and every member that is known to be slow, have ended the current round.
    fn most_have_ended(&self, stages: &[Vec<Instance>]) -> bool {
        let ends = |member: &&Instance| self.ended_by(member) >= self.round;
        self.slow.iter().all(|member| ends(&member))
            && stages.iter().all(|members| members.iter().filter(ends).count() > members.len() / 2)
    }

    fn ended_by(&self, member: &Instance) -> u64 {
        self.ended.get(member).copied().unwrap_or(0)
    }

    fn is_due(&self, finished: u64) -> bool {
        self.schedule.interval > 0 && finished.saturating_sub(self.finished) >= self.schedule.interval
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    fn member(key: u8) -> Instance {
        Instance::new(PeerId([key; 32]), Incarnation(1))
    }

    /// A run of one stage, with these members.
    fn stage(keys: std::ops::RangeInclusive<u8>) -> Vec<Vec<Instance>> {
        vec![keys.map(member).collect()]
    }

    fn rounds() -> Rounds {
        Rounds::new(Some(AveragingSchedule { interval: 10, fragments: 2 }))
    }

    fn at(finished: u64) -> Training {
        Training { finished, over: false }
    }

    #[test]
    fn the_next_round_waits_for_microbatches_and_for_the_last_to_end_this_one() {
        let (members, mut rounds) = (stage(1..=2), rounds());
        assert!(!rounds.proceed(Time(0), at(9), &members));
        assert!(rounds.proceed(Time(0), at(10), &members));
        rounds.ended(member(1), Round(1), Some(Round(1)));
        assert!(!rounds.proceed(Time(1), at(99), &members));
        rounds.ended(member(2), Round(1), Some(Round(1)));
        assert!(rounds.proceed(Time(2), at(99), &members));
        assert_eq!(rounds.current(), Round(2));
        rounds.ended(member(1), Round(2), Some(Round(2)));
        assert!(rounds.proceed(Time(3), at(109), &stage(1..=1)), "the other one has left");
    }

    #[test]
    fn no_member_is_waited_for_for_ever() {
        let (members, mut rounds) = (stage(1..=2), rounds());
        assert!(rounds.proceed(Time(0), at(10), &members));
        assert_eq!(rounds.deadline(Time(0)), Some(Time(0) + ROUND_TIMEOUT));
        assert!(!rounds.proceed(Time(0) + ROUND_TIMEOUT / 2, at(20), &members));
        assert!(!rounds.proceed(Time(0) + ROUND_TIMEOUT, at(19), &members));
        assert_eq!(rounds.deadline(Time(0) + ROUND_TIMEOUT), None);
        assert!(rounds.proceed(Time(1) + ROUND_TIMEOUT, at(20), &members));
    }

    /// Round 1 is called at 0; these members end it at 1.
    fn under_way(stages: &[Vec<Instance>], ended: std::ops::RangeInclusive<u8>) -> Rounds {
        let mut rounds = rounds();
        assert!(rounds.proceed(Time(0), at(10), stages));
        ended.for_each(|key| rounds.ended(member(key), Round(1), Some(Round(1))));
        assert!(!rounds.proceed(Time(1), at(99), stages));
        rounds
    }

    #[test]
    fn when_most_of_each_stage_have_ended_the_others_have_a_grace() {
        let members = stage(1..=4);
        let (grace, almost) = (Time(1) + ROUND_GRACE, Time(0) + ROUND_GRACE);
        let mut rounds = under_way(&members, 1..=3);
        assert_eq!(rounds.deadline(Time(1)), Some(grace));
        assert!(!rounds.proceed(almost, at(99), &members));
        assert!(!rounds.proceed(grace, at(19), &members), "not due");
        assert_eq!(rounds.deadline(grace), Some(Time(0) + ROUND_TIMEOUT), "nothing happens before");
        assert!(rounds.proceed(grace, at(20), &members));
        assert_eq!(rounds.deadline(grace), Some(grace + ROUND_TIMEOUT));

        let mut half = under_way(&members, 1..=2);
        assert_eq!(half.deadline(Time(1)), Some(Time(0) + ROUND_TIMEOUT));
        assert!(!half.proceed(grace, at(99), &members));

        let two = [stage(1..=3).concat(), stage(4..=5).concat()];
        let mut other_stage = under_way(&two, 1..=4);
        assert_eq!(other_stage.deadline(Time(1)), Some(Time(0) + ROUND_TIMEOUT), "one of two is not most");
        other_stage.ended(member(5), Round(1), Some(Round(1)));
        assert!(other_stage.proceed(Time(2), at(99), &two));
    }

    #[test]
    fn a_member_that_was_left_behind_and_lives_is_waited_for_in_full_from_then_on() {
        let members = stage(1..=3);
        let mut rounds = under_way(&members, 1..=2);
        let second = Time(1) + ROUND_GRACE;
        assert!(rounds.proceed(second, at(20), &members));
        (1..=2).for_each(|key| rounds.ended(member(key), Round(2), Some(Round(2))));
        rounds.ended(member(3), Round(1), Some(Round(1)));
        assert!(!rounds.proceed(second + ROUND_GRACE, at(99), &members));
        assert!(!rounds.proceed(second + ROUND_GRACE * 2, at(99), &members));
        assert_eq!(rounds.deadline(second), Some(second + ROUND_TIMEOUT));
        rounds.ended(member(3), Round(2), Some(Round(2)));
        let third = second + ROUND_GRACE * 3;
        assert!(rounds.proceed(third, at(99), &members));
        (1..=2).for_each(|key| rounds.ended(member(key), Round(3), Some(Round(3))));
        assert!(!rounds.proceed(third, at(199), &members));
        assert_eq!(rounds.deadline(third), Some(third + ROUND_TIMEOUT));
        assert!(rounds.proceed(third, at(199), &stage(1..=2)), "until it leaves");
    }

    #[test]
    fn the_dead_cost_a_grace_each_round() {
        let members = stage(1..=3);
        let mut rounds = under_way(&members, 1..=2);
        let mut now = Time(1);
        for round in 2..9 {
            assert!(rounds.proceed(now + ROUND_GRACE, at(round * 10), &members));
            now = now + ROUND_GRACE;
            (1..=2).for_each(|key| rounds.ended(member(key), Round(round), Some(Round(round))));
            assert!(!rounds.proceed(now, at(999), &members));
        }
    }

    #[test]
    fn no_member_is_left_behind_at_the_end() {
        let members = stage(1..=3);
        let over = Training { finished: 99, over: true };
        let mut rounds = under_way(&members, 1..=2);
        let late = Time(0) + ROUND_TIMEOUT / 2;
        assert!(!rounds.proceed(late, at(19), &members), "its grace is over, the next round not due");
        for round in 1..=3 {
            assert!(!rounds.proceed(late, over, &members));
            assert!(rounds.deadline(late) > Some(late));
            (1..=3).for_each(|key| rounds.ended(member(key), Round(round), Some(Round(round))));
            assert_eq!(rounds.proceed(late, over, &members), round < 3);
            (1..=2).for_each(|key| rounds.ended(member(key), Round(round + 1), Some(Round(round + 1))));
        }
        assert!(rounds.is_over());
    }

    #[test]
    fn at_the_end_each_fragment_is_averaged_once_more() {
        let (members, mut rounds) = (stage(1..=1), rounds());
        let over = Training { finished: 15, over: true };
        for round in 1..=2 {
            assert!(rounds.proceed(Time(round), over, &members) && rounds.closes());
            assert!(!rounds.proceed(Time(round), over, &members) && !rounds.is_over());
            rounds.ended(member(1), Round(round), Some(Round(round)));
        }
        assert!(!rounds.proceed(Time(3), over, &members) && rounds.is_over());
        assert!(!rounds.proceed(Time(4), over, &members));
    }

    #[test]
    fn a_member_that_the_last_rounds_have_not_carried_has_a_second_turn_and_no_third() {
        let (members, mut rounds) = (stage(1..=2), rounds());
        let over = Training { finished: 15, over: true };
        for round in 1..=4 {
            assert!(rounds.proceed(Time(round), over, &members), "round {round}");
            rounds.ended(member(1), Round(round), Some(Round(round)));
            rounds.ended(member(2), Round(round), None);
        }
        assert!(!rounds.proceed(Time(5), over, &members) && rounds.is_over());
    }

    #[test]
    fn a_restarted_feeder_goes_on_after_the_rounds_that_all_members_have_ended() {
        let (members, mut rounds) = (stage(1..=2), rounds());
        assert!(rounds.proceed(Time(0), at(10), &members));
        rounds.ended(member(1), Round(u64::MAX), Some(Round(u64::MAX)));
        rounds.ended(member(2), Round(40), Some(Round(40)));
        assert!(rounds.proceed(Time(1), at(20), &members));
        assert_eq!(rounds.current(), Round(41));
    }

    #[test]
    fn without_members_it_is_over_at_once() {
        let over = Training { finished: 100, over: true };
        let mut alone = rounds();
        assert!(!alone.proceed(Time(0), at(90), &[]));
        assert!(!alone.proceed(Time(0), over, &[]) && alone.is_over());
        let mut off = Rounds::new(None);
        assert!(!off.proceed(Time(0), at(90), &stage(1..=1)));
        assert!(!off.proceed(Time(0), over, &stage(1..=1)) && off.is_over());
    }
}
