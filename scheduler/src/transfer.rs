//! How a joining replica becomes like one that serves: a donor's state, in chunks that are checked one by one.
//!
//! The joiner's side is [`Download`]: it asks one donor for a [`Manifest`], then for the chunks, a few at a time. A
//! chunk that is not what the manifest says is the donor's fault; it, a donor that is silent and one that is gone
//! are followed by the next one, from a fresh manifest, for replicas of a stage are never quite alike. The donor's
//! side is [`Upload`]: it copies its state once, between two jobs, for everybody who asks meanwhile.
//!
//! Bytes and digests are the runtime's: a chunk comes in with the digest of what it holds, and goes out by number.

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

/// Which copy of its state a donor speaks of; it counts them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StateId(pub u64);

/// What joiners and donors say to each other. `P` is an opaque payload.
#[derive(Clone, Debug, PartialEq)]
pub enum TransferMessage<P> {
    /// To a donor: what is your state?
    Ask,
    /// To a joiner: this.
    Offer {
        /// Which copy.
        state: StateId,
        /// What is in it.
        manifest: Manifest,
    },
    /// To a donor: send me this chunk.
    Want {
        /// Of which copy.
        state: StateId,
        /// Which, from 0.
        chunk: u32,
    },
    /// To a joiner: the chunk.
    Chunk {
        /// Of which copy.
        state: StateId,
        /// Which, from 0.
        chunk: u32,
        /// Its bytes.
        payload: P,
    },
    /// To a joiner: not from me, or not from that copy any more.
    Declined,
    /// To a donor: I have all I wanted of this copy.
    Done {
        /// Which copy.
        state: StateId,
    },
}

impl<P> TransferMessage<P> {
    /// The payload of a chunk.
    pub fn payload(&self) -> Option<&P> {
        if let Self::Chunk { payload, .. } = self { Some(payload) } else { None }
    }

    /// The same message with another payload; one without takes none.
    pub fn with_payload<Q>(self, payload: Q) -> TransferMessage<Q> {
        match self {
            Self::Ask => TransferMessage::Ask,
            Self::Offer { state, manifest } => TransferMessage::Offer { state, manifest },
            Self::Want { state, chunk } => TransferMessage::Want { state, chunk },
            Self::Chunk { state, chunk, .. } => TransferMessage::Chunk { state, chunk, payload },
            Self::Declined => TransferMessage::Declined,
            Self::Done { state } => TransferMessage::Done { state },
        }
    }
}
