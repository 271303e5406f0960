//! Jobs of averaging rounds, and their replies.

use crate::Attempt;

use super::counts::Fault;
use super::group::{FragmentIndex, PartIndex, Round};

/// A job of an averaging round.
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
    /// [`Reply::Reduced`]. The job needs none of this replica's current numbers, so it need not wait for the executor.
    Reduce {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// The attempt of this owner.
        attempt: Attempt,
        /// This replica's own contribution: the others must have as many numbers. It is among the inputs if it has
        /// weight.
        own: P,
        /// Weights and contributions.
        inputs: Vec<(u64, P)>,
    },
    /// Move this replica's numbers by the mean. Reply: [`Reply::Applied`]. At most
    /// [`APPLYING_MAX`](super::APPLYING_MAX) have no reply.
    Apply {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// The mean.
        mean: P,
        /// Whether this replica's contribution is in the mean. If not, what the replica has learned since it was last
        /// in a mean of this fragment exists nowhere else: the mean must not take it away.
        contributed: bool,
    },
    /// The round is over: drop its snapshot. No reply.
    Finish {
        /// The round.
        round: Round,
        /// The fragment.
        fragment: FragmentIndex,
        /// Whether the copy was averaged in full: every part was applied with this replica's contribution in its mean,
        /// or there was nothing to contribute.
        complete: bool,
    },
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Reply<P> {
    /// The reply to [`Job::Snapshot`].
    Snapshot {
        /// The round.
        round: Round,
        /// Contributions in these numbers that no mean of the fragment has carried.
        uncarried: u64,
        /// Weight of these numbers in the mean: the same, but 0 for a joiner before its first mean of the fragment.
        weight: u64,
        /// The parts, in order, as many as the job names; empty if there is no snapshot.
        parts: Vec<P>,
    },
    /// The reply to [`Job::Reduce`].
    Reduced {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// The attempt of the job.
        attempt: Attempt,
        /// The mean; or the index, among the inputs, of a contribution that cannot be used, and its fault.
        outcome: Result<P, (usize, Fault)>,
    },
    /// The reply to [`Job::Apply`].
    Applied {
        /// The round.
        round: Round,
        /// The part.
        part: PartIndex,
        /// Whether the mean was applied; if not, nothing has changed.
        applied: bool,
    },
}
