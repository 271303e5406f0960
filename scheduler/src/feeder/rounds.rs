//! When the averaging rounds of the run begin.
//!
//! Replicas average only if they are in the same round at the same time, and a round takes as long as it takes. So the
//! next one is not called before everybody has ended the one at hand, however many microbatches finish meanwhile: who
//! is called on in the middle of a round would meet nobody, and leave sets out. When everything has its outcome and
//! nobody learns any more, each index set goes round once, and replicas of a stage end equal.

use std::collections::BTreeMap;

use crate::averaging::{Participant, Round};
use crate::{Duration, Time};

use super::Carrying;

/// How long a replica is waited for that has not ended a round. Those who take part give up on silent members far
/// sooner; this is for those who do not answer at all, and stay in the table.
pub const ROUND_PATIENCE: Duration = Duration::from_secs(60);

/// The clock of averaging rounds.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    carrying: Carrying,
    /// The round at hand; 0 before the first.
    round: u64,
    /// Rounds called by this start of the feeder; a former one may have called others.
    called: u64,
    /// Those of them that were called when everything had its outcome.
    closing: u64,
    /// Microbatches finished when the round at hand was called.
    finished: u64,
    /// Until then those who have not ended it are waited for.
    open_until: Option<Time>,
    /// Up to which round each member has ended. Only members are ever in here.
    ended: BTreeMap<Participant, u64>,
    over: bool,
}

/// How far training is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Training {
    /// Microbatches finished.
    pub(super) finished: u64,
    /// Everything has its outcome.
    pub(super) over: bool,
}

impl Rounds {
    /// Without `carrying` there are none.
    pub(super) fn new(carrying: Option<Carrying>) -> Self {
        Self {
            carrying: carrying.unwrap_or(Carrying { every: 0, sets: 0 }),
            round: 0,
            called: 0,
            closing: 0,
            finished: 0,
            open_until: None,
            ended: BTreeMap::new(),
            over: false,
        }
    }

    /// The round at hand.
    pub(super) fn now(&self) -> Round {
        Round(self.round)
    }

    /// Rounds called so far.
    pub(super) fn called(&self) -> u64 {
        self.called
    }

    /// Whether the round at hand is one of the last.
    pub(super) fn closes(&self) -> bool {
        self.closing > 0
    }

    /// Whether the last round has ended.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// When to go on without those who have not ended the round at hand.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.open_until
    }

    /// A member has ended this round and all before it.
    pub(super) fn ended(&mut self, member: Participant, round: Round) {
        self.ended.insert(member, round.0);
    }

    /// Calls the next round, if it is time and `members` have ended the one at hand; whether it was called.
    pub(super) fn proceed(&mut self, now: Time, training: Training, members: &[Participant]) -> bool {
        self.ended.retain(|member, _| members.contains(member));
        let ended = members.iter().map(|member| self.ended.get(member).copied().unwrap_or(0)).min();
        let all = ended.is_none_or(|ended| ended >= self.round);
        self.open_until = self.open_until.filter(|&until| now < until && !all);
        if self.over || self.open_until.is_some() {
            return false;
        }
        if training.over {
            self.over = members.is_empty() || self.closing >= self.carrying.sets;
            self.closing += u64::from(!self.over);
        }
        let due = !training.over && self.is_due(training.finished) && !members.is_empty();
        let calls = due || (training.over && !self.over);
        if calls {
            self.called += 1;
            // All members may have ended more rounds than this start of the feeder has called.
            self.round = self.round.max(ended.unwrap_or(0)).saturating_add(1);
            self.finished = training.finished;
            self.open_until = Some(now + ROUND_PATIENCE);
        }
        calls
    }

    fn is_due(&self, finished: u64) -> bool {
        self.carrying.every > 0 && finished.saturating_sub(self.finished) >= self.carrying.every
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    fn member(key: u8) -> Participant {
        Participant { peer: PeerId([key; 32]), incarnation: Incarnation(1) }
    }

    fn rounds() -> Rounds {
        Rounds::new(Some(Carrying { every: 10, sets: 2 }))
    }

    fn at(finished: u64) -> Training {
        Training { finished, over: false }
    }

    #[test]
    fn the_next_round_waits_for_microbatches_and_for_the_last_to_end_this_one() {
        let (members, mut rounds) = ([member(1), member(2)], rounds());
        assert!(!rounds.proceed(Time(0), at(9), &members));
        assert!(rounds.proceed(Time(0), at(10), &members));
        rounds.ended(member(1), Round(1));
        assert!(!rounds.proceed(Time(1), at(99), &members));
        rounds.ended(member(2), Round(1));
        assert!(rounds.proceed(Time(2), at(99), &members));
        assert_eq!(rounds.now(), Round(2));
        rounds.ended(member(1), Round(2));
        assert!(rounds.proceed(Time(3), at(109), &members[..1]), "the other one has left");
    }

    #[test]
    fn nobody_is_waited_for_for_ever() {
        let (members, mut rounds) = ([member(1), member(2)], rounds());
        assert!(rounds.proceed(Time(0), at(10), &members));
        assert_eq!(rounds.deadline(), Some(Time(0) + ROUND_PATIENCE));
        assert!(!rounds.proceed(Time(0) + ROUND_PATIENCE / 2, at(20), &members));
        assert!(!rounds.proceed(Time(0) + ROUND_PATIENCE, at(19), &members));
        assert_eq!(rounds.deadline(), None);
        assert!(rounds.proceed(Time(1) + ROUND_PATIENCE, at(20), &members));
    }

    #[test]
    fn at_the_end_each_set_goes_round_once_more() {
        let (members, mut rounds) = ([member(1)], rounds());
        let over = Training { finished: 15, over: true };
        for round in 1..=2 {
            assert!(rounds.proceed(Time(round), over, &members) && rounds.closes());
            assert!(!rounds.proceed(Time(round), over, &members) && !rounds.is_over());
            rounds.ended(member(1), Round(round));
        }
        assert!(!rounds.proceed(Time(3), over, &members) && rounds.is_over());
        assert!(!rounds.proceed(Time(4), over, &members));
    }

    #[test]
    fn a_feeder_started_again_goes_on_behind_what_all_have_ended() {
        let (members, mut rounds) = ([member(1), member(2)], rounds());
        assert!(rounds.proceed(Time(0), at(10), &members));
        rounds.ended(member(1), Round(u64::MAX));
        rounds.ended(member(2), Round(40));
        assert!(rounds.proceed(Time(1), at(20), &members));
        assert_eq!((rounds.now(), rounds.called()), (Round(41), 2));
    }

    #[test]
    fn with_nobody_to_average_it_is_over_at_once() {
        let over = Training { finished: 100, over: true };
        let mut alone = rounds();
        assert!(!alone.proceed(Time(0), at(90), &[]));
        assert!(!alone.proceed(Time(0), over, &[]) && alone.is_over());
        let mut off = Rounds::new(None);
        assert!(!off.proceed(Time(0), at(90), &[member(1)]));
        assert!(!off.proceed(Time(0), over, &[member(1)]) && off.is_over());
    }
}
