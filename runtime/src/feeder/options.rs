//! Settings of a feeder's process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use swarmline_scheduler::Role;

use crate::net::{Identity, Invite};
use crate::process::PATIENCE;

/// Settings of a feeder: invite, identity, address, text, journal.
#[derive(Clone, Debug)]
pub struct FeederOptions {
    pub(crate) invite: Invite,
    pub(crate) identity: Identity,
    pub(crate) listen: SocketAddr,
    pub(crate) data: Vec<PathBuf>,
    pub(crate) evaluate_every: Option<u64>,
    pub(crate) journal: Option<PathBuf>,
    pub(crate) succeed: bool,
    pub(crate) patience: Duration,
    pub(crate) take_over: bool,
}

impl FeederOptions {
    /// Feeds the run of `invite` on loopback, with any free port. The feeder reads the coordinator's paths, measures
    /// the held-out loss at the beginning and the end, and keeps no journal.
    #[must_use]
    pub fn new(invite: Invite, identity: Identity) -> Self {
        Self {
            invite,
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: Vec::new(),
            evaluate_every: None,
            journal: None,
            succeed: false,
            patience: PATIENCE,
            take_over: false,
        }
    }

    /// Address on which the data plane listens; port 0 takes any free port.
    #[must_use]
    pub fn with_listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }

    /// Files and directories of text, in place of the coordinator's.
    #[must_use]
    pub fn with_data(self, data: Vec<PathBuf>) -> Self {
        Self { data, ..self }
    }

    /// Training microbatches between two measurements of the held-out loss, besides those at the beginning and the end.
    #[must_use]
    pub fn with_evaluate_every(self, microbatches: impl Into<Option<u64>>) -> Self {
        Self { evaluate_every: microbatches.into(), ..self }
    }

    /// File of the journal. A feeder that is started again with this file and the same identity resumes where this
    /// feeder died.
    #[must_use]
    pub fn with_journal(self, journal: impl Into<Option<PathBuf>>) -> Self {
        Self { journal: journal.into(), ..self }
    }

    /// Whether the feeder takes over the ids of feeders that are gone for good.
    #[must_use]
    pub fn with_succession(self, succeed: bool) -> Self {
        Self { succeed, ..self }
    }

    /// Whether another process with the same key that lives loses its place to this feeder. Default no: while it lives this
    /// one is refused.
    #[must_use]
    pub fn with_take_over(self, take_over: bool) -> Self {
        Self { take_over, ..self }
    }

    /// How long the feeder goes on without a reply of its coordinator. Default 30 minutes.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The role of the feeder. A successor that is started again reads from its journal which ids it has taken over.
    pub(super) fn role(&self) -> Role {
        let resumes =
            self.journal.as_deref().is_some_and(|path| path.metadata().is_ok_and(|file| file.len() > 0));
        if self.succeed && !resumes { Role::Successor } else { Role::Feeder }
    }
}
