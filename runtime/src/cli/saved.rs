//! The saved run that `export` and `generate` are given.

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};

use super::computing::parse_threads;
use super::coordinator::CHECKPOINTS;
use super::{Failure, all_cores, block_on, folder_of};
use crate::checkpoint::{Checkpoint, CheckpointError, Fault, LocalCheckpoint, Store};
use crate::config::Run;
use crate::error::Error;
use crate::weights::SavedRun;

/// Options of a command that reads a saved run.
#[derive(Debug, clap::Args)]
pub(super) struct Reading {
    /// The run file that the weights were trained with; a checkpoint needs it for its text only
    #[arg(long, value_name = "FILE")]
    pub(super) run: Option<PathBuf>,
    /// Threads that compute [default: all cores]
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
}

impl Reading {
    pub(super) fn threads(&self) -> usize {
        self.threads.map_or_else(all_cores, NonZeroUsize::get)
    }

    /// Opens the checkpoint at `from`, the newest one in `from`, or the stages that a training has saved there. The folder of
    /// a run stands for its checkpoints. The run
    /// file names the run of such stages, and the text of any.
    pub(super) fn open(&self, from: &Path) -> Result<SavedRun, Failure> {
        open(from, self.run.as_deref(), self.threads())
    }
}

/// As [`Reading::open`].
pub(super) fn open(from: &Path, run_file: Option<&Path>, threads: usize) -> Result<SavedRun, Failure> {
    let given = run_file.map(|file| Run::load(file).map(|run| (run, folder_of(file)))).transpose()?;
    let Some(folder) = checkpoint_folder(from) else {
        let Some((run, base)) = given else { return Err(unknown(from)) };
        return Ok(SavedRun::open(from, run, base, threads).map_err(Error::from)?);
    };
    let checkpoint = block_on(async { local(&folder).await.map_err(|error| Error::from(error).into()) })?;
    Ok(SavedRun::of_checkpoint(checkpoint, given, threads).map_err(Error::from)?)
}

/// A checkpoint, by its own folder or as the newest of a target.
enum Folder {
    Checkpoint { target: String, name: String },
    Target(String),
}

/// `None` if a local folder is neither a checkpoint nor has any. One with the name of a checkpoint and no manifest counts, and
/// is refused as one that is not complete.
fn checkpoint_folder(from: &Path) -> Option<Folder> {
    let is_url = from.to_str().is_some_and(|from| from.contains("://"));
    let from =
        if is_url { from.to_owned() } else { from.canonicalize().ok().filter(|from| from.is_dir())? };
    match Store::split(from.to_str()?) {
        (target, Some(name)) => Some(Folder::Checkpoint { target: target.to_owned(), name: name.to_owned() }),
        (target, None) if is_url || Store::is_at(&from) => Some(Folder::Target(target.to_owned())),
        (_, None) => checkpoints_of_run(&from).map(Folder::Target),
    }
}

/// The checkpoints in the folder of a run, where its coordinator's keeper writes them.
fn checkpoints_of_run(folder: &Path) -> Option<String> {
    let checkpoints = folder.join(CHECKPOINTS);
    Store::is_at(&checkpoints).then(|| checkpoints.to_str().map(str::to_owned)).flatten()
}

/// The checkpoint, once each of its files is found to be as it was written.
async fn local(folder: &Folder) -> Result<LocalCheckpoint, CheckpointError> {
    let checkpoint = match folder {
        Folder::Checkpoint { target, name } => Store::open(target)?.checkpoint(name).await?,
        Folder::Target(target) => newest(target).await?,
    };
    checkpoint.into_local().await
}

async fn newest(target: &str) -> Result<Checkpoint, CheckpointError> {
    let found = Store::open(target)?.checkpoints().await?;
    let empty = || CheckpointError { file: target.to_owned(), fault: Fault::Empty };
    let broken = || found.broken.into_iter().next().unwrap_or_else(empty);
    found.checkpoints.into_iter().next().ok_or_else(broken)
}

fn unknown(from: &Path) -> Failure {
    let fault = match from.is_dir() {
        true => {
            "it has neither the config.json of a Hugging Face folder nor the manifest.json of a checkpoint"
        }
        false => "there is no such folder",
    };
    Failure::failed(format!(
        "{}: {fault}; for the weights that `swarmline train --save` wrote give the run file too: --run FILE",
        from.display()
    ))
}
