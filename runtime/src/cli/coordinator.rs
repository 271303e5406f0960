//! `swarmline coordinator --run FILE`.

use std::net::SocketAddr;
use std::path::PathBuf;

use super::{Failure, Leash, StopRequest, block_on, folder_of, unhindered_reporter};
use crate::config::Run;
use crate::coordinator::{Coordinator, CoordinatorOptions};
use crate::net::Identity;
use crate::outcome::Outcome;

/// Arguments of `swarmline coordinator`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The run file; `swarmline check FILE` explains it
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    /// Address to listen on; port 0 takes any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Keep this coordinator's key in a file, so that its invite stays the same after a restart
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    #[command(flatten)]
    leash: Leash,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let run = Run::load(&arguments.run)?;
    let identity = Identity::load_or_ephemeral(arguments.identity.as_deref())?;
    let options = CoordinatorOptions::new(run, identity)
        .with_base(folder_of(&arguments.run))
        .with_listen(arguments.listen);
    let reporter = unhindered_reporter(arguments.json);
    let stop = StopRequest::listen(arguments.leash)?;
    block_on(async {
        let coordinator = Coordinator::bind(options).await?;
        match coordinator.run(&reporter, stop.requested()).await? {
            Outcome::Finished => Ok(()),
            Outcome::Stopped => Err(Failure::interrupted("stopped before the run was finished")),
        }
    })
}
