//! The book of leases: the ids of each feeder.

use crate::lease::{HeldLease, LEASE_COUNT_MAX, Lease, LeaseRefusal, SUCCESSIONS_MAX, Succession};
use crate::{Instance, Membership, MicrobatchId, PeerId};

/// Entries of the book at most. Ranges that touch and belong to one start of a feeder are one entry.
pub const LEASES_MAX: usize = 65_536;

/// Leases ids in ascending order, none twice.
#[derive(Clone, Debug, Default)]
pub struct LeaseBook {
    next: u64,
    held: Vec<HeldLease>,
}

impl LeaseBook {
    /// Leases the next `count` ids, at most [`LEASE_COUNT_MAX`].
    ///
    /// # Errors
    /// If `count` is 0, or ids or the book are exhausted.
    pub fn grant(&mut self, holder: Instance, count: u64) -> Result<Lease, LeaseRefusal> {
        let left = MicrobatchId::EVALUATION_BIT.saturating_sub(self.next);
        let count =
            if count == 0 { return Err(LeaseRefusal::Empty) } else { count.min(LEASE_COUNT_MAX).min(left) };
        if count == 0 || self.held.len() >= LEASES_MAX {
            return Err(LeaseRefusal::Exhausted);
        }
        let lease = Lease { first: MicrobatchId(self.next), count, epoch: 0 };
        self.next += count;
        self.note(HeldLease { lease, holder, done: false });
        Ok(lease)
    }

    /// Gives every range whose holder is `gone` to a successor, one epoch up. Returns whether there was such a range.
    pub fn succeed(&mut self, to: Instance, gone: impl Fn(PeerId) -> bool) -> bool {
        let orphans = self.held.iter_mut().filter(|held| !held.done && gone(held.holder.peer));
        let mut any = false;
        for orphan in orphans {
            orphan.holder = to;
            orphan.lease.epoch += 1;
            any = true;
        }
        any
    }

    /// Marks the ranges of `holder` as done: every microbatch that it injected has its outcome.
    pub fn finish(&mut self, holder: PeerId) {
        self.held.iter_mut().filter(|held| held.holder.peer == holder).for_each(|held| held.done = true);
    }

    /// The ranges that a successor holds and that are not done, the latest [`SUCCESSIONS_MAX`].
    #[must_use]
    pub fn successions(&self) -> Vec<Succession> {
        let succeeded = |held: &&HeldLease| held.lease.epoch > 0 && !held.done;
        let last = self.held.iter().rev().filter(succeeded).take(SUCCESSIONS_MAX);
        let mut successions: Vec<_> =
            last.map(|held| Succession { lease: held.lease, feeder: held.holder.peer }).collect();
        successions.reverse();
        successions
    }

    /// Takes over the ranges that a table names.
    pub fn restore(&mut self, table: &Membership) {
        for &Succession { lease, feeder } in &table.successions {
            let known = |held: &HeldLease| held.lease.first == lease.first;
            if let Some(member) = table.members.iter().find(|member| member.instance.peer == feeder)
                && !self.held.iter().any(known)
            {
                self.held.push(HeldLease { lease, holder: member.instance, done: false });
            }
            self.next = self.next.max(lease.ids().end);
        }
        self.held.sort_by_key(|held| held.lease.first);
    }

    /// The entries of the book, by first id.
    #[must_use]
    pub fn held(&self) -> &[HeldLease] {
        &self.held
    }

    /// The first id never leased.
    #[must_use]
    pub fn next(&self) -> MicrobatchId {
        MicrobatchId(self.next)
    }

    fn note(&mut self, new: HeldLease) {
        match self.held.last_mut() {
            Some(last) if last.continues(&new) => last.lease.count += new.lease.count,
            Some(_) | None => self.held.push(new),
        }
    }
}

impl HeldLease {
    /// Whether `next`, which follows this range, belongs to the same start of the same feeder in the same epoch.
    fn continues(&self, next: &Self) -> bool {
        let holder = |held: &Self| (held.holder, held.lease.epoch, held.done);
        holder(self) == holder(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Incarnation;

    fn feeder(key: u8) -> Instance {
        Instance::new(PeerId([key; 32]), Incarnation(1))
    }

    #[test]
    fn ranges_follow_each_other_and_merge() {
        let mut book = LeaseBook::default();
        let (a, b) = (feeder(1), feeder(2));
        let first = book.grant(a, 10).unwrap();
        assert_eq!(book.grant(a, 5).unwrap().first, MicrobatchId(10));
        assert_eq!(book.grant(b, u64::MAX).unwrap().count, LEASE_COUNT_MAX);
        assert_eq!(first.first, MicrobatchId(0));
        assert_eq!(book.held().len(), 2);
        assert_eq!(book.held()[0].lease.count, 15);
        assert_eq!(book.grant(a, 0), Err(LeaseRefusal::Empty));
    }

    #[test]
    fn a_successor_gets_the_ranges_of_the_dead_but_not_those_that_are_done() {
        let mut book = LeaseBook::default();
        let [dead, alive, done, successor] = [1, 2, 3, 4].map(feeder);
        for holder in [dead, alive, done] {
            book.grant(holder, 10).unwrap();
        }
        book.finish(done.peer);
        assert!(book.succeed(successor, |peer| peer != alive.peer));
        assert!(!book.succeed(successor, |peer| peer != alive.peer && peer != successor.peer));
        let lease = Lease { first: MicrobatchId(0), count: 10, epoch: 1 };
        assert_eq!(book.successions(), [Succession { lease, feeder: successor.peer }]);
        assert_eq!(book.grant(successor, 5).unwrap().epoch, 0);
        assert!(book.succeed(dead, |peer| peer == successor.peer), "a successor can die too");
        assert_eq!(book.successions().iter().map(|one| one.lease.epoch).collect::<Vec<_>>(), [2, 1]);
        book.finish(dead.peer);
        assert_eq!(book.successions(), []);
    }

    #[test]
    fn never_reaches_the_ids_of_evaluations() {
        let mut book = LeaseBook { next: MicrobatchId::EVALUATION_BIT - 3, held: Vec::new() };
        let peer = feeder(1);
        assert_eq!(book.grant(peer, 10).unwrap().count, 3);
        assert_eq!(book.grant(peer, 10), Err(LeaseRefusal::Exhausted));
    }
}
