//! `swarmline join ADDRESS`.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use super::computing::{Computing, announcement, parse_threads};
use super::duration::parse_duration;
use super::{Failure, Leash, StopRequest, all_cores, block_on, key, unhindered_reporter};
use crate::net::Invite;
use crate::replica::{Replica, ReplicaOptions};

/// Arguments of `swarmline join`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The invite the coordinator printed: KEY@HOST:PORT
    #[arg(value_name = "ADDRESS")]
    invite: Invite,
    /// Address on which other peers reach this one; port 0 takes any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[command(flatten)]
    computing: Computing,
    /// Threads that compute, if that is the CPU [default: all cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    /// Keep this peer's key in a file, so that it is known again after a restart
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Write this stage's weights here when the run ends
    #[arg(long, value_name = "FILE")]
    save: Option<PathBuf>,
    /// Start from the weights in this file instead of the run's seed
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Record name and digest of every parameter that is ever present in this process
    #[arg(long, value_name = "FILE")]
    parameter_log: Option<PathBuf>,
    /// Append stage and id of every microbatch whose gradients are applied here
    #[arg(long, value_name = "FILE")]
    applied_log: Option<PathBuf>,
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
    let threads = arguments.threads.map_or_else(all_cores, NonZeroUsize::get);
    let setup = arguments.computing.setup(threads)?;
    let stop = StopRequest::listen(arguments.leash)?;
    let reporter = unhindered_reporter(arguments.json);
    let identity = key::load(arguments.identity.as_deref(), &reporter)?;
    let options = ReplicaOptions::new(arguments.invite.clone(), identity)
        .with_listen(arguments.listen)
        .with_patience(arguments.patience)
        .with_setup(setup)
        .with_save(arguments.save.clone())
        .with_resume(arguments.resume.clone())
        .with_parameter_log(arguments.parameter_log.clone())
        .with_applied_log(arguments.applied_log.clone());
    reporter.tell(&announcement(setup));
    block_on(async {
        let mut stop = pin!(stop.requested());
        tokio::select! {
            () = stop.as_mut() => Ok(()),
            replica = Replica::join(options) => {
                replica?.run(&reporter, stop).await?;
                Ok(())
            }
        }
    })
}
