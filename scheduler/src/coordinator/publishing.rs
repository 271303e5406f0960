//! When the table is published: the first change after a quiet time at once, so that a death is known soon, and the
//! changes after it together. So ten thousand members that come and go make no more tables than ten.

use std::collections::VecDeque;

use super::Reply;
use crate::{Duration, Instance, Time};

/// The time of the next table, and the replies that wait for it.
#[derive(Clone, Debug, Default)]
pub(super) struct Publishing {
    /// A table made now says other things than the one published last.
    changed: bool,
    /// It names other ranges of ids.
    leases_changed: bool,
    /// No table is published before.
    not_before: Time,
    /// Replies that tell of a change, oldest first: each waits for the table that shows it.
    waiting: VecDeque<(Instance, Reply)>,
}

impl Publishing {
    /// The table published last is out of date.
    pub(super) fn change(&mut self) {
        self.changed = true;
    }

    /// The table published last names other ranges of ids than are leased.
    pub(super) fn change_leases(&mut self) {
        (self.changed, self.leases_changed) = (true, true);
    }

    /// Takes the turn to publish a table, if there is a change and its time has come. The next one comes `interval`
    /// later at the earliest.
    pub(super) fn take_turn(&mut self, now: Time, interval: Duration) -> bool {
        let turn = self.changed && self.not_before <= now;
        if turn {
            (self.changed, self.leases_changed) = (false, false);
            self.not_before = now + interval;
        }
        turn
    }

    /// Keeps a reply until the next table, if it may tell of a change that no table shows yet; else gives it back. More ids
    /// of a block that the table names are no change.
    pub(super) fn wait(&mut self, to: Instance, reply: Reply) -> Option<Reply> {
        let waits = match reply {
            Reply::Joined(_) => self.changed,
            Reply::Leased { .. } => self.leases_changed,
            _ => false,
        };
        if waits {
            self.waiting.push_back((to, reply));
            return None;
        }
        Some(reply)
    }

    /// Takes the replies that waited for the table just published.
    pub(super) fn take_waiting(&mut self) -> VecDeque<(Instance, Reply)> {
        std::mem::take(&mut self.waiting)
    }

    /// The time of the next table; `None` without a change.
    pub(super) fn next(&self) -> Option<Time> {
        self.changed.then_some(self.not_before)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::a;
    use crate::{Lease, MemberState, MicrobatchId, RunTally, StageIndex};

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_lease_waits_for_a_table_that_names_its_range_and_for_no_other() {
        let mut publishing = Publishing::default();
        let lease = Lease { first: MicrobatchId(0), count: 5, epoch: 0 };
        let leased = Reply::Leased { lease, others: RunTally::default() };
        publishing.change();
        assert_eq!(publishing.wait(a(0).instance, leased.clone()), Some(leased.clone()));
        publishing.change_leases();
        assert_eq!(publishing.wait(a(0).instance, leased.clone()), None);
        assert!(publishing.take_turn(Time(0), SECOND));
        publishing.change();
        assert_eq!(publishing.wait(a(0).instance, leased.clone()), Some(leased));
    }

    #[test]
    fn the_first_change_is_published_at_once_and_the_next_ones_together() {
        let mut publishing = Publishing::default();
        let (now, joined) = (Time(7), Reply::Joined(MemberState::Loading(StageIndex(0))));
        assert!(!publishing.take_turn(now, SECOND), "nothing has changed");
        publishing.change();
        assert!(publishing.take_turn(now, SECOND));
        assert_eq!(publishing.wait(a(0).instance, joined.clone()), Some(joined.clone()));
        for _ in 0..5 {
            publishing.change();
            assert!(!publishing.take_turn(now, SECOND));
        }
        assert_eq!(publishing.wait(a(0).instance, joined.clone()), None);
        assert_eq!(publishing.wait(a(0).instance, Reply::Left), Some(Reply::Left));
        assert_eq!(publishing.next(), Some(now + SECOND));
        assert!(publishing.take_turn(now + SECOND, SECOND));
        assert_eq!(publishing.take_waiting(), [(a(0).instance, joined)]);
        assert_eq!(publishing.next(), None);
    }
}
