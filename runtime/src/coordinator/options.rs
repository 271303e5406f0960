//! Settings of a coordinator's process.

use std::net::SocketAddr;
use std::path::PathBuf;

use swarmline_scheduler::PeerId;

use super::{Resume, RunFolder};
use crate::config::Run;
use crate::net::Identity;

/// Settings of a coordinator: run, identity, address.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    pub(super) run: Run,
    pub(super) base: PathBuf,
    pub(super) identity: Identity,
    pub(super) listen: SocketAddr,
    pub(super) folder: Option<RunFolder>,
    pub(super) keeper: Option<PeerId>,
    pub(super) resume: Option<Resume>,
}

impl CoordinatorOptions {
    /// Coordinates `run` on loopback, with any free port. Peers pin the key of `identity`; relative paths of the run
    /// start from the current folder.
    #[must_use]
    pub fn new(run: Run, identity: Identity) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { run, base: PathBuf::new(), identity, listen, folder: None, keeper: None, resume: None }
    }

    /// Folder that relative paths of the run start from.
    #[must_use]
    pub fn with_base(self, base: impl Into<PathBuf>) -> Self {
        Self { base: base.into(), ..self }
    }

    /// Admits the coordinator's own keeper, whichever keys the run lists.
    #[must_use]
    pub fn with_keeper(self, keeper: impl Into<Option<PeerId>>) -> Self {
        Self { keeper: keeper.into(), ..self }
    }

    /// Keeps what is decided in this folder: a start after a crash goes on where the run was. Without a folder such a start
    /// asks the members.
    #[must_use]
    pub fn with_folder(self, folder: RunFolder) -> Self {
        Self { folder: Some(folder), ..self }
    }

    /// Goes on from a checkpoint, in a new launch of the run. The log of the folder is put aside; one that says that its
    /// launch has begun at the checkpoint already goes on.
    #[must_use]
    pub fn with_resume(self, resume: impl Into<Option<Resume>>) -> Self {
        Self { resume: resume.into(), ..self }
    }

    /// Address to listen on; port 0 takes the port of the start before, if it is free, or any free port.
    #[must_use]
    pub fn with_listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }
}
