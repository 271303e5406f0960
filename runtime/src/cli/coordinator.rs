//! `swarmline coordinator --run FILE`.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::{Failure, Leash, block_on, folder_of, reporter, stop_requested};
use crate::config::Run;
use crate::coordinator::{self, Options};
use crate::net::Identity;

/// Arguments of `swarmline coordinator`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The run file; `swarmline check FILE` explains it
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    /// Where to listen; port 0 takes any free port
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
    let options = Options { run, base: folder_of(&arguments.run), identity, listen: arguments.listen };
    let reporter = Arc::new(reporter(arguments.json));
    block_on(async {
        let end = coordinator::coordinate(options, &reporter, stop_requested(arguments.leash)).await?;
        match end {
            coordinator::End::Finished => Ok(()),
            coordinator::End::Stopped => Err(Failure::interrupted("stopped before the run was finished")),
        }
    })
}
