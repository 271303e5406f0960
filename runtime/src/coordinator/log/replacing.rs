//! A log that takes the place of another: it is whole before it does, and the other is put aside.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use super::{
    Builder, CACHE_BYTES, Fact, File, Found, Head, Log, LogError, LogFault, RunFolder, check_readable,
    fault_of_opening, make_if_missing, read, sync_folder, write_facts, write_head,
};

impl Log {
    /// What the log of a folder says; `None` if there is none, or it says nothing yet. Changes nothing.
    pub(in super::super) fn look(folder: &RunFolder) -> Result<Option<Found>, LogError> {
        let path = folder.log();
        let look = || {
            check_readable(&path)?;
            if !path.exists() {
                return Ok(None);
            }
            let database = Builder::new().set_cache_size(CACHE_BYTES).create(&path);
            read(&database.map_err(fault_of_opening)?, folder.complete().exists())
        };
        look().map_err(|fault| LogError { path: path.clone(), fault })
    }

    /// Puts a log with these facts in the place of the folder's log, which gets a name of its own. Returns that name. A kill
    /// at any point leaves the log before or the new one in its place.
    pub(in super::super) fn replace(
        folder: &RunFolder,
        head: &Head,
        facts: &[Fact],
        launch: u64,
    ) -> Result<Option<PathBuf>, LogError> {
        let (path, next) = (folder.log(), folder.next_log());
        let failed = |action: &'static str, cause: String| LogError {
            path: next.clone(),
            fault: LogFault::Access { action, cause },
        };
        remove(&next).map_err(|error| failed("remove", error.to_string()))?;
        make_if_missing(&next).map_err(|fault| LogError { path: next.clone(), fault })?;
        fill(&next, head, facts).map_err(|cause| failed("write", cause))?;
        let aside = path.exists().then(|| folder.former_log(launch));
        let placed = || {
            if let Some(aside) = &aside {
                keep_as(&path, aside)?;
            }
            fs::rename(&next, &path)?;
            File::create(folder.complete())?;
            sync_folder(&path)
        };
        placed().map_err(|error| failed("place", error.to_string()))?;
        Ok(aside)
    }
}

/// Writes a log as a whole, and closes it.
fn fill(path: &Path, head: &Head, facts: &[Fact]) -> Result<(), String> {
    let database =
        Builder::new().set_cache_size(CACHE_BYTES).create(path).map_err(|error| error.to_string())?;
    write_head(&database, head)?;
    write_facts(&database, facts.iter())
}

/// Gives a file a second name, or copies it where the file system has none.
fn keep_as(path: &Path, aside: &Path) -> std::io::Result<()> {
    match fs::hard_link(path, aside) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => fs::copy(path, aside).map(drop),
        linked => linked,
    }
}

fn remove(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        Ok(()) | Err(_) => Ok(()),
    }
}
