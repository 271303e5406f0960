//! A complete checkpoint. Every file is checked against the manifest before its bytes are used.

use std::io;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use tempfile::TempDir;

use super::error::{CheckpointError, Fault};
use super::manifest::Manifest;
use super::place::{Length, Place};

/// Name of the manifest in the folder of a checkpoint.
pub(super) const MANIFEST: &str = "manifest.json";
/// Limit of a manifest, bytes: more than one of the most stages and blocks has.
const MANIFEST_BYTES_MAX: u64 = 64 << 20;
/// Limit of a tokenizer file, bytes.
const TOKENIZER_BYTES_MAX: u64 = 1 << 30;

/// A complete checkpoint of a target.
#[derive(Clone, Debug)]
pub struct Checkpoint {
    pub(super) place: Place,
    pub(super) folder: String,
    pub(super) manifest: Manifest,
}

/// The files of a checkpoint in a local folder, each as it was written.
#[derive(Debug)]
pub struct LocalCheckpoint {
    folder: PathBuf,
    manifest: Manifest,
    /// The folder, if the checkpoint is in a bucket: it is removed with this.
    _copy: Option<TempDir>,
}

impl LocalCheckpoint {
    /// The folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the checkpoint contains, and where the run stood.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Checkpoint {
    /// Whether a local folder is a complete checkpoint: it has a manifest.
    #[must_use]
    pub fn is_at(folder: &Path) -> bool {
        folder.join(MANIFEST).is_file()
    }

    /// Reads the manifest of a folder.
    pub(super) async fn open(place: &Place, folder: String) -> Result<Self, CheckpointError> {
        let read = place.read(&folder, MANIFEST, Length::AtMost(MANIFEST_BYTES_MAX)).await;
        let bytes = read.map_err(|error| match error.fault {
            Fault::Missing => CheckpointError { fault: Fault::Incomplete, ..error },
            _ => error,
        })?;
        let manifest = Manifest::from_bytes(&bytes);
        let failed = |fault| CheckpointError::new(place.display(&folder, MANIFEST), fault);
        Ok(Self { manifest: manifest.map_err(failed)?, place: place.clone(), folder })
    }

    /// Its folder: a path or a URL.
    #[must_use]
    pub fn location(&self) -> String {
        format!("{}/{}", self.place.name, self.folder)
    }

    /// What it contains, and where the run stood.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Checks that the run of the checkpoint has the digest `ours`, hexadecimal.
    ///
    /// # Errors
    /// [`Fault::OtherRun`].
    pub fn check_run(&self, ours: &str) -> Result<(), CheckpointError> {
        self.manifest.check_run(ours).map_err(|fault| CheckpointError::new(self.location(), fault))
    }

    /// The state of a stage: a safetensors file with weights, moments and counters.
    ///
    /// # Errors
    /// If the checkpoint has no such stage, or the file is missing, cannot be read or is not the one that was written.
    pub async fn read_stage(&self, stage: u16) -> Result<Bytes, CheckpointError> {
        let stages = &self.manifest.stages;
        let Some(file) = stages.iter().find(|file| file.stage == stage) else {
            let has = stages.iter().map(|file| file.stage).collect();
            return Err(CheckpointError::new(self.location(), Fault::NoStage { stage, has }));
        };
        self.read(&file.file, Length::Exactly(file.bytes), &file.blake3).await
    }

    /// The tokenizer file; `None` if the checkpoint has none.
    ///
    /// # Errors
    /// If the file is missing, cannot be read or is not the one that was written.
    pub async fn read_tokenizer(&self) -> Result<Option<Bytes>, CheckpointError> {
        let Some(tokenizer) = &self.manifest.tokenizer else { return Ok(None) };
        let length = Length::AtMost(TOKENIZER_BYTES_MAX);
        self.read(&tokenizer.file, length, &tokenizer.blake3).await.map(Some)
    }

    /// Reads and checks every file of the checkpoint.
    ///
    /// # Errors
    /// The first file that is missing, cannot be read or is not the one that was written.
    pub async fn verify(&self) -> Result<(), CheckpointError> {
        for stage in &self.manifest.stages {
            self.read_stage(stage.stage).await?;
        }
        self.read_tokenizer().await.map(drop)
    }

    /// Reads and checks every file of the checkpoint. Those of a bucket are copied to a folder for temporary files.
    ///
    /// # Errors
    /// As [`Checkpoint::verify`], or the folder takes no files.
    pub async fn into_local(self) -> Result<LocalCheckpoint, CheckpointError> {
        if let Some(folder) = self.place.local_folder(&self.folder) {
            self.verify().await?;
            return Ok(LocalCheckpoint { folder, manifest: self.manifest, _copy: None });
        }
        let uncopied = |error: io::Error| {
            let fault = Fault::Access { action: "copy", cause: error.to_string() };
            CheckpointError::new(self.location(), fault)
        };
        let copy = TempDir::with_prefix("swarmline-").map_err(uncopied)?;
        for stage in &self.manifest.stages {
            let bytes = self.read_stage(stage.stage).await?;
            tokio::fs::write(copy.path().join(&stage.file), bytes).await.map_err(uncopied)?;
        }
        if let Some((tokenizer, bytes)) = self.manifest.tokenizer.as_ref().zip(self.read_tokenizer().await?) {
            tokio::fs::write(copy.path().join(&tokenizer.file), bytes).await.map_err(uncopied)?;
        }
        Ok(LocalCheckpoint { folder: copy.path().to_owned(), manifest: self.manifest, _copy: Some(copy) })
    }

    async fn read(&self, name: &str, length: Length, digest: &str) -> Result<Bytes, CheckpointError> {
        let bytes = self.place.read(&self.folder, name, length).await?;
        let found = blake3::hash(&bytes).to_hex();
        if *found == *digest {
            return Ok(bytes);
        }
        let fault = Fault::Damaged { named: digest.to_owned(), found: found.to_string() };
        Err(CheckpointError::new(self.place.display(&self.folder, name), fault))
    }
}
