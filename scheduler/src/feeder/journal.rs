//! The records that a feeder needs after a restart.

use std::ops::Range;

use super::{Outcome, Snapshot};
use crate::{Hop, IdSet, Lease, MicrobatchId, StageIndex};

/// A record of the journal. The process makes it durable before it does any action that follows.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// All records before: a journal begins with it when it has been shortened.
    Snapshot(Box<Snapshot>),
    /// The coordinator leased these ids to the feeder.
    Leased(Lease),
    /// A training microbatch is sent to a replica of stage 0.
    Sent {
        /// The microbatch sent.
        microbatch: MicrobatchId,
        /// The replica.
        to: Hop,
    },
    /// A claim is granted: this replica, and no other ever, may apply the gradients of the microbatch at its stage.
    Granted {
        /// The microbatch granted.
        microbatch: MicrobatchId,
        /// The replica and its stage.
        to: Hop,
    },
    /// A replica handed a grant back and promised never to apply the microbatch: the grant is free again.
    Withdrawn {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// The replica and its stage.
        from: Hop,
    },
    /// A training microbatch has its outcome.
    Ended {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Its outcome.
        outcome: Outcome,
    },
    /// The range of a former feeder was taken over.
    TakenOver(TakenOver),
    /// An averaging round of a stage is called: contributions of earlier cycles of rounds are lost with no replica any
    /// more.
    RoundCalled {
        /// The stage.
        stage: StageIndex,
    },
    /// A replica left with contributions that no averaging round has carried to another replica.
    Lost {
        /// The replica and its stage.
        replica: Hop,
        /// Their number.
        contributions: u64,
    },
    /// Training has taken this long so far, all starts together. The process writes it; no rule follows from it.
    Trained {
        /// Milliseconds.
        milliseconds: u64,
    },
}

/// The decisions of a successor about a range.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenOver {
    /// The range, with the epoch of this successor.
    pub lease: Lease,
    /// Ids of the block that had their outcome, those included that had it before this launch of the run.
    pub ended: u64,
    /// The id after the last that is known to have been injected; no id from there on will be.
    pub end: MicrobatchId,
    /// Microbatches that go on; the replica that holds each is asked for it.
    pub continued: Vec<Continued>,
    /// Microbatches that were injected and cannot safely be retried; refused.
    pub abandoned: Vec<MicrobatchId>,
}

impl TakenOver {
    /// The ids that have their outcome: all below `end`, except those that go on.
    pub(super) fn ended_runs(&self) -> Vec<Range<u64>> {
        let (ids, mut going_on) = (self.lease.ids(), IdSet::default());
        self.continued.iter().for_each(|one| going_on.insert(one.microbatch));
        going_on.gaps(ids.start..self.end.0.clamp(ids.start, ids.end)).collect()
    }
}

/// A microbatch that goes on under a successor.
#[derive(Clone, Debug, PartialEq)]
pub struct Continued {
    /// The microbatch.
    pub microbatch: MicrobatchId,
    /// The replica of stage 0 that holds it.
    pub to: Hop,
    /// The grants given before. A key of zeros stands for a replica that has left.
    pub grants: Vec<Hop>,
}
