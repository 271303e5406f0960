//! Settings of a reader's process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::net::{Identity, Invite};
use crate::process::PATIENCE;

/// Settings of a reader: invite, identity, address, tokenizer.
#[derive(Clone, Debug)]
pub struct ReaderOptions {
    pub(super) invite: Invite,
    pub(super) identity: Identity,
    pub(super) listen: SocketAddr,
    pub(super) tokenizer: Option<PathBuf>,
    pub(super) patience: Duration,
}

impl ReaderOptions {
    /// Reads by the replicas of the run of `invite`, with any free port of loopback and the coordinator's tokenizer.
    #[must_use]
    pub fn new(invite: Invite, identity: Identity) -> Self {
        let listen = SocketAddr::from(([127, 0, 0, 1], 0));
        Self { invite, identity, listen, tokenizer: None, patience: PATIENCE }
    }

    /// Address on which the data plane listens; port 0 takes any free port.
    #[must_use]
    pub fn with_listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }

    /// The tokenizer file of the run, where the coordinator's is not on this machine.
    #[must_use]
    pub fn with_tokenizer(self, tokenizer: impl Into<Option<PathBuf>>) -> Self {
        Self { tokenizer: tokenizer.into(), ..self }
    }

    /// How long the coordinator may be silent before the reader gives up. Default 30 min.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }
}
