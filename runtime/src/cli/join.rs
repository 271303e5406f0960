//! `swarmline join ADDRESS`.

use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::pin::pin;

use super::computing::{Computing, announcement, parse_threads};
use super::member::Member;
use super::{Failure, all_cores, block_on};
use crate::process::join_after_former;
use crate::replica::{Replica, ReplicaOptions};

/// Arguments of `swarmline join`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) member: Member,
    #[command(flatten)]
    computing: Computing,
    /// Threads that compute, if that is the CPU [default: all cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
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
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let threads = arguments.threads.map_or_else(all_cores, NonZeroUsize::get);
    let setup = arguments.computing.setup(threads)?;
    let (stop, reporter, identity) = arguments.member.begin()?;
    let options = ReplicaOptions::new(arguments.member.invite.clone(), identity)
        .with_listen(arguments.member.listen)
        .with_patience(arguments.member.patience)
        .with_take_over(arguments.member.take_over)
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
            replica = join_after_former(&reporter, || Replica::join(options.clone())) => {
                replica?.run(&reporter, stop).await?;
                Ok(())
            }
        }
    })
}
