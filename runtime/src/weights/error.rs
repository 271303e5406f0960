//! Errors of weights on disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;
use crate::data::DataError;

/// Reasons why weights cannot be read or written. Messages name the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WeightsError {
    /// The system refuses an operation on a file.
    #[error("cannot {action} {}: {error}", path.display())]
    File {
        /// The attempted action, e.g. `write`.
        action: &'static str,
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// A file or a folder does not hold what it should.
    #[error("{}: {problem}. {remedy}", path.display())]
    Unusable {
        /// The file or folder.
        path: PathBuf,
        /// The mistake, as the rest of a sentence that begins with the path.
        problem: String,
        /// The remedy, as a sentence.
        remedy: String,
    },
    /// The run of a checkpoint breaks a rule of this version.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The tokenizer cannot be used.
    #[error(transparent)]
    Tokenizer(#[from] DataError),
    /// The device failed, or has no memory.
    #[error("the device failed: {0}")]
    Device(#[from] swarmline_kernels::Error),
}

impl WeightsError {
    /// For `map_err`: the system's error of an `action` on `path`.
    pub(super) fn file(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |error| Self::File { action, path, error }
    }

    pub(super) fn unusable(path: &Path, problem: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self::Unusable { path: path.to_owned(), problem: problem.into(), remedy: remedy.into() }
    }
}
