//! Errors that end a process.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::{MicrobatchId, PeerId};

use crate::model::ShardError;

pub use crate::bench::BenchError;
pub use crate::checkpoint::CheckpointError;
pub use crate::config::ConfigError;
use crate::config::Difference;
pub use crate::coordinator::LogError;
pub use crate::data::DataError;
pub use crate::generate::GenerateError;
pub use crate::net::address::InviteError;
pub use crate::net::control::ControlError;
pub use crate::net::grpc::ServeError;
pub use crate::net::identity::IdentityError;
pub use crate::net::quic::BindError;
pub use crate::packing::TokenError;
pub use crate::stage::{EngineError, StateError};
pub use crate::train::TrainError;
pub use crate::weights::WeightsError;

/// An error that ends a process or a command. The message names the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The run file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// A call to the coordinator failed.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The data plane cannot start.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The coordinator cannot listen.
    #[error(
        "cannot listen on {address}: {error}; choose another with --listen IP:PORT, port 0 takes any free one"
    )]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        error: io::Error,
    },
    /// The folder of a run cannot be made, or written to.
    #[error("cannot {action} the folder of the run, {path}: {error}; choose another with --state DIR")]
    RunFolder {
        /// The attempted action.
        action: &'static str,
        /// The folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A key cannot be read or made.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The log of a run cannot be used.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The run file is not that of the run that is to go on.
    #[error(
        "{folder} has a run that was begun with other settings: {}; put these back to go on with it, or begin another run \
         with --state DIR (policy.join, policy.feed and data.paths may change)",
        join(.differences)
    )]
    OtherRun {
        /// The folder of the run.
        folder: PathBuf,
        /// The fields that differ.
        differences: Vec<Difference>,
    },
    /// The checkpoint to go on from is of a run with other settings.
    #[error(
        "{checkpoint} is of a run that was begun with other settings: {}; put these back, or name a checkpoint of this run \
         with --resume CHECKPOINT",
        join(.differences)
    )]
    ResumeOtherRun {
        /// The checkpoint.
        checkpoint: String,
        /// The fields that differ.
        differences: Vec<Difference>,
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
    /// The log of a run is there, and its key is not.
    #[error(
        "{} is gone, and members of the run call no other key; restore it, or name its file with --identity. To begin another \
         run, name another folder with --state",
        path.display()
    )]
    KeyGone {
        /// The file of the key.
        path: PathBuf,
    },
    /// Weights are to be imported into a run that has begun without them.
    #[error(
        "the run in {} has begun with other weights; leave --init-from out to go on with it, or name another folder with \
         --state to begin another run",
        folder.display()
    )]
    HasBegun {
        /// The folder of the run.
        folder: PathBuf,
    },
    /// At the checkpoint to go on from the run is over.
    #[error(
        "at {checkpoint} the run is over: all {total} microbatches have their outcome. `swarmline export` makes a model of \
         it; to go on from an earlier one, name it with --resume CHECKPOINT"
    )]
    ResumeFinished {
        /// The checkpoint.
        checkpoint: String,
        /// Microbatches of the run.
        total: u64,
    },
    /// The run has another launch than the one that this process joined.
    #[error(
        "the coordinator refused: it has begun the run again, or gone back to a checkpoint, and this process is of the launch \
         before; start it again"
    )]
    OtherLaunch,
    /// A keeper was told of a checkpoint, and the run began at none.
    #[error(
        "the run goes on from no checkpoint; leave --resume-from {checkpoint} out, or start the coordinator with --resume"
    )]
    NoOrigin {
        /// The checkpoint.
        checkpoint: String,
    },
    /// A keeper was told of another checkpoint than that which the run goes on from.
    #[error(
        "the run goes on from a checkpoint of {microbatches} microbatches, and {checkpoint} is another one; name that one \
         with --resume-from"
    )]
    OtherOrigin {
        /// The checkpoint.
        checkpoint: String,
        /// Microbatches of the checkpoint that the run goes on from.
        microbatches: u64,
    },
    /// The coordinator's key is not that of the run that is to go on.
    #[error(
        "{folder} has a run whose members know its coordinator as {theirs}, and this key is {ours}; start with that key, \
         or begin another run with --state DIR"
    )]
    OtherKey {
        /// The folder of the run.
        folder: PathBuf,
        /// The key that the run was begun with.
        theirs: PeerId,
        /// The key of this start.
        ours: PeerId,
    },
    /// The system does not tell the address of a socket.
    #[error("the system does not tell the address of a socket: {0}")]
    Address(#[source] io::Error),
    /// The coordinator's server failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
    /// A key in the policy of the run is malformed.
    #[error("policy.join: {0}")]
    Policy(#[from] InviteError),
    /// Training has diverged: numbers of the model are not finite, and stay so.
    #[error(
        "diverged at microbatch {at}: {sign}. Weights of a run that has diverged are not saved; lower \
         optimizer.learning_rate or optimizer.max_grad_norm, or raise optimizer.warmup_steps, and begin again"
    )]
    Diverged {
        /// Microbatches of the run that had their outcome then.
        at: u64,
        /// What showed it.
        sign: Divergence,
    },
    /// The coordinator was silent for too long.
    #[error(
        "the coordinator has not replied for {} s (--patience): this process has left; {kept}",
        patience.as_secs()
    )]
    CoordinatorGone {
        /// How long the process has waited.
        patience: Duration,
        /// What remains of its work.
        kept: &'static str,
    },
    /// A feeder joined a run that is over.
    #[error("the coordinator refused: the run is finished")]
    RunFinished,
    /// The coordinator dismissed a feeder.
    #[error("the coordinator refused: {0}")]
    Dismissed(String),
    /// Another feeder has taken over the ids of this one.
    #[error(
        "the coordinator refused: feeder {by} has taken over the ids of this one and counts their outcomes; to feed the \
         run beside it, start without this journal"
    )]
    Succeeded {
        /// The successor.
        by: PeerId,
    },
    /// The coordinator expelled a replica too often.
    #[error("{reason}, {times} times in a row; is the connection to the coordinator good enough?")]
    ExpelledTooOften {
        /// The coordinator's last reason.
        reason: String,
        /// Number of expulsions in a row.
        times: u32,
    },
    /// The device failed, or has no memory for the stage.
    #[error("the device failed: {0}")]
    Device(#[from] swarmline_kernels::Error),
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {error}")]
    File {
        /// The attempted action, e.g. `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A feeder cannot resume from its journal.
    #[error("{path}, byte {at}: {fault}")]
    Journal {
        /// The file.
        path: PathBuf,
        /// Offset of the fault in the file, bytes.
        at: usize,
        /// The fault and its remedy.
        fault: String,
    },
    /// Weights in a file do not fit the stage.
    #[error("{path}: {reason}")]
    Weights {
        /// The file.
        path: PathBuf,
        /// The mismatch.
        reason: String,
    },
    /// The weights of a whole model cannot be read or written.
    #[error(transparent)]
    Model(#[from] WeightsError),
    /// The state from a donor does not fit the stage.
    #[error("the state of the donor cannot be used: {0}")]
    State(#[from] StateError),
    /// The run is over, and a keeper cannot take its final states.
    #[error(
        "the run is over, and no replica of stage {stage} gives its final state; the newest checkpoint is {}",
        .newest.as_deref().unwrap_or("that of an earlier start, if there is one")
    )]
    FinalStates {
        /// The stage.
        stage: u16,
        /// The newest checkpoint of this start.
        newest: Option<String>,
    },
    /// A checkpoint cannot be written or read.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Training in one process cannot go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// The replicas of a run cannot predict the next token.
    #[error(transparent)]
    Prediction(#[from] swarmline_scheduler::prediction::Failure),
    /// A prompt does not fit the run.
    #[error("the prompt does not fit the run: {error}")]
    Prompt {
        /// The fault.
        error: TokenError,
    },
    /// No text can be generated.
    #[error(transparent)]
    Generate(#[from] GenerateError),
    /// A benchmark has no figures.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// No thread can be started.
    #[error("cannot start the executor thread: {error}")]
    Thread {
        /// The system's error.
        error: io::Error,
    },
    /// The tokens of a microbatch cannot be packed.
    #[error("the tokens of {microbatch} cannot be packed: {source}; this is a defect, please report it")]
    Tokens {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// The fault.
        source: TokenError,
    },
    /// A stage cannot process a microbatch, and the data is not the cause.
    #[error("a microbatch could not be processed ({0}); this is a defect, please report it")]
    Engine(#[from] EngineError),
    /// Work on another thread ended with a panic.
    #[error("{work} ended with a panic; this is a defect, please report it with the output above")]
    Panicked {
        /// The work.
        work: &'static str,
    },
    /// The executor thread has ended.
    #[error("the executor thread has ended; this is a defect, please report it with the output above")]
    ExecutorGone,
}

impl Error {
    /// Whether the coordinator refused: the process works, and a retry does not help.
    #[must_use]
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            Self::Control(
                ControlError::Refused(_) | ControlError::AlreadyRunning(_) | ControlError::Replaced(_)
            ) | Self::RunFinished
                | Self::OtherLaunch
                | Self::Dismissed(_)
                | Self::Succeeded { .. }
        )
    }
}

fn join(differences: &[Difference]) -> String {
    differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
}

impl From<ShardError> for Error {
    fn from(error: ShardError) -> Self {
        match error {
            ShardError::Device(error) => Self::Device(error),
            other => Self::Engine(other.into()),
        }
    }
}
