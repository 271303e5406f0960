//! Why a process of a run could not go on.

use std::path::PathBuf;

use crate::bench::BenchError;
use crate::config::ConfigError;
use crate::data::DataError;
use crate::model::ShardError;
use crate::net::control::ControlError;
use crate::net::quic::BindError;
use crate::stage::{EngineError, StateError};
use crate::train::error::TrainError;

/// What ends a command, by situation. The message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The run file is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The text cannot be used.
    #[error(transparent)]
    Data(#[from] DataError),
    /// The coordinator said no.
    #[error("the coordinator refused: {0}")]
    Refused(String),
    /// The coordinator takes this process for gone.
    #[error("{0}")]
    Expelled(String),
    /// The network does not do what is needed.
    #[error("{0}")]
    Network(String),
    /// The device cannot do what the stage needs.
    #[error("the device failed: {0}")]
    Device(#[from] swarmline_kernels::Error),
    /// A file cannot be read or written.
    #[error("cannot {action} {path}: {error}")]
    File {
        /// What was tried, e.g. `write`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A feeder's journal cannot be gone on from.
    #[error("{path}, line {line}: {what}; name another file with --journal to begin anew")]
    Journal {
        /// Which file.
        path: PathBuf,
        /// Which line, from 1.
        line: usize,
        /// What is wrong.
        what: String,
    },
    /// Weights in a file do not fit the stage.
    #[error("{path}: {reason}")]
    Weights {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
    /// The state a donor gave does not fit the stage.
    #[error("the state of the donor cannot be used: {0}")]
    State(#[from] StateError),
    /// Training in one process cannot go on.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// A benchmark has no figures.
    #[error(transparent)]
    Bench(#[from] BenchError),
    /// No thread can be started.
    #[error("cannot start the executor thread: {error}")]
    Thread {
        /// What the system said.
        error: std::io::Error,
    },
    /// A microbatch cannot be processed for a reason that is no property of the data.
    #[error("a microbatch could not be processed ({0}); this is a defect, please report it")]
    Defect(String),
    /// The executor thread has ended.
    #[error("the executor thread has ended; this is a defect, please report it with what is printed above")]
    ExecutorGone,
}

impl From<ShardError> for Error {
    fn from(error: ShardError) -> Self {
        match error {
            ShardError::Device(error) => Self::Device(error),
            other => Self::Defect(other.to_string()),
        }
    }
}

impl From<EngineError> for Error {
    fn from(error: EngineError) -> Self {
        Self::Defect(error.to_string())
    }
}

impl From<ControlError> for Error {
    fn from(error: ControlError) -> Self {
        let message = error.to_string();
        match error {
            ControlError::Refused(_) => Self::Refused(message),
            ControlError::NotAMember(_) => Self::Expelled(message),
            ControlError::Connect(_)
            | ControlError::Silent { .. }
            | ControlError::Answer(_)
            | ControlError::Membership(_) => Self::Network(message),
        }
    }
}

impl From<BindError> for Error {
    fn from(error: BindError) -> Self {
        Self::Network(error.to_string())
    }
}
