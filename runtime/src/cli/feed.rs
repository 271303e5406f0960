//! `swarmline feed ADDRESS`.

use std::path::PathBuf;
use std::pin::pin;

use super::member::Member;
use super::{Failure, block_on};
use crate::feeder::{Feeder, FeederOptions};
use crate::outcome::Outcome;
use crate::process::join_after_former;

/// Arguments of `swarmline feed`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) member: Member,
    /// Read this text instead of the paths in the coordinator's run file
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    /// Measure the held-out loss every so many microbatches, not only at the start and the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    evaluate_every: Option<u64>,
    /// Keep a journal in this file; started again with it and --identity, the feeder resumes where it died
    #[arg(long, value_name = "FILE", requires = "identity")]
    journal: Option<PathBuf>,
    /// Take over the ids of a feeder that is gone for good, and finish its work
    #[arg(long)]
    succeed: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (stop, reporter, identity) = arguments.member.begin()?;
    let options = FeederOptions::new(arguments.member.invite.clone(), identity)
        .with_listen(arguments.member.listen)
        .with_patience(arguments.member.patience)
        .with_take_over(arguments.member.take_over)
        .with_data(arguments.data.clone())
        .with_evaluate_every(arguments.evaluate_every)
        .with_journal(arguments.journal.clone())
        .with_succession(arguments.succeed);
    block_on(async {
        let mut stop = pin!(stop.requested());
        let outcome = tokio::select! {
            () = stop.as_mut() => Outcome::Stopped,
            feeder = join_after_former(&reporter, || Feeder::open(options.clone())) => {
                feeder?.run(&reporter, stop).await?
            }
        };
        match outcome {
            Outcome::Finished => Ok(()),
            Outcome::Stopped => Err(Failure::interrupted(how_to_go_on(arguments))),
        }
    })
}

/// What a person can do about a run that was left before it was complete.
fn how_to_go_on(arguments: &Arguments) -> &'static str {
    match (&arguments.member.identity, &arguments.journal) {
        (Some(_), Some(_)) => "stopped before the run was complete; the same command goes on",
        (Some(_), None) => {
            "stopped before the run was complete; `swarmline feed --succeed` with the same --identity continues it"
        }
        (None, _) => {
            "stopped before the run was complete. Its key is gone with this process: `swarmline feed --succeed` continues the \
             run if its [policy] lets other keys feed. A run that any peer may join belongs to its first feeder unless \
             `feed` says otherwise, and cannot go on: feed the next one with --identity FILE"
        }
    }
}
