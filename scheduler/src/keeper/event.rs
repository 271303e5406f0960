//! Events and actions of a keeper.

use crate::transfer::{ChunkSketch, DownloadNote, Manifest, SketchSeed, StateId};
use crate::{BlockTally, Envelope, Instance, PeerId, StageIndex, TableUpdate, WeightVersion};

/// A copy of the state of a stage in the newest checkpoint, for replicas that the stage has lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Given {
    /// The stage.
    pub stage: StageIndex,
    /// Number of the copy among those of the stage.
    pub state: StateId,
}

/// How far the run had come at the states of a checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// Microbatches that had their outcome.
    pub microbatches: u64,
    /// The progress of every block, ascending by block.
    pub blocks: Vec<BlockTally>,
    /// The run was over.
    pub is_final: bool,
    /// Every stage was told to copy its state at this point. Otherwise the first state was asked for at this point, and the
    /// others later.
    pub is_agreed: bool,
}

impl Watermark {
    pub(super) fn new(blocks: Vec<BlockTally>, is_final: bool) -> Self {
        let microbatches = blocks.iter().fold(0_u64, |sum, block| sum.saturating_add(block.settled));
        Self { microbatches, blocks, is_final, is_agreed: false }
    }
}

/// An event of a keeper.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. A table that is not newer than the last is ignored.
    Membership(TableUpdate),
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message and its payload.
        envelope: Envelope<P>,
    },
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The coordinator's reply to a heartbeat.
    Progress {
        /// The progress of every block, ascending by block.
        blocks: Vec<BlockTally>,
        /// The run is over.
        finished: bool,
    },
    /// The reply to [`Action::Export`].
    Exported {
        /// The copy.
        given: Given,
        /// Its manifest; `None` if the checkpoint cannot be read.
        manifest: Option<Manifest>,
    },
    /// The reply to [`Action::Sketch`].
    Sketched {
        /// The joiner.
        to: Instance,
        /// The copy.
        given: Given,
        /// Seed of the projections.
        seed: SketchSeed,
        /// The projections of every chunk, in order.
        sketch: Vec<ChunkSketch>,
    },
    /// The reply to [`Action::Write`] and [`Action::Complete`].
    Written(Written),
    /// Leave; a checkpoint under way is given up.
    Stop,
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// The outcome of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    /// The target has the file.
    Done,
    /// The bytes are no state of the stage; nothing was written.
    Unfit,
    /// The target did not take the file. The process keeps the bytes.
    Failed,
}

/// An action that a keeper asks its process for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Open a checkpoint with this watermark in the target, in place of one that is not complete.
    Open(Watermark),
    /// Send the message.
    Send {
        /// The receiver.
        to: PeerId,
        /// The message and its payload.
        envelope: Envelope<P>,
    },
    /// Make room for a state of this length, which is within the limits, and drop all bytes stored before.
    Begin {
        /// Length of the state, bytes.
        bytes: u64,
    },
    /// Store verified bytes of the state.
    Store {
        /// Offset in the state, bytes.
        offset: u64,
        /// The bytes.
        payload: P,
    },
    /// Check that the bytes stored are a state of this stage, and write them into the checkpoint. Reply:
    /// [`Event::Written`].
    Write {
        /// The stage.
        stage: StageIndex,
        /// Optimizer steps that the state must say.
        version: WeightVersion,
    },
    /// Every stage is written: complete the checkpoint. Reply: [`Event::Written`].
    Complete,
    /// Drop the checkpoint under way.
    GiveUp,
    /// Read the state of a stage from the newest checkpoint, and keep the bytes until [`Action::Release`]. Reply:
    /// [`Event::Exported`].
    Export(Given),
    /// Send a chunk: these bytes of a copy.
    SendChunk {
        /// The joiner.
        to: PeerId,
        /// The copy.
        given: Given,
        /// Number of the chunk.
        chunk: u32,
        /// Offset of the chunk in the state, bytes.
        offset: u64,
        /// Length of the chunk, bytes.
        bytes: u32,
    },
    /// Compute the projections of every chunk of a copy. Reply: [`Event::Sketched`]; none after the release.
    Sketch {
        /// The joiner.
        to: Instance,
        /// The copy.
        given: Given,
        /// Seed of the projections.
        seed: SketchSeed,
    },
    /// Drop the copy.
    Release(Given),
    /// A note for people and metrics.
    Counted(Note),
    /// The keeper has ended. This is its last action.
    End(End),
}

/// A note of a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Note {
    /// A note about the download of the state of a stage.
    Download(StageIndex, DownloadNote),
    /// The stage gives no state, and the checkpoint under way is given up; the next attempt begins after
    /// [`ATTEMPT_AGAIN_AFTER`](super::ATTEMPT_AGAIN_AFTER).
    Stalled(StageIndex),
}

/// The reason why a keeper ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The run is over, and its final states are kept.
    Finished,
    /// A person stopped the keeper.
    Stopped,
    /// The run is over, and no replica gives the final state of this stage.
    Untaken(StageIndex),
    /// The run is over, and the target does not take its final states.
    Unwritten,
}
