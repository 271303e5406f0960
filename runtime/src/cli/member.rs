//! The arguments that every process has which joins a run, and what each begins with.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::duration::parse_duration;
use super::{Failure, Leash, StopRequest, key, unhindered_reporter};
use crate::net::{Identity, Invite};
use crate::report::Reporter;

/// Arguments of `swarmline join`, `feed` and `keep`.
#[derive(Debug, clap::Args)]
pub(super) struct Member {
    /// The invite the coordinator printed: KEY@HOST:PORT
    #[arg(value_name = "ADDRESS")]
    pub(super) invite: Invite,
    /// Address on which other peers reach this one; port 0 takes any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    pub(super) listen: SocketAddr,
    /// Keep this peer's key in a file, so that it is known again after a restart
    #[arg(long, value_name = "FILE")]
    pub(super) identity: Option<PathBuf>,
    /// Leave when the coordinator has not replied for this long: 90s, 30m, 2h
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = parse_duration)]
    pub(super) patience: Duration,
    /// End another process that runs with this key, and take its place. What the only replica of a stage has learned since
    /// the newest checkpoint is lost then, as whenever it ends: let another one serve the stage first
    #[arg(long, requires = "identity")]
    pub(super) take_over: bool,
    #[command(flatten)]
    leash: Leash,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

impl Member {
    /// Listens for requests to stop, and tells the public key of this process.
    pub(super) fn begin(&self) -> Result<(StopRequest, Reporter, Identity), Failure> {
        let stop = StopRequest::listen(self.leash)?;
        let reporter = unhindered_reporter(self.json);
        let identity = key::load(self.identity.as_deref(), &reporter)?;
        Ok((stop, reporter, identity))
    }
}
