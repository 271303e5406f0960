//! From text to token ids and back.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use super::{DataError, TokenStream};
use crate::config::Tokenizer;

/// Limit of a tokenizer file, bytes. The largest in use have some 20 MB.
const FILE_BYTES_MAX: u64 = 256 << 20;

/// A loaded tokenizer.
pub struct TextTokenizer {
    inner: Inner,
    digest: [u8; 32],
}

enum Inner {
    Bytes,
    File { tokenizer: Box<tokenizers::Tokenizer>, vocab: usize },
}

impl fmt::Debug for TextTokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TextTokenizer").field("vocab", &self.vocab()).finish_non_exhaustive()
    }
}

impl TextTokenizer {
    /// Loads the tokenizer that a run names; its path is relative to `base`.
    ///
    /// # Errors
    /// [`DataError::BadTokenizer`]: the file is missing, unreadable or not a tokenizer.
    pub fn load(which: &Tokenizer, base: &Path) -> Result<Self, DataError> {
        match which {
            Tokenizer::Bytes => Ok(Self { inner: Inner::Bytes, digest: *blake3::hash(b"bytes").as_bytes() }),
            Tokenizer::File(path) => Self::load_file(&base.join(path)),
        }
    }

    fn load_file(path: &Path) -> Result<Self, DataError> {
        let bad = |cause: String| DataError::BadTokenizer { path: path.to_owned(), cause };
        let mut bytes = Vec::new();
        let file = File::open(path).map_err(|cause| bad(cause.to_string()))?;
        file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(|cause| bad(cause.to_string()))?;
        if bytes.len() as u64 > FILE_BYTES_MAX {
            return Err(bad(format!("it has more than {FILE_BYTES_MAX} bytes")));
        }
        let tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|cause| bad(cause.to_string()))?;
        // Ids may have gaps, so the largest id does not follow from their number.
        let largest = tokenizer.get_vocab(true).into_values().max();
        let vocab = largest.ok_or_else(|| bad("it has no entries".to_owned()))? as usize + 1;
        let inner = Inner::File { tokenizer: Box::new(tokenizer), vocab };
        Ok(Self { inner, digest: *blake3::hash(&bytes).as_bytes() })
    }

    /// Entries of the vocabulary: one more than the largest id.
    #[must_use]
    pub fn vocab(&self) -> usize {
        match &self.inner {
            Inner::Bytes => 256,
            Inner::File { vocab, .. } => *vocab,
        }
    }

    /// blake3 of the tokenizer's file; of its name for `bytes`.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    /// The ids of `text`, without special tokens around it. For a tokenizer file, bytes that are not UTF-8 become the
    /// replacement character; `bytes` keeps them.
    ///
    /// # Errors
    /// Error of the `tokenizers` library, where a tokenizer file cannot encode the text.
    pub fn encode(&self, text: &[u8]) -> Result<TokenStream, String> {
        match &self.inner {
            Inner::Bytes => Ok(TokenStream::Bytes(text.to_vec())),
            Inner::File { tokenizer, .. } => {
                let text = String::from_utf8_lossy(text);
                let encoding =
                    tokenizer.encode_fast(text.as_ref(), false).map_err(|cause| cause.to_string())?;
                Ok(TokenStream::Ids(encoding.get_ids().to_vec()))
            }
        }
    }

    /// The text of `ids`; bytes that are not UTF-8 become the replacement character.
    ///
    /// # Errors
    /// Error of the `tokenizers` library, where a tokenizer file cannot decode the ids.
    pub fn decode(&self, ids: &[u32]) -> Result<String, String> {
        match &self.inner {
            Inner::Bytes => {
                let bytes: Vec<u8> = ids.iter().map(|&id| u8::try_from(id).unwrap_or(b'?')).collect();
                Ok(String::from_utf8_lossy(&bytes).into_owned())
            }
            Inner::File { tokenizer, .. } => tokenizer.decode(ids, true).map_err(|cause| cause.to_string()),
        }
    }
}
