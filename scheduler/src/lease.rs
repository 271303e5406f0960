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

/// A lease and who holds it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// The range.
    pub lease: Lease,
    /// The feeder.
    pub holder: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
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
        self.note(HeldLease { lease, holder, incarnation });
        Ok(lease)
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
            Some(last) if (last.holder, last.incarnation) == (new.holder, new.incarnation) => {
                last.lease.count += new.lease.count;
            }
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
    fn never_reaches_the_ids_of_evaluations() {
        let mut book = LeaseBook { next: MicrobatchId::EVALUATION_BIT - 3, held: Vec::new() };
        let (peer, start) = (PeerId([1; 32]), Incarnation(1));
        assert_eq!(book.grant(peer, start, 10).unwrap().count, 3);
        assert_eq!(book.grant(peer, start, 10), Err(LeaseRefusal::Exhausted));
    }
}
