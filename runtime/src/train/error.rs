//! Errors of training in one process.

use swarmline_scheduler::MicrobatchId;

/// Errors that end a training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A stage refused a microbatch, and its numbers are not the cause.
    #[error("{id} was refused: {cause}; this is a defect, please report it")]
    Refused {
        /// The microbatch.
        id: MicrobatchId,
        /// The error of the stage.
        cause: String,
    },
}
