//! Why a process of a run could not go on.

use std::path::PathBuf;

use crate::config::ConfigError;
use crate::data::DataError;

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
    /// The network does not do what is needed.
    #[error("{0}")]
    Network(String),
    /// The coordinator was heard before and is silent now.
    #[error("lost the coordinator: {0}")]
    CoordinatorLost(String),
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
    /// Weights in a file do not fit the stage.
    #[error("{path}: {reason}")]
    Weights {
        /// Which file.
        path: PathBuf,
        /// What does not fit.
        reason: String,
    },
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

impl From<crate::model::ShardError> for Error {
    fn from(error: crate::model::ShardError) -> Self {
        match error {
            crate::model::ShardError::Device(error) => Self::Device(error),
            other => Self::Defect(other.to_string()),
        }
    }
}

impl From<crate::stage::EngineError> for Error {
    fn from(error: crate::stage::EngineError) -> Self {
        Self::Defect(error.to_string())
    }
}
