//! Leases: ranges of microbatch ids, each given to one feeder.

use std::ops::Range;

use crate::{Instance, MicrobatchId, PeerId};

/// Ids of one lease at most; larger requests get this many.
pub const LEASE_COUNT_MAX: u64 = 1 << 20;

/// A range of microbatch ids that a feeder may inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The first id.
    pub first: MicrobatchId,
    /// Number of consecutive ids.
    pub count: u64,
    /// Former holders of the range: 0 for the first holder, one more for each successor.
    pub epoch: u64,
}

/// Successions a membership table names at most.
pub const SUCCESSIONS_MAX: usize = 64;

/// A range whose feeder is gone, and the feeder that decides about its ids now. Part of the table that the coordinator
/// signs: only a successor ends a lease, no clock does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Succession {
    /// The range; its epoch tells successors of the same range apart.
    pub lease: Lease,
    /// The successor.
    pub feeder: PeerId,
}

/// A lease and its holder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeldLease {
    /// The range.
    pub lease: Lease,
    /// The feeder that holds the lease.
    pub holder: Instance,
    /// Every microbatch injected from the range has its outcome: there is nothing to take over.
    pub done: bool,
}

/// The reason why a feeder gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// The caller is no feeder of this run, or another start of a feeder. Join first.
    #[error("only a feeder that has joined gets a range of ids; join first")]
    NotAFeeder,
    /// The run is over.
    #[error("the run is finished")]
    Finished,
    /// No ids, or no entries of the lease book, are left.
    #[error("the ids of this run are used up")]
    Exhausted,
    /// The request was for 0 ids.
    #[error("a lease of no ids was asked for")]
    Empty,
}

impl Lease {
    /// The ids as numbers.
    #[must_use]
    pub fn ids(&self) -> Range<u64> {
        self.first.0..self.first.0.saturating_add(self.count)
    }

    /// Whether the id is in the range.
    #[must_use]
    pub fn contains(&self, microbatch: MicrobatchId) -> bool {
        self.ids().contains(&microbatch.0)
    }
}
