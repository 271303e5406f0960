//! `swarmline train --run FILE`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::computing::{Computing, announcement, parse_threads};
use super::{Failure, Leash, StopRequest, all_cores, folder_of, output, reporter};
use crate::config::Run;
use crate::outcome::Outcome;
use crate::stage::Learning;
use crate::train::{self, TrainOptions};

/// Arguments of `swarmline train`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The run file; `swarmline check FILE` explains it
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    #[command(flatten)]
    computing: Computing,
    /// Threads that compute, if that is the CPU [default: all cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    /// Write the weights of each stage into this folder at the end
    #[arg(long, value_name = "FOLDER")]
    save: Option<PathBuf>,
    /// Begin with the weights in this Hugging Face folder (the boundary must be "identity")
    #[arg(long, value_name = "FOLDER")]
    init_from: Option<PathBuf>,
    /// Control: only the last stage learns, the others keep their initial weights
    #[arg(long)]
    freeze_upstream: bool,
    /// Measure the held-out loss after every N microbatches, not only at the start and the end
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    evaluate_every: Option<u64>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let threads = arguments.threads.map_or_else(all_cores, NonZeroUsize::get);
    let setup = arguments.computing.setup(threads)?;
    let mut options = TrainOptions::new(Run::load(&arguments.run)?, folder_of(&arguments.run), setup);
    options.save.clone_from(&arguments.save);
    options.init_from.clone_from(&arguments.init_from);
    options.upstream = if arguments.freeze_upstream { Learning::Frozen } else { Learning::Active };
    options.evaluate_every = arguments.evaluate_every;
    let stop = StopRequest::listen(Leash::default())?.flag()?;
    let reporter = reporter(arguments.json);
    reporter.tell(&announcement(setup));
    match train::train(&options, &reporter, &stop)? {
        Outcome::Finished => output::told(&reporter),
        Outcome::Stopped => Err(Failure::interrupted("stopped before the last optimizer step")),
    }
}
