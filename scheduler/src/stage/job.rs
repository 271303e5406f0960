//! Jobs that a stage gives the executor, and the executor's replies.

use crate::{Loss, MicrobatchId, Refusal, WeightVersion};

/// Work for the executor. Jobs run in the order given.
///
/// Every job but `Drop` and `Forget` has one [`JobReply`]. A job that ends in [`JobOutcome::Refused`] leaves no stash of
/// its microbatch behind.
#[derive(Clone, Debug, PartialEq)]
pub enum Job<P> {
    /// Compute the activation and keep a stash. Reply: [`JobOutcome::Forwarded`].
    Forward {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
        /// The packed activation received; empty at stage 0.
        activation: P,
    },
    /// Forward, loss and backward of the last stage in one pass; keeps no stash. Reply: [`JobOutcome::LossAndBackward`].
    LossAndBackward {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
        /// The packed activation received; empty if there is one stage only.
        activation: P,
        /// Apply the gradients of the weights at once; otherwise they wait for `Apply` or `Drop`, and no other
        /// gradients are computed meanwhile.
        granted: bool,
    },
    /// Compute the gradients and consume the stash. Reply: [`JobOutcome::Backwarded`].
    Backward {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
        /// The packed gradient of the activation sent downstream.
        gradient: P,
        /// As in `LossAndBackward`.
        granted: bool,
    },
    /// Apply the gradients that wait. Reply: [`JobOutcome::Applied`].
    Apply {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
    },
    /// Drop the gradients that wait. No reply.
    Drop {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
    },
    /// Forward without a stash. Reply: [`JobOutcome::Evaluated`] with an activation, or with a loss at the last stage.
    Evaluate {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
        /// The packed activation received; empty at stage 0.
        activation: P,
        /// Replace the activation received by zeros. Only ever set at a last stage that has an upstream.
        cut: bool,
    },
    /// Drop the stash. No reply.
    Forget {
        /// The microbatch of the job.
        microbatch: MicrobatchId,
    },
}

impl<P> Job<P> {
    /// The microbatch of the job.
    #[must_use]
    pub fn microbatch(&self) -> MicrobatchId {
        match self {
            Self::Forward { microbatch, .. }
            | Self::LossAndBackward { microbatch, .. }
            | Self::Backward { microbatch, .. }
            | Self::Apply { microbatch }
            | Self::Drop { microbatch }
            | Self::Evaluate { microbatch, .. }
            | Self::Forget { microbatch } => *microbatch,
        }
    }

    /// Whether the weight gradients that it computes may be applied at once; `None` if it computes none.
    pub(super) fn granted(&self) -> Option<bool> {
        match self {
            Self::LossAndBackward { granted, .. } | Self::Backward { granted, .. } => Some(*granted),
            Self::Forward { .. }
            | Self::Apply { .. }
            | Self::Drop { .. }
            | Self::Evaluate { .. }
            | Self::Forget { .. } => None,
        }
    }
}

/// The executor's reply to a job.
#[derive(Clone, Debug, PartialEq)]
pub struct JobReply<P> {
    /// The microbatch of the job.
    pub microbatch: MicrobatchId,
    /// The result of the job.
    pub outcome: JobOutcome<P>,
}

/// The result of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum JobOutcome<P> {
    /// The activation is computed, the stash is kept.
    Forwarded {
        /// Weight version it was computed with.
        version: WeightVersion,
        /// The packed activation.
        activation: P,
    },
    /// Loss and boundary gradient are computed.
    LossAndBackward {
        /// The training loss.
        loss: Loss,
        /// The packed gradient of the activation received; empty if there is one stage only.
        gradient: P,
    },
    /// Gradients are computed, the stash is gone.
    Backwarded {
        /// The packed gradient of the activation received; empty at stage 0.
        gradient: P,
    },
    /// The gradients that waited are applied.
    Applied,
    /// The forward of an evaluation is computed.
    Evaluated(Evaluation<P>),
    /// The job could not be done; there is no stash of the microbatch any more.
    Refused(Refusal),
}

/// The result of an evaluation at a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation<P> {
    /// The activation, at every stage but the last.
    Activation {
        /// Weight version it was computed with.
        version: WeightVersion,
        /// The packed activation.
        activation: P,
    },
    /// The loss, at the last stage.
    Loss(Loss),
}
