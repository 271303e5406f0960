//! The manifest of a state, and the limits of a joiner.

use crate::WeightVersion;

/// Digest of a chunk. The runtime chooses the hash; equal bytes have equal digests.
pub type ChunkHash = [u8; 32];

/// The description of a donor's copy of its state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Optimizer steps of its weights.
    pub version: WeightVersion,
    /// Its length, bytes.
    pub bytes: u64,
    /// Length of every chunk but the last, bytes.
    pub chunk_bytes: u32,
    /// Digests of its chunks, in order.
    pub hashes: Vec<ChunkHash>,
}

/// The largest state and chunk that a joiner takes. Both follow from the run: a larger state is no state of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Length of a state, bytes.
    pub bytes_max: u64,
    /// Length of a chunk, bytes.
    pub chunk_bytes_max: u32,
}

/// The reason why a manifest describes no state of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// The state or its chunks have no bytes.
    #[error("it is empty")]
    Empty,
    /// The state is longer than the run allows.
    #[error("a state of {bytes} bytes where the run allows {allowed}")]
    TooLong {
        /// Length announced, bytes.
        bytes: u64,
        /// Length allowed, bytes.
        allowed: u64,
    },
    /// The chunks are longer than a frame.
    #[error("chunks of {bytes} bytes where {allowed} are allowed")]
    ChunkTooLong {
        /// Length announced, bytes.
        bytes: u32,
        /// Length allowed, bytes.
        allowed: u32,
    },
    /// The number of digests is not the number of chunks.
    #[error("{found} digests for {expected} chunks")]
    Hashes {
        /// Number of chunks.
        expected: u64,
        /// Number of digests.
        found: usize,
    },
}

impl Manifest {
    /// Number of chunks; 0 if they have no length.
    #[must_use]
    pub fn chunks(&self) -> u32 {
        u32::try_from(self.chunks_announced()).unwrap_or(u32::MAX)
    }

    /// Offset of a chunk in the state, bytes.
    #[must_use]
    pub fn offset(&self, chunk: u32) -> u64 {
        u64::from(chunk).saturating_mul(u64::from(self.chunk_bytes))
    }

    /// Length of a chunk, bytes; 0 behind the last chunk.
    #[must_use]
    pub fn chunk_len(&self, chunk: u32) -> u32 {
        let rest = self.bytes.saturating_sub(self.offset(chunk)).min(u64::from(self.chunk_bytes));
        u32::try_from(rest).unwrap_or(self.chunk_bytes)
    }

    /// Checks that a joiner may reserve memory for the state.
    ///
    /// # Errors
    /// If the manifest contradicts itself or exceeds `limits`.
    pub fn check(&self, limits: &Limits) -> Result<(), ManifestError> {
        if self.bytes == 0 || self.chunk_bytes == 0 {
            return Err(ManifestError::Empty);
        }
        if self.bytes > limits.bytes_max {
            return Err(ManifestError::TooLong { bytes: self.bytes, allowed: limits.bytes_max });
        }
        if self.chunk_bytes > limits.chunk_bytes_max {
            let (bytes, allowed) = (self.chunk_bytes, limits.chunk_bytes_max);
            return Err(ManifestError::ChunkTooLong { bytes, allowed });
        }
        let (expected, found) = (self.chunks_announced(), self.hashes.len());
        if u32::try_from(expected).is_err() || expected != found as u64 {
            return Err(ManifestError::Hashes { expected, found });
        }
        Ok(())
    }

    fn chunks_announced(&self) -> u64 {
        if self.chunk_bytes == 0 { 0 } else { self.bytes.div_ceil(u64::from(self.chunk_bytes)) }
    }
}
