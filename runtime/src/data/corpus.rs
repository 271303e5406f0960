//! The text of a run, tokenised and split.

use std::path::Path;

use tracing::warn;

use super::files::{TextFile, TextFiles};
use super::split::{Piece, Sides, split};
use super::{DataError, TextTokenizer, TokenStream, bigram_loss};
use crate::config::Run;

/// The text of a run: one stream of tokens to train on, one held out.
#[derive(Debug)]
pub struct Corpus {
    sides: Sides,
    vocab: usize,
    files: usize,
    skipped: usize,
    text_bytes: u64,
    digest: [u8; 32],
}

impl Corpus {
    /// Reads the text that `run.data` names, relative to `base`, the folder of the run file.
    ///
    /// Files are read in the order named, in a directory by name. Hidden files and links inside directories are
    /// skipped; binary files inside directories are skipped, counted and logged. Text loses its byte order mark and
    /// carriage returns at line ends. The same text and seed give the same corpus under any paths.
    ///
    /// A file is held out by a hash of the run seed and its text; see [`Corpus::heldout`].
    ///
    /// # Errors
    /// A path that is missing, unreadable, empty or not text; a directory without a usable file; a tokenizer that
    /// cannot be loaded or does not fit the model's vocabulary; less than one sequence on either side.
    pub fn open(run: &Run, base: &Path) -> Result<Self, DataError> {
        let tokenizer = TextTokenizer::load(&run.data.tokenizer, base)?;
        let TextFiles { files, skipped, .. } = TextFiles::read(&run.data, base)?;
        if skipped > 0 {
            warn!(skipped, "binary files in data.paths are left out");
        }
        let digest = digest_of(&files);
        let text_bytes = files.iter().map(|file| file.text.len() as u64).sum();
        let count = files.len();
        let vocab = run.model.vocab_size;
        let pieces =
            files.into_iter().map(|file| tokenise(&tokenizer, file, vocab)).collect::<Result<_, _>>()?;
        let sides = split(pieces, run.seed, run.data.heldout, run.model.max_position_embeddings + 1)?;
        Ok(Self { sides, vocab, files: count, skipped, text_bytes, digest })
    }

    /// Tokens to train on.
    #[must_use]
    pub fn train(&self) -> &TokenStream {
        &self.sides.train
    }

    /// Tokens held out for evaluation: whole files; or the last part of the largest file, if whole files miss the share
    /// by far or leave either side without a sequence.
    #[must_use]
    pub fn heldout(&self) -> &TokenStream {
        &self.sides.heldout
    }

    /// Number of text files read.
    #[must_use]
    pub fn files(&self) -> usize {
        self.files
    }

    /// Number of binary files inside directories that were skipped.
    #[must_use]
    pub fn skipped(&self) -> usize {
        self.skipped
    }

    /// Length of the text, bytes.
    #[must_use]
    pub fn text_bytes(&self) -> u64 {
        self.text_bytes
    }

    /// blake3 of the text, file by file in order, independent of paths.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// [`bigram_loss`] of the held-out text, nats per token: a model with a lower loss has learned more than pairs of
    /// tokens.
    #[must_use]
    pub fn bigram_loss(&self) -> f64 {
        bigram_loss(self.train().iter(), self.heldout().iter(), self.vocab)
    }
}

fn tokenise(tokenizer: &TextTokenizer, file: TextFile, vocab: usize) -> Result<Piece, DataError> {
    let TextFile { path, text } = file;
    let tokens = match tokenizer.encode(&text) {
        Ok(tokens) => tokens,
        Err(cause) => return Err(DataError::Unencodable { path, cause }),
    };
    if let Some(id) = tokens.iter().find(|&id| id as usize >= vocab) {
        return Err(DataError::OutsideVocabulary { path, id, vocab });
    }
    Ok(Piece { digest: *blake3::hash(&text).as_bytes(), tokens })
}

fn digest_of(files: &[TextFile]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for file in files {
        hasher.update(&(file.text.len() as u64).to_le_bytes()).update(&file.text);
    }
    *hasher.finalize().as_bytes()
}
