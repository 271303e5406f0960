//! The folder of a run at its coordinator: the key that its invite names, and the log of what it decided.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use crate::atomic_file;
use crate::error::Error;
use crate::net::Identity;

/// Ending of the default folder, which lies beside the run file.
const ENDING: &str = "run";

/// The folder of a run.
#[derive(Clone, Debug)]
pub struct RunFolder {
    path: PathBuf,
}

impl RunFolder {
    /// The default folder of a run file: `NAME.run` beside `NAME.toml`.
    #[must_use]
    pub fn beside(run_file: &Path) -> PathBuf {
        run_file.with_extension(ENDING)
    }

    /// Opens the folder, which is made if need be, for this user alone.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        make_private(&path).map_err(|error| Error::RunFolder {
            action: "make",
            path: path.clone(),
            error,
        })?;
        Ok(Self { path })
    }

    /// Where the folder is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The key of the folder, which is made at the first start.
    ///
    /// # Errors
    /// As [`Identity::load_or_create`], or there is a log and no key.
    pub fn identity(&self) -> Result<Identity, Error> {
        let key = self.path.join("key");
        if self.log().exists() && !key.exists() {
            return Err(Error::KeyGone { path: key });
        }
        Ok(Identity::load_or_create(&key)?)
    }

    /// The address that peers have called; `None` if no start has noted one.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        std::fs::read_to_string(self.path.join("address")).ok()?.trim().parse().ok()
    }

    /// Notes the address for a later start that may listen on any port.
    pub(super) fn note_address(&self, address: SocketAddr) -> Result<(), Error> {
        let path = self.path.join("address");
        let written = atomic_file::write(&path, format!("{address}\n").as_bytes());
        written.map_err(|error| Error::RunFolder { action: "write to", path, error })
    }

    /// The log.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log.redb")
    }

    /// A log that is being made, to take the place of the log.
    pub(super) fn next_log(&self) -> PathBuf {
        self.path.join("log.next.redb")
    }

    /// The log that one of this launch has replaced.
    pub(super) fn former_log(&self, launch: u64) -> PathBuf {
        self.path.join(format!("log.before-{launch}.redb"))
    }

    /// A file that is there while the log has every decision.
    pub(super) fn complete(&self) -> PathBuf {
        self.path.join("log.complete")
    }
}

#[cfg(unix)]
fn make_private(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

#[cfg(not(unix))]
fn make_private(path: &Path) -> io::Result<()> {
    std::fs::create_dir_all(path)
}
