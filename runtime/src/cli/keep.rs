//! `swarmline keep ADDRESS --to TARGET`.

use std::num::NonZeroUsize;
use std::pin::pin;

use super::member::Member;
use super::{Failure, block_on};
use crate::StageIndex;
use crate::keeper::{Every, Keeper, KeeperOptions};
use crate::outcome::Outcome;
use crate::process::join_after_former;

/// Arguments of `swarmline keep`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) member: Member,
    /// Where checkpoints go: a folder, s3://BUCKET/PATH or gs://BUCKET/PATH (credentials come from the environment)
    #[arg(long, value_name = "TARGET")]
    to: String,
    /// Time between two checkpoints: a number of microbatches, or 30s, 10m, 2h
    #[arg(long, value_name = "N|TIME", default_value = "10m")]
    every: Every,
    /// Checkpoints to keep; older ones are removed
    #[arg(long, value_name = "N", default_value = "3")]
    keep: NonZeroUsize,
    /// Give the states of this checkpoint, which the coordinator goes on from with --resume; not needed if it is in TARGET
    #[arg(long, value_name = "CHECKPOINT")]
    resume_from: Option<String>,
    /// Keep this stage only, from 0
    #[arg(long, value_name = "S")]
    stage: Option<u16>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let (stop, reporter, identity) = arguments.member.begin()?;
    let options = KeeperOptions::new(arguments.member.invite.clone(), identity, &*arguments.to)
        .with_listen(arguments.member.listen)
        .with_every(arguments.every)
        .with_keep(arguments.keep.get())
        .with_stage(arguments.stage.map(StageIndex))
        .with_resume_from(arguments.resume_from.clone())
        .with_patience(arguments.member.patience)
        .with_take_over(arguments.member.take_over);
    block_on(async {
        let mut stop = pin!(stop.requested());
        let outcome = tokio::select! {
            () = stop.as_mut() => Outcome::Stopped,
            keeper = join_after_former(&reporter, || Keeper::join(options.clone())) => {
                keeper?.run(&reporter, stop).await?
            }
        };
        match outcome {
            Outcome::Finished => Ok(()),
            Outcome::Stopped => Err(Failure::interrupted("stopped before the run was finished")),
        }
    })
}
