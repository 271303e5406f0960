//! `swarmline bench step`: one line of JSON for `bench kernels`.

use std::num::NonZeroUsize;

use swarmline_kernels::Profile;

use super::super::{Failure, output};
use crate::bench::{self, NO_FAST, Size, step};
use crate::error::Error;

/// Arguments of `swarmline bench step`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[arg(long, value_enum)]
    config: Size,
    #[arg(long, default_value = "1")]
    threads: NonZeroUsize,
    #[arg(long, default_value_t)]
    profile: Profile,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let cpu = bench::cpu(arguments.profile, arguments.threads.get()).map_err(Error::from)?;
    let cpu = cpu.ok_or_else(|| Failure::failed(NO_FAST))?;
    let report = step::measure(cpu, arguments.config)?;
    let line = serde_json::to_string(&report)
        .map_err(|error| Failure::failed(format!("cannot write the report as JSON: {error}")))?;
    output::print(&format!("{line}\n"))
}
