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
//!
//! Before the first of these rounds a replica steps with the contributions that wait for the rest of their step. So where
//! replicas accumulate, a stage that does not average has one such round too: the final evaluation and the final
//! checkpoint come after it.

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
    /// Replicas step once for several contributions.
    accumulates: bool,
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
    /// A clock at round 0; with an interval of 0 it calls no round before the last.
    pub(super) fn new(schedule: AveragingSchedule, accumulates: bool) -> Self {
        Self {
            schedule,
            accumulates,
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
        let calls = due && !self.over && (self.members.len() > 1 || training.over);
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

    /// Whether the replicas have stepped with what they had accumulated, and the last rounds have carried every member or
    /// each fragment has had one turn more.
    fn is_closed(&self) -> bool {
        let turns = self.turns();
        let rounds = |turns: u64| self.schedule.fragments.saturating_mul(turns);
        let carried = |member: &Member| member.carried.is_some_and(|round| round >= self.first_closing);
        let all = self.closing >= rounds(turns) && self.members.values().all(carried);
        let averages = self.members.len() > 1 && self.schedule.fragments > 0;
        let has_stepped = !self.accumulates || self.closing > 0 || self.members.is_empty();
        has_stepped && (!averages || all || self.closing >= rounds(turns + 1))
    }
}

#[cfg(test)]
mod tests;
