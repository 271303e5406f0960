//! Leases: ranges of microbatch ids, each given to one feeder.

use crate::{Incarnation, MicrobatchId, PeerId};

/// Ids of one lease at most; larger requests get this many.
pub const LEASE_COUNT_MAX: u64 = 1 << 20;

/// Leases the book holds at most. Ranges that touch and belong to one feeder are one entry.
pub const LEASES_MAX: usize = 65_536;

/// A range of microbatch ids a feeder may inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its first id.
    pub first: MicrobatchId,
    /// How many ids follow each other from `first` on.
    pub count: u64,
    /// Which holder in a row this is, from 0; a successor that adopts the range has one more.
    pub epoch: u64,
}

/// Successions a membership table names at most.
pub const SUCCESSIONS_MAX: usize = 64;

/// A range whose feeder is gone, and who decides about its ids now. It is part of the table the coordinator signs: only
/// a successor ends a lease, no clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The range; its epoch tells an earlier successor from a later one.
    pub lease: Lease,
    /// The successor.
    pub feeder: PeerId,
}

/// A lease and who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// The range.
    pub lease: Lease,
    /// The feeder.
    pub holder: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Everything injected from it has its outcome: there is nothing to take over.
    pub done: bool,
}

/// Why no lease was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// The one who asks is not a feeder of this run, or is another start of it. Join first.
    #[error("only a feeder that has joined gets a range of ids; join first")]
    NotAFeeder,
    /// The run is over.
    #[error("the run is finished")]
    Finished,
    /// No ids, or no room in the book, are left.
    #[error("the ids of this run are used up")]
    Exhausted,
    /// A lease of nothing.
    #[error("a lease of no ids was asked for")]
    Empty,
}

impl Lease {
    /// Whether the id is from this range.
    #[must_use]
    pub fn contains(&self, microbatch: MicrobatchId) -> bool {
        microbatch.0.checked_sub(self.first.0).is_some_and(|offset| offset < self.count)
    }
}

impl HeldLease {
    /// Whether `next` belongs to the same start, and was never anybody else's.
    fn continues(&self, next: &Self) -> bool {
        let holder = |held: &Self| (held.holder, held.incarnation, held.lease.epoch, held.done);
        holder(self) == holder(next)
    }
}

/// Gives out ids in ascending order, none twice.
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
    pub fn grant(
        &mut self,
        holder: PeerId,
        incarnation: Incarnation,
        count: u64,
    ) -> Result<Lease, LeaseRefusal> {
        let left = MicrobatchId::EVALUATION_BIT.saturating_sub(self.next);
        let count =
            if count == 0 { return Err(LeaseRefusal::Empty) } else { count.min(LEASE_COUNT_MAX).min(left) };
        if count == 0 || self.held.len() >= LEASES_MAX {
            return Err(LeaseRefusal::Exhausted);
        }
        let lease = Lease { first: MicrobatchId(self.next), count, epoch: 0 };
        self.next += count;
        self.note(HeldLease { lease, holder, incarnation, done: false });
        Ok(lease)
    }

    /// Hands every range whose holder is `gone` to a successor, one epoch up; whether there was one.
    pub fn succeed(&mut self, to: PeerId, incarnation: Incarnation, gone: impl Fn(PeerId) -> bool) -> bool {
        let orphans = self.held.iter_mut().filter(|held| !held.done && gone(held.holder));
        let mut any = false;
        for orphan in orphans {
            (orphan.holder, orphan.incarnation) = (to, incarnation);
            orphan.lease.epoch += 1;
            any = true;
        }
        any
    }

    /// `holder` has an outcome for everything it injected.
    pub fn finish(&mut self, holder: PeerId) {
        self.held.iter_mut().filter(|held| held.holder == holder).for_each(|held| held.done = true);
    }

    /// The ranges that have gone to a successor and are not done, the latest [`SUCCESSIONS_MAX`].
    #[must_use]
    pub fn successions(&self) -> Vec<Succession> {
        let succeeded = |held: &&HeldLease| held.lease.epoch > 0 && !held.done;
        let last = self.held.iter().rev().filter(succeeded).take(SUCCESSIONS_MAX);
        let mut successions: Vec<_> =
            last.map(|held| Succession { lease: held.lease, feeder: held.holder }).collect();
        successions.reverse();
        successions
    }

    /// Leases given, by first id; touching ranges of one holder are one.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_follow_each_other_and_merge() {
        let mut book = LeaseBook::default();
        let (a, b, start) = (PeerId([1; 32]), PeerId([2; 32]), Incarnation(1));
        let first = book.grant(a, start, 10).unwrap();
        assert_eq!(book.grant(a, start, 5).unwrap().first, MicrobatchId(10));
        assert_eq!(book.grant(b, start, u64::MAX).unwrap().count, LEASE_COUNT_MAX);
        assert_eq!(first.first, MicrobatchId(0));
        assert_eq!(book.held().len(), 2);
        assert_eq!(book.held()[0].lease.count, 15);
        assert_eq!(book.grant(a, start, 0), Err(LeaseRefusal::Empty));
    }

    #[test]
    fn what_the_dead_held_goes_to_a_successor_and_what_is_done_to_nobody() {
        let mut book = LeaseBook::default();
        let (dead, alive, done, heir) = (PeerId([1; 32]), PeerId([2; 32]), PeerId([3; 32]), PeerId([4; 32]));
        let start = Incarnation(1);
        for holder in [dead, alive, done] {
            book.grant(holder, start, 10).unwrap();
        }
        book.finish(done);
        assert!(book.succeed(heir, start, |peer| peer != alive));
        assert!(!book.succeed(heir, start, |peer| peer != alive && peer != heir));
        let lease = Lease { first: MicrobatchId(0), count: 10, epoch: 1 };
        assert_eq!(book.successions(), [Succession { lease, feeder: heir }]);
        assert_eq!(book.grant(heir, start, 5).unwrap().epoch, 0);
        assert!(book.succeed(dead, start, |peer| peer == heir), "a successor can die too");
        assert_eq!(book.successions().iter().map(|one| one.lease.epoch).collect::<Vec<_>>(), [2, 1]);
        book.finish(dead);
        assert_eq!(book.successions(), []);
    }

    #[test]
    fn never_reaches_the_ids_of_evaluations() {
        let mut book = LeaseBook { next: MicrobatchId::EVALUATION_BIT - 3, held: Vec::new() };
        let (peer, start) = (PeerId([1; 32]), Incarnation(1));
        assert_eq!(book.grant(peer, start, 10).unwrap().count, 3);
        assert_eq!(book.grant(peer, start, 10), Err(LeaseRefusal::Exhausted));
    }
}
