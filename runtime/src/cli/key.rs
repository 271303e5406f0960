//! `swarmline key FILE`, and the keys that other commands begin with.

use std::path::{Path, PathBuf};

use super::{Failure, output, reporter};
use crate::net::Identity;
use crate::net::identity::IdentityError;
use crate::report::{Event, Reporter};

/// Arguments of `swarmline key`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The key file, as `--identity` names it; created if there is none
    file: Option<PathBuf>,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Some(file) = &arguments.file else {
        return Err(Failure::usage(
            "which key? Name the file that `--identity` names: `swarmline key FILE` prints its public key, and creates the \
             file if there is none. There is no default: without --identity a process has another key at each start",
        ));
    };
    let reporter = reporter(arguments.json);
    load(Some(file), &reporter)?;
    output::told(&reporter)
}

/// The identity in the file at `path`, which is created if there is none, or a new one without a path. Tells its public
/// key.
pub(super) fn load(path: Option<&Path>, reporter: &Reporter) -> Result<Identity, IdentityError> {
    let identity = Identity::load_or_ephemeral(path)?;
    let file = path.map(|path| path.display().to_string());
    reporter.tell(&Event::Key { key: identity.peer().to_string(), file, is_new: identity.is_new() });
    Ok(identity)
}
