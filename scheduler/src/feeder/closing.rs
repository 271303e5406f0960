//! The last averaging rounds: when nobody learns any more, each index set goes round once, and replicas of a stage end
//! equal.

use std::collections::BTreeSet;

use crate::averaging::Participant;
use crate::{Duration, Time};

/// How long a replica is waited for that has not ended a round. It gives up on silent members sooner, and a table
/// without it follows; this is for those who missed the round.
pub const CLOSING_PATIENCE: Duration = Duration::from_secs(15);

/// Rounds one after the other: the next begins when everybody has ended the one before, for whoever is behind by two
/// leaves one out.
#[derive(Clone, Debug)]
pub(super) struct Closing {
    rounds: u64,
    opened: u64,
    opened_at: Time,
    /// Who has ended the round opened last. Only members are ever in here.
    ended: BTreeSet<Participant>,
    over: bool,
}

impl Closing {
    pub(super) fn new(rounds: u64) -> Self {
        Self { rounds, opened: 0, opened_at: Time::default(), ended: BTreeSet::new(), over: false }
    }

    /// Rounds opened so far.
    pub(super) fn opened(&self) -> u64 {
        self.opened
    }

    pub(super) fn is_over(&self) -> bool {
        self.over
    }

    /// When to go on without those who have not ended the round.
    pub(super) fn deadline(&self) -> Option<Time> {
        (self.opened > 0 && !self.over).then(|| self.opened_at + CLOSING_PATIENCE)
    }

    pub(super) fn ended(&mut self, member: Participant) {
        self.ended.insert(member);
    }

    /// Opens the next round if the one before has ended at all of `members`; whether there is a new one.
    pub(super) fn proceed(&mut self, now: Time, members: &[Participant]) -> bool {
        let ended = members.iter().all(|member| self.ended.contains(member));
        let waits = self.deadline().is_some_and(|deadline| now < deadline);
        if self.over || (waits && !ended) {
            return false;
        }
        self.over = members.is_empty() || self.opened >= self.rounds;
        if !self.over {
            self.opened += 1;
            self.opened_at = now;
            self.ended.clear();
        }
        !self.over
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    fn member(key: u8) -> Participant {
        Participant { peer: PeerId([key; 32]), incarnation: Incarnation(1) }
    }

    #[test]
    fn each_round_waits_for_all_and_nobody_for_ever() {
        let (members, mut closing) = ([member(1), member(2)], Closing::new(2));
        assert!(closing.proceed(Time(0), &members));
        closing.ended(member(1));
        assert!(!closing.proceed(Time(1), &members));
        closing.ended(member(2));
        assert!(closing.proceed(Time(2), &members) && !closing.is_over());
        assert!(!closing.proceed(Time(2) + CLOSING_PATIENCE / 2, &members));
        assert!(!closing.proceed(Time(2) + CLOSING_PATIENCE, &members) && closing.is_over());
        assert_eq!((closing.opened(), closing.deadline()), (2, None));
    }

    #[test]
    fn with_nobody_to_average_it_is_over_at_once() {
        let mut closing = Closing::new(20);
        assert!(!closing.proceed(Time(0), &[]) && closing.is_over());
        let mut none = Closing::new(0);
        assert!(!none.proceed(Time(0), &[member(1), member(2)]) && none.is_over());
    }
}
