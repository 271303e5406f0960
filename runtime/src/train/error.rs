//! Errors of training in one process.

use swarmline_scheduler::MicrobatchId;

/// Errors that end a training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// The loss on held-out text is a NaN or an infinity.
    #[error(
        "the held-out loss is not finite after {done} microbatches: training has diverged; lower \
         optimizer.learning_rate or optimizer.max_grad_norm, or raise optimizer.warmup_steps"
    )]
    Diverged {
        /// Microbatches trained before the evaluation.
        done: u64,
    },
    /// A stage refused a microbatch, and its numbers are not the cause.
    #[error("{id} was refused: {cause}; this is a defect, please report it")]
    Refused {
        /// The microbatch.
        id: MicrobatchId,
        /// The error of the stage.
        cause: String,
    },
}
