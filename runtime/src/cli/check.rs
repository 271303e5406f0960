//! `swarmline check FILE`.

use std::io::Write as _;
use std::path::PathBuf;

use super::Failure;
use crate::config::Run;

/// Arguments of `swarmline check`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The run file
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let run = Run::load(&arguments.file)?;
    let _ = write!(std::io::stdout(), "{}", run.to_annotated_toml());
    Ok(())
}
