//! The transfer of a state from a donor, a replica that serves, to a joiner, in chunks that are checked one by one. A
//! keeper takes states as joiners do.
//!
//! The joiner's machine is [`Download`]: it asks a few donors for a [`Manifest`], compares their states by sketches
//! (`sketch`), and then asks for the chunks, a few at a time, each from a donor that has a majority near it. A chunk that
//! differs from the manifest or the sketch is the donor's fault. If a donor lies, is silent or is lost, the joiner begins
//! again with the others and new manifests, for replicas of a stage are never quite alike. The donor's machine is
//! [`Upload`]: it copies its state once, between two jobs, for all joiners that ask meanwhile.
//!
//! The runtime has the bytes: a chunk comes in with the digest of its bytes, and goes out by number.

mod comparison;
mod download;
mod manifest;
mod sketch;
#[cfg(test)]
mod tests;
mod upload;

pub use comparison::COMPARED_MAX;
pub use download::{
    ASK_AGAIN_AFTER, Action as DownloadAction, CHUNKS_IN_FLIGHT_MAX, Download, Event as DownloadEvent,
    Note as DownloadNote, PARDON_AFTER, RETRIES_MAX, Reason as DownloadReason, SILENCE_MAX,
};
pub use manifest::{ChunkHash, Limits, Manifest, ManifestError};
pub use sketch::{ChunkSketch, SKETCH_NUMBERS, SketchSecret, SketchSeed};
pub use upload::{
    AWAITED_MAX, Action as UploadAction, BYTES_PER_SECOND_MIN, Event as UploadEvent, Note as UploadNote,
    Reason as UploadReason, SENDINGS_MAX, SESSION_SILENCE_MAX, SESSIONS_MAX, SKETCHES_MAX, STATE_AGE_MAX,
    Upload,
};

use crate::Duration;

/// Number of a copy that a donor made of its state; the donor counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub u64);

/// The reason why a donor gives nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeclineReason {
    /// It serves others first, or no longer has the copy.
    Busy,
    /// By its table the asker is not placed on the stage, and keeps no state that the policy of the run gives to it.
    NotEntitled,
}

/// A message between a joiner and a donor.
#[derive(Clone, Debug, PartialEq)]
pub enum TransferMessage {
    /// To a donor: a request for the manifest of its state.
    Request,
    /// To a donor: a keeper will ask for the state as it is before the first gradients at this clock of the run, the number
    /// of microbatches before theirs. Said again, the copy is kept further.
    CopyAt {
        /// The clock.
        clock: u64,
    },
    /// To a keeper: the donor makes no copy at this clock. It has gone past it, makes one for another keeper or has just made
    /// one, or does not have the keeper in its table.
    CopyDeclined {
        /// The clock.
        clock: u64,
        /// It has gone past it.
        is_late: bool,
    },
    /// To a joiner: a copy is ready.
    Offer {
        /// Number of the copy.
        state: StateId,
        /// Its length and the digests of its chunks.
        manifest: Manifest,
        /// Time since the donor's state was as in the copy.
        age: Duration,
        /// The clock of the run that a keeper had named for it; `None` for the copy that is made when a joiner asks.
        clock: Option<u64>,
    },
    /// To a donor: a request for the projections of every chunk.
    SketchRequest {
        /// Number of the copy.
        state: StateId,
        /// Seed of the projections.
        seed: SketchSeed,
    },
    /// To a joiner: the projections of every chunk, in order.
    Sketch {
        /// Number of the copy.
        state: StateId,
        /// Seed of the projections.
        seed: SketchSeed,
        /// The projections.
        sketch: Vec<ChunkSketch>,
    },
    /// To a donor: a request for one chunk.
    ChunkRequest {
        /// Number of the copy.
        state: StateId,
        /// Number of the chunk, from 0.
        chunk: u32,
    },
    /// To a joiner: a chunk, with its bytes as payload.
    Chunk {
        /// Number of the copy.
        state: StateId,
        /// Number of the chunk, from 0.
        chunk: u32,
    },
    /// To a joiner: it gets no state, or no more of this copy.
    Declined(DeclineReason),
    /// To a donor: the sender needs no more of this copy.
    Done {
        /// Number of the copy.
        state: StateId,
    },
}
