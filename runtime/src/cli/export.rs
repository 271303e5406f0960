//! `swarmline export FROM --to DIR`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::computing::parse_threads;
use super::{Failure, all_cores, reporter, saved};
use crate::export::{ExportOptions, export};
use crate::weights::huggingface::Dtype;

/// Arguments of `swarmline export`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A checkpoint, the folder of a keeper (its newest one), or what `swarmline train --save` has written
    from: PathBuf,
    /// The folder to write; it must be new or empty
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// The run file that the weights were trained with; a checkpoint needs it for its text only
    #[arg(long, value_name = "FILE")]
    run: Option<PathBuf>,
    /// Type of the numbers: f32 (exact) or bf16 (half as long)
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    /// Print one JSON object a line
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let threads = arguments.threads.map_or_else(all_cores, NonZeroUsize::get);
    let saved = saved::open(&arguments.from, arguments.run.as_deref(), threads)?;
    let mut options = ExportOptions::new(arguments.to.clone());
    (options.dtype, options.threads) = (arguments.dtype, threads);
    Ok(export(saved, &options, &reporter(arguments.json))?)
}
