//! What the executor does for a round, between two microbatches.

use bytes::Bytes;
use swarmline_scheduler::averaging::{PartIndex, Round, SetIndex};

/// Work for whoever owns the weights. Every job but `Finish` is answered by one
/// [`swarmline_scheduler::averaging::Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Copy a set.
    Snapshot {
        /// Which round.
        round: Round,
        /// Which set.
        set: SetIndex,
        /// Into how many parts.
        parts: u32,
    },
    /// Move to the mean of a part.
    Apply {
        /// Which round.
        round: Round,
        /// Which part.
        part: PartIndex,
        /// The mean.
        mean: Bytes,
    },
    /// Drop the copy.
    Finish {
        /// Which round.
        round: Round,
        /// Whether the set has been round.
        complete: bool,
    },
}
