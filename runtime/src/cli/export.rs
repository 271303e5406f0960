//! `swarmline export FROM --to DIR`.

use std::num::NonZeroUsize;
use std::path::PathBuf;

use super::computing::parse_threads;
use super::{Failure, all_cores, folder_of, reporter};
use crate::config::Run;
use crate::export::{ExportOptions, export};
use crate::weights::huggingface::Dtype;

/// Arguments of `swarmline export`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Folder with the weights of all stages, as `swarmline train --save` writes it
    from: PathBuf,
    /// The folder to write; it must be new or empty
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// The run file that the weights were trained with
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
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
    let Arguments { from, to, run: file, .. } = arguments;
    let run = Run::load(file)?;
    let mut options = ExportOptions::new(from.clone(), run, folder_of(file), to.clone());
    options.dtype = arguments.dtype;
    options.threads = arguments.threads.map_or_else(all_cores, NonZeroUsize::get);
    Ok(export(&options, &reporter(arguments.json))?)
}
