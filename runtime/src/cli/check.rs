//! `swarmline check FILE`.

use std::io::Write as _;
use std::path::PathBuf;

use super::{Failure, folder_of, output};
use crate::config::Run;

/// Arguments of `swarmline check`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The run file
    file: PathBuf,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let run = Run::load(&arguments.file)?;
    output::print(&run.to_annotated_toml().to_string())?;
    let folder = folder_of(&arguments.file);
    for missing in run.data.paths.iter().map(|path| folder.join(path)).filter(|path| !path.exists()) {
        let _ = writeln!(
            std::io::stderr(),
            "swarmline: data.paths: {} does not exist on this machine; a feeder needs it, or --data",
            missing.display()
        );
    }
    Ok(())
}
