//! Settings of a volunteer's process.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use swarmline_kernels::device::Setup;

use crate::net::{Identity, Invite};
use crate::process::PATIENCE;

/// Settings of a replica: invite, identity, address, device, files.
#[derive(Clone, Debug)]
pub struct ReplicaOptions {
    pub(crate) invite: Invite,
    pub(crate) identity: Identity,
    pub(crate) listen: SocketAddr,
    pub(crate) setup: Setup,
    pub(crate) save: Option<PathBuf>,
    pub(crate) resume: Option<PathBuf>,
    pub(crate) parameter_log: Option<PathBuf>,
    pub(crate) applied_log: Option<PathBuf>,
    pub(crate) patience: Duration,
    pub(crate) take_over: bool,
}

impl ReplicaOptions {
    /// Joins the run of `invite` on loopback, with any free port and one computing thread of the CPU. The replica
    /// begins with the state of another replica of its stage, or the initial weights of the run, and writes no file.
    #[must_use]
    pub fn new(invite: Invite, identity: Identity) -> Self {
        Self {
            invite,
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            setup: Setup::cpu(1),
            save: None,
            resume: None,
            parameter_log: None,
            applied_log: None,
            patience: PATIENCE,
            take_over: false,
        }
    }

    /// Address on which the data plane listens; port 0 takes any free port.
    #[must_use]
    pub fn with_listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }

    /// Whether another process with the same key that lives loses its place to this replica. Default no: while it lives this
    /// one is refused.
    #[must_use]
    pub fn with_take_over(self, take_over: bool) -> Self {
        Self { take_over, ..self }
    }

    /// How long the replica goes on without a reply of its coordinator; then it leaves as if it were asked to. Default 30
    /// minutes.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// Device, profile and threads.
    #[must_use]
    pub fn with_setup(self, setup: Setup) -> Self {
        Self { setup, ..self }
    }

    /// File for the weights of the stage, written at the end.
    #[must_use]
    pub fn with_save(self, save: impl Into<Option<PathBuf>>) -> Self {
        Self { save: save.into(), ..self }
    }

    /// File with the weights to begin with, in place of the state of another replica.
    #[must_use]
    pub fn with_resume(self, resume: impl Into<Option<PathBuf>>) -> Self {
        Self { resume: resume.into(), ..self }
    }

    /// File for name and digest of every parameter value that has been in this process.
    #[must_use]
    pub fn with_parameter_log(self, log: impl Into<Option<PathBuf>>) -> Self {
        Self { parameter_log: log.into(), ..self }
    }

    /// File to append stage and id of every microbatch to when its gradients are applied here.
    #[must_use]
    pub fn with_applied_log(self, log: impl Into<Option<PathBuf>>) -> Self {
        Self { applied_log: log.into(), ..self }
    }
}
