//! The checkpoints of a target.

use std::cmp::Reverse;
use std::fs::File;
use std::path::Path;

use super::error::{CheckpointError, Fault};
use super::place::Place;
use super::reading::{Checkpoint, MANIFEST};
use super::writer::Writer;

/// Beginning of the names of folders of checkpoints.
const FOLDER: &str = "checkpoint-";
/// Digits of the microbatches in such a name.
const DIGITS: usize = 12;

/// A place for the checkpoints of a run.
#[derive(Clone, Debug)]
pub struct Store {
    place: Place,
}

/// Keeps other keepers from a target, until it is dropped or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Option<File>,
}

/// The complete checkpoints of a target.
#[derive(Debug, Default)]
pub struct Found {
    /// Those whose manifest can be read, the newest first: by launch, then by microbatches.
    pub checkpoints: Vec<Checkpoint>,
    /// The faults of the others.
    pub broken: Vec<CheckpointError>,
}

impl Store {
    /// Whether a local folder has checkpoints, complete or not.
    #[must_use]
    pub fn is_at(folder: &Path) -> bool {
        let entries = folder.read_dir().into_iter().flatten().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .any(|name| microbatches(&name).is_some())
    }

    /// The target at `location`, a path or a URL, and the folder of a checkpoint in it, if `location` is that of one: by its
    /// name, complete or not, or as a local folder with a manifest.
    #[must_use]
    pub fn split(location: &str) -> (&str, Option<&str>) {
        let location = location.trim_end_matches('/');
        let (target, name) = match location.rsplit_once('/') {
            Some(("", name)) => ("/", name),
            Some(parts) => parts,
            None => (".", location),
        };
        let is_checkpoint = microbatches(name).is_some() || Checkpoint::is_at(Path::new(location));
        if is_checkpoint { (target, Some(name)) } else { (location, None) }
    }

    /// A local folder, which is made if it does not exist, or a bucket: `s3://BUCKET/PATH`, `gs://BUCKET/PATH`. Buckets
    /// take credentials from the environment only.
    ///
    /// # Errors
    /// If the target is neither, or the folder cannot be made.
    pub fn open(target: &str) -> Result<Self, CheckpointError> {
        Ok(Self { place: Place::open(target)? })
    }

    /// Writes a small file and removes it, to learn at once whether the target takes files.
    ///
    /// # Errors
    /// If it does not.
    pub async fn try_write(&self) -> Result<(), CheckpointError> {
        self.place.try_write().await
    }

    /// Keeps other keepers from a local folder, and removes what a killed one has left incomplete. A bucket has no locks:
    /// there keepers may share a target, and what is incomplete goes when a later checkpoint is complete.
    ///
    /// # Errors
    /// [`Fault::Locked`], or the folder cannot be locked, listed or cleaned.
    pub async fn lock(&self) -> Result<Lock, CheckpointError> {
        let lock = self.place.lock()?;
        if lock.is_some() {
            for (_, folder) in self.folders().await? {
                if !self.place.has(&folder, MANIFEST).await? {
                    self.place.remove(&folder, MANIFEST).await?;
                }
            }
        }
        Ok(Lock { _file: lock })
    }

    /// The target as a person wrote it.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// The complete checkpoints. Only manifests are read.
    ///
    /// # Errors
    /// If the target cannot be listed.
    pub async fn checkpoints(&self) -> Result<Found, CheckpointError> {
        let mut found = Found::default();
        for (_, folder) in self.folders().await? {
            if !self.place.has(&folder, MANIFEST).await? {
                continue;
            }
            match Checkpoint::open(&self.place, folder).await {
                Ok(checkpoint) => found.checkpoints.push(checkpoint),
                Err(error) => found.broken.push(error),
            }
        }
        found.checkpoints.sort_by_key(|checkpoint| Reverse(checkpoint.manifest.age()));
        Ok(found)
    }

    /// The checkpoint at `location`: its own folder, or a target, of which it is the newest. Its files are not checked.
    ///
    /// # Errors
    /// If there is none, or one whose manifest cannot be read: it may be newer.
    pub async fn find(location: &str) -> Result<Checkpoint, CheckpointError> {
        let (target, name) = Self::split(location);
        if !target.contains("://") && !Path::new(target).is_dir() {
            return Err(CheckpointError::new(location, Fault::Empty));
        }
        let store = Self::open(target)?;
        if let Some(name) = name {
            return store.checkpoint(name).await;
        }
        let Found { checkpoints, broken } = store.checkpoints().await?;
        match (broken.into_iter().next(), checkpoints.into_iter().next()) {
            (Some(fault), _) => Err(fault),
            (None, Some(newest)) => Ok(newest),
            (None, None) => Err(CheckpointError::new(location, Fault::Empty)),
        }
    }

    /// The newest checkpoint of the run with the digest `run`, hexadecimal, all of whose files are as they were written,
    /// and the faults of those that are newer.
    ///
    /// # Errors
    /// If the target cannot be listed or has no such checkpoint. The first fault of a newer one is the cause.
    pub async fn newest(&self, run: &str) -> Result<(Checkpoint, Vec<CheckpointError>), CheckpointError> {
        let Found { checkpoints, mut broken } = self.checkpoints().await?;
        for checkpoint in checkpoints {
            let sound = async {
                checkpoint.check_run(run)?;
                checkpoint.verify().await
            };
            match sound.await {
                Ok(()) => return Ok((checkpoint, broken)),
                Err(error) => broken.push(error),
            }
        }
        let empty = || CheckpointError::new(self.name(), Fault::Empty);
        Err(broken.into_iter().next().unwrap_or_else(empty))
    }

    /// The checkpoint in a folder, by its name without the target.
    ///
    /// # Errors
    /// If it has no manifest, or one that cannot be used.
    pub async fn checkpoint(&self, folder: &str) -> Result<Checkpoint, CheckpointError> {
        Checkpoint::open(&self.place, folder.to_owned()).await
    }

    /// Begins a checkpoint after so many microbatches.
    #[must_use]
    pub fn begin(&self, microbatches: u64) -> Writer {
        Writer::new(self.place.clone(), format!("{FOLDER}{microbatches:0DIGITS$}"))
    }

    /// Of the checkpoints of a launch, removes those that are older than the newest `keep` complete ones, at least one, and
    /// what is not complete and has fewer microbatches than the newest. Removes nothing before one is complete.
    ///
    /// # Errors
    /// If the target cannot be listed, or a file cannot be removed.
    pub async fn prune(&self, keep: usize, launch: u64) -> Result<(), CheckpointError> {
        let found = self.checkpoints().await?;
        let mut own = found.checkpoints.iter().filter(|checkpoint| checkpoint.manifest.launch == launch);
        let Some(newest) = own.next().map(|checkpoint| checkpoint.manifest.microbatches) else {
            return Ok(());
        };
        for checkpoint in own.skip(keep.saturating_sub(1)) {
            self.place.remove(&checkpoint.folder, MANIFEST).await?;
        }
        for (microbatches, folder) in self.folders().await? {
            if microbatches < newest && !self.place.has(&folder, MANIFEST).await? {
                self.place.remove(&folder, MANIFEST).await?;
            }
        }
        Ok(())
    }

    /// Folders of checkpoints with their microbatches, the newest first, complete or not.
    async fn folders(&self) -> Result<Vec<(u64, String)>, CheckpointError> {
        let folders = self.place.folders().await?;
        let mut folders: Vec<(u64, String)> =
            folders.into_iter().filter_map(|folder| Some((microbatches(&folder)?, folder))).collect();
        folders.sort_unstable_by_key(|(microbatches, _)| Reverse(*microbatches));
        Ok(folders)
    }
}

/// Microbatches that the name of a folder says; `None` if it is no folder of a checkpoint.
fn microbatches(folder: &str) -> Option<u64> {
    let digits = folder.strip_prefix(FOLDER)?;
    let all = digits.len() >= DIGITS && digits.bytes().all(|byte| byte.is_ascii_digit());
    digits.parse().ok().filter(|_| all)
}
