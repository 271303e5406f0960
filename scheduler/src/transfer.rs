//! How a joining replica gets the state of one that serves: from a donor, in chunks that are checked one by one.
//!
//! The joiner's side is [`Download`]: it asks one donor for a [`Manifest`], then for the chunks, a few at a time. A chunk
//! that is not what the manifest says is the donor's fault. A donor that lies, is silent or is lost is followed by the next
//! one, from a fresh manifest, for replicas of a stage are never quite alike. The donor's side is [`Upload`]: it copies its
//! state once, between two jobs, for all joiners that ask meanwhile.
//!
//! Bytes are the runtime's: a chunk comes in with the digest of its bytes, and goes out by number.

mod download;
mod manifest;
#[cfg(test)]
mod tests;
mod upload;

pub use download::{
    ASK_AGAIN_AFTER, Action as DownloadAction, CHUNKS_IN_FLIGHT_MAX, Download, Event as DownloadEvent,
    Note as DownloadNote, RETRIES_MAX, Reason as DownloadReason, SILENCE_MAX,
};
pub use manifest::{ChunkHash, Limits, Manifest, ManifestError};
pub use upload::{
    Action as UploadAction, Event as UploadEvent, Note as UploadNote, Reason as UploadReason,
    SESSION_SILENCE_MAX, SESSIONS_MAX, STATE_AGE_MAX, Upload,
};

/// Number of a copy that a donor made of its state; the donor counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub u64);

/// What joiners and donors say to each other.
#[derive(Clone, Debug, PartialEq)]
pub enum TransferMessage {
    /// To a donor: what is your state?
    Request,
    /// To a joiner: a copy is ready.
    Offer {
        /// The copy.
        state: StateId,
        /// Its length and the digests of its chunks.
        manifest: Manifest,
    },
    /// To a donor: send this chunk.
    ChunkRequest {
        /// The copy.
        state: StateId,
        /// Number of the chunk, from 0.
        chunk: u32,
    },
    /// To a joiner, with the bytes: a chunk.
    Chunk {
        /// The copy.
        state: StateId,
        /// Number of the chunk, from 0.
        chunk: u32,
    },
    /// To a joiner: not from this donor, or no longer from that copy.
    Declined,
    /// To a donor: the sender has all it wanted of this copy.
    Done {
        /// The copy.
        state: StateId,
    },
}
