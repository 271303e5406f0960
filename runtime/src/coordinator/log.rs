//! The log of a coordinator: the facts that a later start goes on from, in one file that survives a kill at any point.
//!
//! The newest fact of each key is kept, so the file grows with members and blocks and not with time. A commit is on disk
//! when it returns. Where the disk refuses one, the run goes on and the log says that it is out of date, by the absence of a
//! file beside it: a later start then asks the members for what the log does not know.

mod replacing;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use redb::backends::FileBackend;
use redb::{
    Builder, Database, DatabaseError, ReadableDatabase as _, ReadableTable as _, StorageError,
    TableDefinition, TableError,
};
use serde::{Deserialize, Serialize};
use swarmline_scheduler::Origin;
use swarmline_scheduler::coordinator::{Fact, FactKey, Facts};

use super::RunFolder;
use crate::atomic_file::{make_new, sync_folder};

/// Format of the log: a reader refuses a newer one.
const FORMAT: u64 = 1;
/// Pages of the file that are kept in memory, bytes.
const CACHE_BYTES: usize = 8 << 20;

/// Facts by key, as JSON.
const FACTS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("facts");
/// What a start must agree with before it reads a fact.
const HEAD: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("head");

type Open = dyn Fn() -> Result<Database, DatabaseError> + Send + Sync;

/// The log, open for this process alone.
pub(super) struct Log {
    open: Arc<Open>,
    /// `None` after a fault: a database that has met one refuses all that follows until it is opened again.
    database: Option<Database>,
    path: PathBuf,
    complete: PathBuf,
    /// Facts that the disk has refused so far.
    refused: BTreeMap<FactKey, Fact>,
}

/// What stands before the facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// The coordinator's key.
    pub(super) peer: [u8; 32],
    /// The manifest of the run, canonical.
    pub(super) manifest: Vec<u8>,
    /// The checkpoint that the launch began at.
    pub(super) origin: Option<NotedOrigin>,
}

/// The checkpoint that a launch began at, and where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NotedOrigin {
    /// Its folder: a path or a URL.
    pub(super) location: String,
    pub(super) origin: Origin,
}

/// What an earlier start has left.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) head: Head,
    pub(super) facts: Facts,
    /// Every decision is in the facts.
    pub(super) is_complete: bool,
}

/// The log of a run folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {fault}")]
pub struct LogError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: LogFault,
}

/// What is wrong with a log.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LogFault {
    /// Another process has it open.
    #[error("another coordinator of this run is running; stop it first, or take another folder with --state")]
    InUse,
    /// A later version of this program has written it.
    #[error("it has format {theirs}, and this program reads up to {FORMAT}; update swarmline")]
    Newer {
        /// Its format.
        theirs: u64,
    },
    /// The bytes are no log, or no longer.
    #[error(
        "it is damaged, or not the log of a coordinator ({0}); move it away and start again: members that live return \
         what they know of the run"
    )]
    Damaged(String),
    /// The system refuses or fails.
    #[error(
        "cannot {action} it: {cause}; check free space and permissions, or take another folder with --state"
    )]
    Access {
        /// The attempted action.
        action: &'static str,
        /// The cause.
        cause: String,
    },
}

impl Log {
    /// Opens the log of a folder, and reads what an earlier start has left.
    pub(super) fn open(folder: &RunFolder) -> Result<(Self, Option<Found>), LogError> {
        let (path, complete) = (folder.log(), folder.complete());
        let failed = |fault| LogError { path: path.clone(), fault };
        check_readable(&path).map_err(failed)?;
        make_if_missing(&path).map_err(failed)?;
        let file = path.clone();
        let open: Arc<Open> = Arc::new(move || Builder::new().set_cache_size(CACHE_BYTES).create(&file));
        let mut database = open().map_err(|error| failed(fault_of_opening(error)))?;
        let found = read(&database, complete.exists()).map_err(failed)?;
        // What is not compacted now is compacted at a later start.
        let _ = database.compact();
        let log = Self { open, database: Some(database), path, complete, refused: BTreeMap::new() };
        Ok((log, found))
    }

    /// Writes the head: the run begins, or goes on.
    pub(super) fn begin(&self, head: &Head) -> Result<(), LogError> {
        let written = self.database.as_ref().map_or(Ok(()), |database| write_head(database, head));
        written.map_err(|cause| self.failed("write", cause))
    }

    /// Makes facts durable, with those that were refused before, and notes for a later start whether it has.
    pub(super) async fn commit(&mut self, facts: Vec<Fact>) -> Result<(), LogError> {
        self.refused.extend(facts.into_iter().map(|fact| (fact.key(), fact)));
        let (open, database) = (self.open.clone(), self.database.take());
        let facts = self.refused.clone();
        let work = tokio::task::spawn_blocking(move || {
            let database = database.map_or_else(|| open().map_err(|error| error.to_string()), Ok)?;
            write_facts(&database, facts.values())?;
            Ok(database)
        });
        match work.await.unwrap_or_else(|panicked| Err(panicked.to_string())) {
            Ok(database) => {
                self.database = Some(database);
                self.refused.clear();
                self.mark(true);
                Ok(())
            }
            Err(cause) => {
                self.mark(false);
                Err(self.failed("write", cause))
            }
        }
    }

    /// Whether the disk has refused facts.
    pub(super) fn is_behind(&self) -> bool {
        !self.refused.is_empty()
    }

    /// A full disk allows to remove a file.
    fn mark(&self, is_complete: bool) {
        if is_complete == self.complete.exists() {
            return;
        }
        let marked = if is_complete {
            File::create(&self.complete).map(drop)
        } else {
            std::fs::remove_file(&self.complete)
        };
        if let Err(error) = marked.and_then(|()| sync_folder(&self.complete)) {
            tracing::warn!(%error, is_complete, "the log cannot be marked");
        }
    }

    fn failed(&self, action: &'static str, cause: String) -> LogError {
        LogError { path: self.path.clone(), fault: LogFault::Access { action, cause } }
    }
}

impl fmt::Debug for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Log").field("path", &self.path).finish_non_exhaustive()
    }
}

/// A kill while the database is made leaves a file that none can open: it takes its place when it is whole.
fn make_if_missing(path: &Path) -> Result<(), LogFault> {
    if path.exists() {
        return Ok(());
    }
    let fill = |file| {
        let made = FileBackend::new(file).and_then(|file| Builder::new().create_with_backend(file));
        made.map(drop).map_err(io::Error::other)
    };
    make_new(path, fill).map_err(|error| LogFault::Access { action: "make", cause: error.to_string() })
}

/// Says why a file cannot be opened before the database does, which knows fewer words.
fn check_readable(path: &Path) -> Result<(), LogFault> {
    match File::options().read(true).write(true).open(path) {
        Ok(file) => {
            let length = file.metadata().ok().filter(Metadata::is_file).map(|metadata| metadata.len());
            match length {
                None => Err(LogFault::Damaged("it is no file".to_owned())),
                // The database would take the file for a new one.
                Some(0) => Err(LogFault::Damaged("it is empty".to_owned())),
                Some(_) => Ok(()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(LogFault::Access { action: "open", cause: error.to_string() }),
    }
}

fn fault_of_opening(error: DatabaseError) -> LogFault {
    match error {
        DatabaseError::DatabaseAlreadyOpen => LogFault::InUse,
        DatabaseError::Storage(StorageError::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
            LogFault::Access { action: "open", cause: error.to_string() }
        }
        other => LogFault::Damaged(other.to_string()),
    }
}

fn read(database: &Database, is_complete: bool) -> Result<Option<Found>, LogFault> {
    let damaged = |error: &dyn fmt::Display| LogFault::Damaged(error.to_string());
    let begun = database.begin_read().map_err(|error| damaged(&error))?;
    let head = match begun.open_table(HEAD) {
        Ok(head) => head,
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        Err(error) => return Err(damaged(&error)),
    };
    let entry = |name| match head.get(name) {
        Ok(value) => Ok(value.map(|value| value.value().to_vec())),
        Err(error) => Err(damaged(&error)),
    };
    let missing = |name: &str| LogFault::Damaged(format!("it has no {name}"));
    let format = entry("format")?.and_then(|bytes| bytes.try_into().ok()).map(u64::from_be_bytes);
    let format = format.ok_or_else(|| missing("format"))?;
    if format > FORMAT {
        return Err(LogFault::Newer { theirs: format });
    }
    let peer = entry("peer")?.and_then(|bytes| bytes.try_into().ok()).ok_or_else(|| missing("key"))?;
    let manifest = entry("manifest")?.ok_or_else(|| missing("manifest"))?;
    let origin = entry("origin")?.map(|origin| serde_json::from_slice(&origin)).transpose();
    let origin = origin.map_err(|error| damaged(&error))?;
    let mut facts = Facts::default();
    match begun.open_table(FACTS) {
        Err(TableError::TableDoesNotExist(_)) => {}
        Err(error) => return Err(damaged(&error)),
        Ok(table) => {
            for entry in table.iter().map_err(|error| damaged(&error))? {
                let (_, value) = entry.map_err(|error| damaged(&error))?;
                facts.keep(serde_json::from_slice(value.value()).map_err(|error| damaged(&error))?);
            }
        }
    }
    Ok(Some(Found { head: Head { peer, manifest, origin }, facts, is_complete }))
}

fn write_head(database: &Database, head: &Head) -> Result<(), String> {
    let write = || -> Result<(), redb::Error> {
        let writing = database.begin_write()?;
        {
            let mut table = writing.open_table(HEAD)?;
            table.insert("format", FORMAT.to_be_bytes().as_slice())?;
            table.insert("peer", head.peer.as_slice())?;
            table.insert("manifest", head.manifest.as_slice())?;
            if let Some(origin) = &head.origin {
                let origin = serde_json::to_vec(origin).map_err(io::Error::from)?;
                table.insert("origin", origin.as_slice())?;
            }
        }
        writing.commit()?;
        Ok(())
    };
    write().map_err(|error| error.to_string())
}

fn write_facts<'a>(database: &Database, facts: impl Iterator<Item = &'a Fact>) -> Result<(), String> {
    let write = || -> Result<(), redb::Error> {
        let writing = database.begin_write()?;
        {
            let mut table = writing.open_table(FACTS)?;
            for fact in facts {
                let key = key_bytes(fact.key());
                if fact.is_removal() {
                    table.remove(key.as_slice())?;
                } else {
                    let value = serde_json::to_vec(fact).map_err(io::Error::from)?;
                    table.insert(key.as_slice(), value.as_slice())?;
                }
            }
        }
        writing.commit()?;
        Ok(())
    };
    write().map_err(|error| error.to_string())
}

/// The key of a fact in the file: a letter, and whose fact it is.
fn key_bytes(key: FactKey) -> Vec<u8> {
    let of = |letter: u8, rest: &[u8]| [&[letter], rest].concat();
    match key {
        FactKey::Run => of(b'r', &[]),
        FactKey::Member(peer) => of(b'm', &peer.0),
        FactKey::Former(peer) => of(b'f', &peer.0),
        FactKey::Evicted(peer) => of(b'e', &peer.0),
        FactKey::Keeper(peer) => of(b'k', &peer.0),
        FactKey::Block(block) => of(b'b', &block.0.to_be_bytes()),
    }
}
