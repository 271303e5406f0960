//! `swarmline export FROM --to DIR`.

use std::path::PathBuf;

use super::saved::Reading;
use super::{Failure, output, reporter};
use crate::export::{ExportOptions, export};
use crate::weights::huggingface::Dtype;

/// Arguments of `swarmline export`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A checkpoint, the folder or bucket of a keeper (its newest one), the folder of a run, or what `swarmline train --save`
    /// has written
    from: PathBuf,
    /// The folder to write; it must be new or empty
    #[arg(long, value_name = "FOLDER")]
    to: PathBuf,
    /// Type of the numbers: f32 (exact) or bf16 (half as long)
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    #[command(flatten)]
    reading: Reading,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let saved = arguments.reading.open(&arguments.from)?;
    let mut options = ExportOptions::new(arguments.to.clone());
    (options.dtype, options.threads) = (arguments.dtype, arguments.reading.threads());
    let reporter = reporter(arguments.json);
    export(saved, &options, &reporter)?;
    output::told(&reporter)
}
