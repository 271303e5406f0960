//! Leases: ranges of microbatch ids, each given to one feeder, and the progress of a run that they add up to.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::{Block, MicrobatchId, PeerId};

/// Ids of one lease at most; larger requests get this many.
pub const LEASE_COUNT_MAX: u64 = 1 << 20;

/// Ranges of a run at most, and so of a membership table and of the tallies of one report: feeders that came without a
/// journal.
pub const LEASES_MAX: usize = 4_096;

/// Stands for the feeder of a block that no feeder has had since the run went on from a checkpoint: a key that no peer has.
pub(crate) const NO_FEEDER: PeerId = PeerId([u8::MAX; 32]);

/// A range of microbatch ids that a feeder may inject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// The first id.
    pub first: MicrobatchId,
    /// Number of consecutive ids; 0 if the coordinator has none to give now.
    pub count: u64,
    /// Former holders of the range: 0 for the first holder, one more for each successor.
    pub epoch: u64,
}

/// A range of ids, and the feeder that decides about them. Part of the table that the coordinator signs: only a
/// successor ends a lease, no clock does. Of the first holder the range is its whole block, without the ids that had their
/// outcome before the launch began, at a checkpoint; of a successor the ids that its predecessors were given. A closed
/// range has no ids: its feeder injects no more, and each microbatch that it
/// injected has its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeasedRange {
    /// The range; its epoch tells successors of the same range apart.
    pub lease: Lease,
    /// The feeder.
    pub feeder: PeerId,
    /// Its progress when the table was made: a coordinator that was started again goes on from there. Of an open range of
    /// a first holder, `leased` is what may be given out before the next table.
    pub tally: BlockTally,
}

/// The progress of one block, as its feeder reports it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockTally {
    /// The block.
    pub block: Block,
    /// Ids given out: the first so many of the block.
    pub leased: u64,
    /// Ids injected: the first so many of the block. No id is injected out of order.
    pub injected: u64,
    /// Ids injected that have their outcome.
    pub settled: u64,
}

/// The progress of a run, or of a part of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunTally {
    /// Microbatches injected.
    pub injected: u64,
    /// Microbatches that have their outcome.
    pub settled: u64,
}

/// The reason why a feeder gets no lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseRefusal {
    /// The caller is no feeder of this run, or another start of a feeder. Join first.
    #[error("only a feeder that has joined gets a range of ids; join first")]
    NotAFeeder,
    /// The run belongs to the peer that took ids first; the caller had joined before that.
    #[error(
        "this run belongs to its first feeder {first}; use that key with --identity, or ask the coordinator to list \
         yours as `feed` in the section [policy]"
    )]
    FedByAnother {
        /// The first feeder.
        first: PeerId,
    },
    /// The run is over.
    #[error("the run is finished")]
    Finished,
    /// No blocks are left: too many feeders came without a journal.
    #[error(
        "this run has had as many feeders as it can hold ({LEASES_MAX}); feed with the --journal of an earlier one"
    )]
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

impl LeasedRange {
    /// A range of which no id is given out.
    #[must_use]
    pub fn new(lease: Lease, feeder: PeerId) -> Self {
        Self { lease, feeder, tally: BlockTally::new(lease.first.block()) }
    }

    /// Whether the range has changed hands.
    #[must_use]
    pub fn is_taken_over(&self) -> bool {
        self.lease.epoch > 0
    }

    /// Whether the block is as a checkpoint left it: no feeder has had its ids since.
    #[must_use]
    pub fn is_vacant(&self) -> bool {
        self.feeder == NO_FEEDER
    }

    /// Whether microbatches of the range may be open or still be injected.
    #[must_use]
    pub fn is_open(&self) -> bool {
        self.lease.count > 0
    }
}

impl BlockTally {
    /// A block of which no id is given out.
    #[must_use]
    pub fn new(block: Block) -> Self {
        Self { block, leased: 0, injected: 0, settled: 0 }
    }

    /// A block whose first `count` ids have their outcome, and of which no other was given out.
    #[must_use]
    pub fn settled(block: Block, count: u64) -> Self {
        Self { block, leased: count, injected: count, settled: count }
    }

    /// Takes over each number that is greater in `other`.
    pub(crate) fn rise_to(&mut self, other: &Self) {
        self.leased = self.leased.max(other.leased);
        self.injected = self.injected.max(other.injected);
        self.settled = self.settled.max(other.settled);
    }
}
