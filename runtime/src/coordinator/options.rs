//! Settings of a coordinator's process.

use std::net::SocketAddr;
use std::path::PathBuf;

use swarmline_scheduler::PeerId;

use crate::config::Run;
use crate::net::Identity;

/// Settings of a coordinator: run, identity, address.
#[derive(Clone, Debug)]
pub struct CoordinatorOptions {
    pub(super) run: Run,
    pub(super) base: PathBuf,
    pub(super) identity: Identity,
    pub(super) listen: SocketAddr,
    pub(super) keeper: Option<PeerId>,
}

impl CoordinatorOptions {
    /// Coordinates `run` on loopback, with any free port. Peers pin the key of `identity`; relative paths of the run
    /// start from the current folder.
    #[must_use]
    pub fn new(run: Run, identity: Identity) -> Self {
        Self {
            run,
            base: PathBuf::new(),
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            keeper: None,
        }
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

    /// Address to listen on; port 0 takes any free port.
    #[must_use]
    pub fn with_listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }
}
