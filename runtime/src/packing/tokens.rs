//! Token ids on the wire.

use crate::config::Run;

/// The token ids of a microbatch, checked against the run: `B` sequences of `T` tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tokens {
    inputs: Vec<u32>,
    targets: Vec<u32>,
}

impl Tokens {
    /// Input of the model: `[B, T]`.
    #[must_use]
    pub fn inputs(&self) -> &[u32] {
        &self.inputs
    }

    /// Labels: `inputs` shifted by one, `[B, T]`.
    #[must_use]
    pub fn targets(&self) -> &[u32] {
        &self.targets
    }
}

/// Reasons why token ids do not fit the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenError {
    /// The packed ids do not have the length the run demands.
    #[error("token ids in {found} bytes where the run demands {expected}")]
    Length {
        /// Bytes the run demands.
        expected: usize,
        /// Length of the packed ids, bytes.
        found: usize,
    },
    /// There are not `B * (T + 1)` ids.
    #[error("{found} token ids where the run demands {expected}")]
    Count {
        /// Ids the run demands.
        expected: usize,
        /// Number of ids.
        found: usize,
    },
    /// An id is outside the vocabulary.
    #[error("token id {id} is outside the vocabulary of {vocab}")]
    OutOfRange {
        /// The first such id.
        id: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
}

/// Packs the `B * (T + 1)` token ids of a microbatch: 1, 2 or 4 little-endian bytes each, the fewest that hold every
/// id of the vocabulary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TokenCodec {
    sequences: usize,
    context: usize,
    vocab: usize,
}

impl TokenCodec {
    /// The codec of a run.
    #[must_use]
    pub fn new(run: &Run) -> Self {
        Self {
            sequences: run.batch.sequences,
            context: run.model.max_position_embeddings,
            vocab: run.model.vocab_size,
        }
    }

    /// Number of ids of a microbatch: `B * (T + 1)`.
    #[must_use]
    pub fn ids(&self) -> usize {
        self.sequences * (self.context + 1)
    }

    /// Tokens of a sequence.
    #[must_use]
    pub fn context(&self) -> usize {
        self.context
    }

    /// Packs a text of at most `T` tokens as the first sequence of a microbatch. What follows it is padding, which no token
    /// of the text sees.
    ///
    /// # Errors
    /// If the text is longer, or an id does not fit the run.
    pub fn encode_text(&self, text: &[u32]) -> Result<Vec<u8>, TokenError> {
        if text.len() > self.context {
            return Err(TokenError::Count { expected: self.context, found: text.len() });
        }
        let mut ids = text.to_vec();
        ids.resize(self.ids(), 0);
        self.encode(&ids)
    }

    /// Bytes of one id.
    #[must_use]
    pub fn id_bytes(&self) -> usize {
        match self.vocab {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        }
    }

    /// Exact number of bytes of the packed ids.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        self.ids() * self.id_bytes()
    }

    /// Packs `ids[B, T + 1]`.
    ///
    /// # Errors
    /// If the number of ids or an id does not fit the run.
    pub fn encode(&self, ids: &[u32]) -> Result<Vec<u8>, TokenError> {
        self.check(ids)?;
        let bytes_per_id = self.id_bytes();
        Ok(ids.iter().flat_map(|id| id.to_le_bytes().into_iter().take(bytes_per_id)).collect())
    }

    /// Reads packed ids.
    ///
    /// # Errors
    /// If the length or an id does not fit the run.
    pub fn decode(&self, bytes: &[u8]) -> Result<Tokens, TokenError> {
        if bytes.len() != self.byte_len() {
            return Err(TokenError::Length { expected: self.byte_len(), found: bytes.len() });
        }
        let id = |bytes: &[u8]| bytes.iter().rev().fold(0, |id, &byte| (id << 8) | u32::from(byte));
        let ids: Vec<u32> = bytes.chunks_exact(self.id_bytes()).map(id).collect();
        self.tokens(&ids)
    }

    /// Splits `ids[B, T + 1]` into inputs and targets.
    ///
    /// # Errors
    /// If the number of ids or an id does not fit the run.
    pub fn tokens(&self, ids: &[u32]) -> Result<Tokens, TokenError> {
        self.check(ids)?;
        let sequences = || ids.chunks_exact(self.context + 1);
        Ok(Tokens {
            inputs: sequences().flat_map(|ids| &ids[..self.context]).copied().collect(),
            targets: sequences().flat_map(|ids| &ids[1..]).copied().collect(),
        })
    }

    fn check(&self, ids: &[u32]) -> Result<(), TokenError> {
        if ids.len() != self.ids() {
            return Err(TokenError::Count { expected: self.ids(), found: ids.len() });
        }
        match ids.iter().find(|&&id| id as usize >= self.vocab) {
            Some(&id) => Err(TokenError::OutOfRange { id, vocab: self.vocab }),
            None => Ok(()),
        }
    }
}
