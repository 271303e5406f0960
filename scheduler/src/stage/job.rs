//! What a stage asks of the executor, and what the executor answers.

use crate::{Loss, MicrobatchId, Refusal, WeightVersion};

/// Work for the executor. Jobs run in the order given.
///
/// Every job but `Drop` and `Forget` is answered by one [`Completion`]. A job answered by [`Done::Refused`] leaves no stash
/// of its microbatch behind.
#[derive(Clone, Debug, PartialEq)]
pub enum Job<P> {
    /// Compute the activation and keep a stash. Answer: [`Done::Forwarded`].
    Forward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
        /// The packed activation received; empty at stage 0.
        code: P,
    },
    /// The last stage's one visit: forward, loss, backward; keeps no stash. Answer: [`Done::LossAndBackward`].
    LossAndBackward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
        /// The packed activation received; empty if there is one stage only.
        code: P,
        /// Apply the gradients of the weights at once; otherwise they wait for `Apply` or `Drop`, and no other
        /// gradients are computed meanwhile.
        granted: bool,
    },
    /// Compute the gradients and consume the stash. Answer: [`Done::Backwarded`].
    Backward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// The packed gradient of the activation sent downstream.
        gradient: P,
        /// As in `LossAndBackward`.
        granted: bool,
    },
    /// Apply the gradients that wait. Answer: [`Done::Applied`].
    Apply {
        /// Which microbatch.
        microbatch: MicrobatchId,
    },
    /// Throw away the gradients that wait. No answer.
    Drop {
        /// Which microbatch.
        microbatch: MicrobatchId,
    },
    /// Forward without a stash. Answer: [`Done::Evaluated`] with a code, or with a loss at the last stage.
    Evaluate {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
        /// The packed activation received; empty at stage 0.
        code: P,
        /// Replace what was received by zeros. Only ever set at a last stage that has an upstream.
        cut: bool,
    },
    /// Drop the stash. No answer.
    Forget {
        /// Which microbatch.
        microbatch: MicrobatchId,
    },
}

impl<P> Job<P> {
    /// Which microbatch it is about.
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
}

/// The executor's answer to a job.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion<P> {
    /// Which microbatch the job was about.
    pub microbatch: MicrobatchId,
    /// What came of it.
    pub done: Done<P>,
}

/// What came of a job.
#[derive(Clone, Debug, PartialEq)]
pub enum Done<P> {
    /// The activation is computed, the stash is kept.
    Forwarded {
        /// Weight version it was computed with.
        version: WeightVersion,
        /// The packed activation.
        code: P,
    },
    /// Loss and boundary gradient are computed.
    LossAndBackward {
        /// The training loss.
        loss: Loss,
        /// The packed gradient of what was received; empty if there is one stage only.
        gradient: P,
    },
    /// Gradients are computed, the stash is gone.
    Backwarded {
        /// The packed gradient of what was received; empty at stage 0.
        gradient: P,
    },
    /// The gradients that waited are applied.
    Applied,
    /// The forward of an evaluation is computed.
    Evaluated(Evaluation<P>),
    /// The job could not be done; there is no stash of the microbatch any more.
    Refused(Refusal),
}

/// What an evaluation gives at a stage.
#[derive(Clone, Debug, PartialEq)]
pub enum Evaluation<P> {
    /// Not the last stage: the activation.
    Code {
        /// Weight version it was computed with.
        version: WeightVersion,
        /// The packed activation.
        code: P,
    },
    /// The last stage: the loss.
    Loss(Loss),
}
