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
}
