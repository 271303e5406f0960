//! What averaging asks of the executor, and what it replies.

use crate::Attempt;

use super::counts::Fault;
use super::group::{FragmentIndex, PartIndex, Round};

/// Work of an averaging round.
#[derive(Clone, Debug, PartialEq)]
pub enum Job<P> {
    /// Copy the numbers of `fragment`, between two jobs of microbatches, as `parts` parts in order. Reply:
    /// [`Reply::Snapshot`]. At most one round is open at a time.
    Snapshot {
        /// The round.
        round: Round,
        /// The fragment.
        fragment: FragmentIndex,
        /// Number of parts to cut it into.
        parts: u32,
    },
    /// Average these contributions to a part, each with its weight, in this order. Weights are above 0. Reply:
    /// [`Reply::Reduced`]. It needs none of this replica's numbers, so it need not wait for the executor.
    Reduce {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// The attempt at it.
        attempt: Attempt,
        /// This replica's own contribution: the others must have as many numbers. It is among the inputs if it has
        /// weight.
        own: P,
        /// Weights and contributions.
        inputs: Vec<(u64, P)>,
    },
    /// Move this replica's numbers to the mean. Reply: [`Reply::Applied`]. At most
    /// [`APPLYING_MAX`](super::APPLYING_MAX) have no reply.
    Apply {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// The mean.
        mean: P,
    },
    /// The round is over: drop its snapshot. No reply.
    Finish {
        /// The round.
        round: Round,
        /// The fragment.
        fragment: FragmentIndex,
        /// Whether the fragment was averaged in full: every part was applied, or no member had contributed to it.
        complete: bool,
    },
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<P> {
    /// Of [`Job::Snapshot`].
    Snapshot {
        /// The round.
        round: Round,
        /// Contributions in these numbers since the fragment was last averaged here; 0 for a joiner before that.
        weight: u64,
        /// The parts, as many as asked for; empty if there is no snapshot.
        parts: Vec<P>,
    },
    /// Of [`Job::Reduce`].
    Reduced {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// The attempt at it.
        attempt: Attempt,
        /// The mean; or the place, among the inputs, of a contribution that cannot be used.
        outcome: Result<P, (usize, Fault)>,
    },
    /// Of [`Job::Apply`].
    Applied {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// Whether it was; if not, nothing has changed.
        applied: bool,
    },
}
