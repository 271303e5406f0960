//! The state of a stage as bytes for a joining replica. [`swarmline_scheduler::transfer`] decides when each chunk is
//! sent.

mod sketch;

use bytes::Bytes;
use swarmline_scheduler::transfer::{ChunkHash, ChunkSketch, Limits, Manifest, SketchSeed};
use swarmline_scheduler::{StageIndex, WeightVersion};

use super::engine::state_bytes_max;
use crate::config::{Run, limits};

pub use sketch::chunk_sketch;

const CHUNK_BYTES: u32 = limits::STATE_CHUNK_BYTES_MAX as u32;

/// Limits of the state and the chunks that a joiner of `stage` takes.
#[must_use]
pub fn download_limits(run: &Run, stage: StageIndex) -> Limits {
    Limits { bytes_max: state_bytes_max(run, stage), chunk_bytes_max: CHUNK_BYTES }
}

/// Length in bytes and BLAKE3 digest of a chunk.
#[must_use]
pub fn chunk_digest(chunk: &Bytes) -> (u64, ChunkHash) {
    (chunk.len() as u64, *blake3::hash(chunk).as_bytes())
}

/// A donor's copy of its state, for joiners to download.
#[derive(Clone, Debug)]
pub struct StateCopy {
    manifest: Manifest,
    bytes: Bytes,
}

impl StateCopy {
    /// A copy of the exported state `bytes` with `version` optimizer steps; `None` if it has more chunks than a
    /// manifest may name.
    #[must_use]
    pub fn new(version: WeightVersion, bytes: Bytes) -> Option<Self> {
        let hashes: Vec<_> =
            bytes.chunks(CHUNK_BYTES as usize).map(|chunk| *blake3::hash(chunk).as_bytes()).collect();
        let fits = hashes.len() <= limits::STATE_CHUNKS_MAX;
        let manifest = Manifest { version, bytes: bytes.len() as u64, chunk_bytes: CHUNK_BYTES, hashes };
        fits.then_some(Self { manifest, bytes })
    }

    /// Length of the state and digests of its chunks.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The projections of every chunk. Slow for a long state.
    #[must_use]
    pub fn sketch(&self, seed: SketchSeed) -> Vec<ChunkSketch> {
        let chunks = (0..).zip(self.bytes.chunks(CHUNK_BYTES as usize));
        chunks.map(|(chunk, bytes)| sketch::projections(bytes, chunk, seed)).collect()
    }

    /// `bytes` bytes from `offset` on, without a copy; fewer at the end of the state.
    #[must_use]
    pub fn chunk(&self, offset: u64, bytes: u32) -> Bytes {
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.bytes.len());
        let end = start.saturating_add(bytes as usize).min(self.bytes.len());
        self.bytes.slice(start..end)
    }
}

/// The state that a joiner downloads.
#[derive(Debug, Default)]
pub struct StateInbox {
    bytes: Vec<u8>,
}

impl StateInbox {
    /// Makes room for a state of this length, which the scheduler has compared with the limits. Chunks stored before
    /// are dropped.
    ///
    /// # Errors
    /// If there is no memory for the state.
    pub fn begin(&mut self, bytes: u64) -> swarmline_kernels::Result<()> {
        let bytes = usize::try_from(bytes).unwrap_or(usize::MAX);
        self.bytes.clear();
        let refused = |_| swarmline_kernels::Error::Device(format!("no memory for a state of {bytes} bytes"));
        self.bytes.try_reserve_exact(bytes).map_err(refused)?;
        self.bytes.resize(bytes, 0);
        Ok(())
    }

    /// Stores a verified chunk at `offset`. A chunk beyond the end of the state is dropped.
    pub fn store(&mut self, offset: u64, chunk: &[u8]) {
        let place = usize::try_from(offset).ok().and_then(|start| {
            let end = start.checked_add(chunk.len())?;
            self.bytes.get_mut(start..end)
        });
        if let Some(place) = place {
            place.copy_from_slice(chunk);
        }
    }

    /// The bytes of the state, zeros for chunks that were not stored.
    #[must_use]
    pub fn into_bytes(self) -> Bytes {
        self.bytes.into()
    }
}

#[cfg(test)]
mod tests;
