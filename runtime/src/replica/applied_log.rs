//! The applied microbatches of a replica as a file, one line each, to check that none is applied twice.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use swarmline_scheduler::{MicrobatchId, StageIndex};

use crate::error::Error;

/// Lines of `STAGE MICROBATCH`, written without a buffer: the file of a killed process has every microbatch in its
/// weights.
#[derive(Debug)]
pub(super) struct AppliedLog {
    file: File,
    path: PathBuf,
}

impl AppliedLog {
    /// Appends to the file at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let failed = |error| Error::File { action: "open", path: path.to_owned(), error };
        let file = File::options().create(true).append(true).open(path).map_err(failed)?;
        Ok(Self { file, path: path.to_owned() })
    }

    pub(super) fn write(&mut self, stage: StageIndex, microbatch: MicrobatchId) -> Result<(), Error> {
        let line = format!("{} {}\n", stage.0, microbatch.0);
        self.file.write_all(line.as_bytes()).map_err(|error| Error::File {
            action: "write",
            path: self.path.clone(),
            error,
        })
    }
}
