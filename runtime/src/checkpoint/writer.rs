//! A checkpoint that is being written: its files first, the manifest last.

use bytes::Bytes;

use super::error::CheckpointError;
use super::manifest::{Manifest, StageFile, TokenizerFile};
use super::place::Place;
use super::reading::{Checkpoint, MANIFEST};

/// Name of the tokenizer in the folder of a checkpoint.
const TOKENIZER: &str = "tokenizer.json";
/// Digits of a digest in the name of a stage file.
const NAME_DIGITS: usize = 16;

/// A checkpoint without a manifest yet. Dropped, it leaves files that no reader takes for a checkpoint.
#[derive(Debug)]
pub struct Writer {
    place: Place,
    folder: String,
    stages: Vec<StageFile>,
    tokenizer: Option<TokenizerFile>,
}

impl Writer {
    pub(super) fn new(place: Place, folder: String) -> Self {
        Self { place, folder, stages: Vec::new(), tokenizer: None }
    }

    /// Writes the state of a stage, after `steps` optimizer steps. A second state of a stage replaces the first.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub async fn stage(&mut self, stage: u16, steps: u64, state: Bytes) -> Result<(), CheckpointError> {
        let digest = blake3::hash(&state).to_hex();
        let file = format!("stage-{stage:03}-{}.safetensors", &digest[..NAME_DIGITS]);
        let bytes = state.len() as u64;
        self.place.write(&self.folder, &file, state).await?;
        self.stages.retain(|file| file.stage != stage);
        self.stages.push(StageFile { stage, file, bytes, blake3: digest.to_string(), steps });
        self.stages.sort_unstable_by_key(|file| file.stage);
        Ok(())
    }

    /// Writes the tokenizer file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn tokenizer(&mut self, bytes: Bytes) -> Result<(), CheckpointError> {
        let blake3 = blake3::hash(&bytes).to_string();
        self.place.write(&self.folder, TOKENIZER, bytes).await?;
        self.tokenizer = Some(TokenizerFile { file: TOKENIZER.to_owned(), blake3 });
        Ok(())
    }

    /// Writes the manifest: from now on the checkpoint is complete. Of `about` the files are filled in.
    ///
    /// # Errors
    /// If it cannot be written; another attempt may succeed.
    pub async fn complete(&mut self, about: Manifest) -> Result<Checkpoint, CheckpointError> {
        let Self { place, folder, stages, tokenizer } = self;
        let manifest = Manifest { stages: stages.clone(), tokenizer: tokenizer.clone(), ..about };
        let failed = |fault| CheckpointError::new(place.display(folder, MANIFEST), fault);
        let bytes = manifest.to_bytes().map_err(failed)?;
        place.write(folder, MANIFEST, bytes.into()).await?;
        Ok(Checkpoint { place: place.clone(), folder: folder.clone(), manifest })
    }
}
