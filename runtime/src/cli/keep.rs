//! `swarmline keep ADDRESS --to TARGET`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use super::duration::parse_duration;
use super::{Failure, Leash, StopRequest, block_on, key, unhindered_reporter};
use crate::StageIndex;
use crate::keeper::{Every, Keeper, KeeperOptions};
use crate::net::Invite;
use crate::outcome::Outcome;

/// Arguments of `swarmline keep`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The invite the coordinator printed: KEY@HOST:PORT
    #[arg(value_name = "ADDRESS")]
    invite: Invite,
    /// Where checkpoints go: a folder, s3://BUCKET/PATH or gs://BUCKET/PATH (credentials come from the environment)
    #[arg(long, value_name = "TARGET")]
    to: String,
    /// Time between two checkpoints: a number of microbatches, or 30s, 10m, 2h
    #[arg(long, value_name = "N|TIME", default_value = "10m")]
    every: Every,
    /// Checkpoints to keep; older ones are removed
    #[arg(long, value_name = "N", default_value = "3")]
    keep: NonZeroUsize,
    /// Keep this stage only, from 0
    #[arg(long, value_name = "S")]
    stage: Option<u16>,
    /// Address on which replicas reach this keeper; port 0 takes any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Keep this peer's key in a file, so that it is known again after a restart
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Leave when the coordinator has not replied for this long: 90s, 30m, 2h
    #[arg(long, value_name = "DURATION", default_value = "30m", value_parser = parse_duration)]
    patience: Duration,
    #[command(flatten)]
    leash: Leash,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = StopRequest::listen(arguments.leash)?;
    let reporter = unhindered_reporter(arguments.json);
    let identity = key::load(arguments.identity.as_deref(), &reporter)?;
    let options = KeeperOptions::new(arguments.invite.clone(), identity, &*arguments.to)
        .with_listen(arguments.listen)
        .with_every(arguments.every)
        .with_keep(arguments.keep.get())
        .with_stage(arguments.stage.map(StageIndex))
        .with_patience(arguments.patience);
    block_on(async {
        let mut stop = pin!(stop.requested());
        let outcome = tokio::select! {
            () = stop.as_mut() => Outcome::Stopped,
            keeper = Keeper::join(options) => keeper?.run(&reporter, stop).await?,
        };
        match outcome {
            Outcome::Finished => Ok(()),
            Outcome::Stopped => Err(Failure::interrupted("stopped before the run was finished")),
        }
    })
}
