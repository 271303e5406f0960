//! `swarmline simulate PLAN.toml`.

use std::path::PathBuf;

use super::{Failure, output};
use crate::config::Plan;

/// Arguments of `swarmline simulate`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The plan: `shape`, `churn`, `seed`, `minutes` and `router`, each with a default
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Plan { workload, router } = Plan::load(&arguments.file)?;
    let report = workload.play(router).map_err(|violation| {
        Failure::failed(format!(
            "the run broke a rule of the scheduler: {violation}; this is a defect, please report it"
        ))
    })?;
    output::print(&report.to_string())
}
