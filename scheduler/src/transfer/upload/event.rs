//! Events and actions of a donor.

use super::super::{ChunkSketch, Manifest, SketchSeed, StateId, TransferMessage};
use crate::{Instance, PeerId};

/// An event of a donor.
#[derive(Clone, Debug)]
pub enum Event {
    /// The peers that may ask: the replicas that the coordinator has placed on this stage, and keepers of it.
    Joiners(Vec<Instance>),
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message.
        message: TransferMessage,
    },
    /// A job that computes gradients of the weights is about to begin, at this clock of the run: the number of microbatches
    /// before its own.
    Begins {
        /// The clock.
        clock: u64,
    },
    /// The reply to [`Action::Export`].
    Exported {
        /// Number of the copy.
        state: StateId,
        /// Its manifest; `None` if no copy could be made.
        manifest: Option<Manifest>,
    },
    /// The reply to [`Action::Sketch`].
    Sketched {
        /// The joiner.
        to: Instance,
        /// Number of the copy.
        state: StateId,
        /// Seed of the projections.
        seed: SketchSeed,
        /// The projections of every chunk, in order.
        sketch: Vec<ChunkSketch>,
    },
    /// The connection to a peer is gone.
    PeerLost(Instance),
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that a donor asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Copy the whole state as it is after the jobs that were begun before, and keep the bytes until [`Action::Release`].
    /// Reply: [`Event::Exported`]. At most two copies exist at a time.
    Export {
        /// Number of the copy.
        state: StateId,
    },
    /// Send the message.
    Send {
        /// The joiner.
        to: PeerId,
        /// The message.
        message: TransferMessage,
    },
    /// Send a [`TransferMessage::Chunk`] with these bytes of the copy.
    SendChunk {
        /// The joiner.
        to: PeerId,
        /// Number of the copy.
        state: StateId,
        /// Number of the chunk.
        chunk: u32,
        /// Offset of the chunk in the state, bytes.
        offset: u64,
        /// Length of the chunk, bytes.
        bytes: u32,
    },
    /// Compute the projections of every chunk of the copy. Reply: [`Event::Sketched`]; none after the release.
    Sketch {
        /// The joiner.
        to: Instance,
        /// Number of the copy.
        state: StateId,
        /// Seed of the projections.
        seed: SketchSeed,
    },
    /// Drop the copy.
    Release {
        /// Number of the copy.
        state: StateId,
    },
    /// A note for metrics and people.
    Counted(Note),
}

/// A note of a donor about a joiner.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A joiner needs no more of the copy.
    Served(Instance),
    /// A joiner was declined: all sessions are taken, it is not placed on this stage, or there is no such copy.
    Declined(Instance),
    /// A joiner was lost, left the table, or asked for nothing for too long.
    Abandoned(Instance),
}

/// The reason for a timeout of a donor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A joiner has been silent or slow for too long.
    JoinerSilent,
    /// A copy that no joiner downloads is too old.
    CopyExpires,
}
