//! Leases: ranges of microbatch ids, each given to one feeder.

use std::ops::Range;

use crate::{Instance, MicrobatchId, PeerId};

/// Ids of one lease at most; larger requests get this many.
pub const LEASE_COUNT_MAX: u64 = 1 << 20;

/// A range of microbatch ids a feeder may inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The first id.
    pub first: MicrobatchId,
    /// Number of consecutive ids.
    pub count: u64,
    /// Holders the range had before this one: 0 for the first, one more for each successor.
    pub epoch: u64,
}

/// Successions a membership table names at most.
pub const SUCCESSIONS_MAX: usize = 64;

/// A range whose feeder has gone, and the feeder that decides about its ids now. It is part of the table the coordinator
/// signs: only a successor ends a lease, no clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The range; its epoch tells an earlier successor from a later one.
    pub lease: Lease,
    /// The successor.
    pub feeder: PeerId,
}

/// A lease and its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// The range.
    pub lease: Lease,
    /// The feeder.
    pub holder: Instance,
    /// Every microbatch injected from it has its outcome: there is nothing to take over.
    pub done: bool,
}

/// Why no lease was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// The caller is no feeder of this run, or another start of one. Join first.
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
    /// The ids as numbers.
    #[must_use]
    pub fn ids(&self) -> Range<u64> {
        self.first.0..self.first.0.saturating_add(self.count)
    }

    /// Whether the id is from this range.
    #[must_use]
    pub fn contains(&self, microbatch: MicrobatchId) -> bool {
        self.ids().contains(&microbatch.0)
    }
}
