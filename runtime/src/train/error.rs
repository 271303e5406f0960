//! Errors of training in one process.

use std::path::PathBuf;

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
    /// A dense model cannot be the beginning of a run that keeps its stream in another form.
    #[error(
        "{}: the run cannot begin with these weights: its boundary is {kind:?}, which confines or cuts the stream of a \
         model that was trained without a boundary; write kind = \"identity\" below [boundary], or train one stage",
        folder.display()
    )]
    NotDense {
        /// The folder with the weights.
        folder: PathBuf,
        /// The kind of the run's boundary.
        kind: &'static str,
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
