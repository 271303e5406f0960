//! Errors of training in one process.

use std::path::PathBuf;

use swarmline_scheduler::MicrobatchId;

/// Errors that end a training.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
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
