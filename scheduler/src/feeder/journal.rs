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
        /// Which one.
        microbatch: MicrobatchId,
        /// To whom.
        to: Hop,
    },
    /// This replica, and no other ever, may apply its gradients of this microbatch at this stage.
    Granted {
        /// Which one.
        microbatch: MicrobatchId,
        /// At which stage, and who.
        to: Hop,
    },
    /// A training microbatch has its outcome.
    Ended {
        /// Which one.
        microbatch: MicrobatchId,
        /// What became of it.
        outcome: Outcome,
    },
    /// A range of a feeder that is gone was taken over.
    TakenOver(TakenOver),
}

/// What a successor makes of a range.
#[derive(Clone, Debug, PartialEq)]
pub struct TakenOver {
    /// The range, with the epoch of this successor.
    pub lease: Lease,
    /// Ids that had their outcome.
    pub ended: u64,
    /// Behind the last id that was injected as far as anybody knows; nothing from there on ever will be.
    pub end: MicrobatchId,
    /// What goes on.
    pub continued: Vec<Continued>,
    /// What was injected and cannot go on.
    pub abandoned: Vec<MicrobatchId>,
}

/// A microbatch that a successor goes on with.
#[derive(Clone, Debug, PartialEq)]
pub struct Continued {
    /// Which one.
    pub microbatch: MicrobatchId,
    /// Who holds it at stage 0.
    pub to: Hop,
    /// Who has the grants given before. A key of zeros stands for somebody who has left.
    pub grants: Vec<Hop>,
}
