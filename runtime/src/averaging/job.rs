//! The jobs of the executor in a round; it does them between two microbatches.

use bytes::Bytes;
use swarmline_scheduler::averaging::{PartIndex, Round, SetIndex};

/// Work for the thread that owns the weights. It answers every job but `Finish` with one
/// [`swarmline_scheduler::averaging::Event`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Job {
    /// Copy a fragment.
    Snapshot {
        /// The round that opens.
        round: Round,
        /// The fragment it averages.
        set: SetIndex,
        /// Number of parts the copy is cut into, at least 1.
        parts: u32,
    },
    /// Move the replica's numbers to the mean of a part.
    Apply {
        /// The open round.
        round: Round,
        /// The part of its fragment.
        part: PartIndex,
        /// The mean, packed as the part was.
        mean: Bytes,
    },
    /// Drop the copy.
    Finish {
        /// The round that ends.
        round: Round,
        /// Whether its fragment was averaged in full.
        complete: bool,
    },
}
