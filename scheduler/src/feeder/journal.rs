//! What a feeder must not forget when it dies.

use super::Outcome;
use crate::{Hop, Lease, MicrobatchId};

/// A line of the journal. The shell makes it durable before it does any action that follows it.
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// These ids are this feeder's.
    Leased(Lease),
    /// A training microbatch goes to this replica of stage 0.
    Sent {
        /// The id.
        microbatch: MicrobatchId,
        /// The replica.
        to: Hop,
    },
    /// This replica, and no other ever, may apply its gradients of this microbatch at its stage.
    Granted {
        /// The id.
        microbatch: MicrobatchId,
        /// The replica and its stage.
        to: Hop,
    },
    /// A training microbatch has its outcome.
    Ended {
        /// The id.
        microbatch: MicrobatchId,
        /// What became of it.
        outcome: Outcome,
    },
    /// A range of a feeder that has gone was taken over.
    TakenOver(TakenOver),
}

/// What a successor makes of a range.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenOver {
    /// The range, with the epoch of this successor.
    pub lease: Lease,
    /// Ids that had their outcome.
    pub ended: u64,
    /// The id after the last one that was injected, as far as anyone knows; none from there on ever will be.
    pub end: MicrobatchId,
    /// Microbatches that go on.
    pub continued: Vec<Continued>,
    /// Microbatches that were injected and cannot go on.
    pub abandoned: Vec<MicrobatchId>,
}

/// A microbatch that a successor goes on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Continued {
    /// The id.
    pub microbatch: MicrobatchId,
    /// The replica of stage 0 that holds it.
    pub to: Hop,
    /// The grants given before. A key of zeros stands for a replica that has left.
    pub grants: Vec<Hop>,
}
