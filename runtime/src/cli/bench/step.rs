//! `swarmline bench step`: one line of JSON for `bench kernels`.

use std::io::Write as _;
use std::num::NonZeroUsize;

use super::super::Failure;
use crate::bench::{Profile, Size, step};
use crate::error::Error;

/// Arguments of `swarmline bench step`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long, value_enum)]
    config: Size,
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    #[arg(long, value_enum, default_value = "repro")]
    profile: Profile,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let cpu = arguments.profile.cpu(arguments.threads.get()).map_err(Error::from)?;
    let cpu = cpu.ok_or_else(|| Failure::failed(arguments.profile.absence()))?;
    let report = step::measure(cpu, arguments.config)?;
    let line = serde_json::to_string(&report).map_err(|error| Failure::failed(error.to_string()))?;
    let _ = writeln!(std::io::stdout(), "{line}");
    Ok(())
}
