//! Events and actions of a replica.

use crate::prediction::PredictionJob;
use crate::stage::{Job, JobReply};
use crate::transfer::{
    ChunkSketch, DownloadNote, DownloadReason, Manifest, SketchSeed, StateId, UploadNote, UploadReason,
};
use crate::{
    Directive, Duration, Envelope, Instance, Message, PeerId, TableUpdate, WeightVersion, averaging, stage,
};

use super::departure::Unfinished;

/// An event of a replica: a message, a reply to one of its actions, or news from the coordinator or the transport.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. A table that is not newer than the last is ignored.
    Membership(TableUpdate),
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// The executor replied to a job of a microbatch.
    Completed(JobReply<P>),
    /// The reply to [`Action::Predict`]: the next activation or logits, or the fault.
    Predicted(Result<P, String>),
    /// A job of an averaging round is done.
    Averaged(averaging::Reply<P>),
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
    /// The reply to [`Action::Import`]: whether the state fits the stage. If not, nothing has changed.
    Imported(bool),
    /// Bytes of a message from a peer arrive, but not yet all of them: the peer lives.
    Arriving(Instance),
    /// The own queue for a peer is full: this message was not sent. That says nothing about the peer.
    SendQueueFull {
        /// The receiver.
        to: PeerId,
        /// The message.
        message: Message,
    },
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The transport measured the round trip to a peer.
    RoundTrip(Instance, Duration),
    /// The coordinator replied to a heartbeat.
    Directive(Directive),
    /// The reply to [`Action::Confirm`].
    Confirmed(Confirmation),
    /// The coordinator does not know this instance any more.
    Expelled,
    /// Hand over and leave.
    Stop,
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// The coordinator's answer to [`Action::Confirm`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// The instance is a member.
    Member,
    /// The instance is no member: its microbatches are of no use any more.
    NotAMember,
    /// The coordinator does not answer: the replica goes on with its last table.
    Unreachable,
}

/// An action that a replica asks its process for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Give the job to the executor, in order.
    Execute(Job<P>),
    /// Compute the pass of a reader, between two jobs. Reply: [`Event::Predicted`]. At most one waits.
    Predict(PredictionJob<P>),
    /// Do the job of an averaging round: `Reduce` anywhere, the others by the executor, in order with its jobs.
    Average(averaging::Job<P>),
    /// Take an optimizer step with the contributions that wait for the rest of theirs, by the mean of those that are there;
    /// no others come. By the executor, in order with its jobs. No reply.
    StepRest,
    /// Send the message.
    Send {
        /// The receiver.
        to: PeerId,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// Copy the whole state, between two jobs, and keep the bytes until [`Action::Release`]. Reply: [`Event::Exported`].
    /// At most one copy exists at a time.
    Export {
        /// Number of the copy.
        state: StateId,
    },
    /// Send a chunk: these bytes of the copy.
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
    /// Take over the state, which is complete. Reply: [`Event::Imported`].
    Import {
        /// The replica that the header of the state comes from.
        donor: Instance,
        /// Optimizer steps that the header must say.
        version: WeightVersion,
        /// It is that of a keeper: no replica has a newer one, so what the replica learns from now on counts at once, as
        /// after a fresh start.
        is_restored: bool,
    },
    /// Tell the coordinator that the replica serves from now on. Repeated until the coordinator knows.
    Ready {
        /// It begins with the initial weights. The coordinator refuses that if a process may have trained ones.
        initial: bool,
    },
    /// This process stood still for a while. Ask the coordinator whether it still is a member. Reply:
    /// [`Event::Confirmed`]. Nothing is sent before.
    Confirm,
    /// A note for metrics and people.
    Counted(Note),
    /// The replica has ended. This is its last action.
    End(End),
}

/// A note of a replica, by the machine that it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// The replica serves from now on, beginning with this state. One with initial weights serves as soon as a table lists it.
    Began(InitialState),
    /// A note about microbatches.
    Stage(stage::Note),
    /// A note about averaging rounds.
    Averaging(averaging::Note),
    /// A note about the download of the initial state.
    Download(DownloadNote),
    /// A note about joiners that take the state.
    Upload(UploadNote),
    /// A question of a member that has asked too much; ignored.
    Unanswered(Instance),
}

/// The state that a replica began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// The state of a replica that serves.
    Downloaded {
        /// The replica.
        donor: Instance,
        /// Optimizer steps of its weights.
        version: WeightVersion,
    },
    /// The initial weights of the run: no replica serves the stage.
    Initial {
        /// Weights of the stage had been updated before: those updates are lost.
        was_trained: bool,
    },
    /// The state that a keeper had: no replica serves the stage.
    Restored {
        /// The keeper.
        keeper: Instance,
        /// Optimizer steps of its weights.
        version: WeightVersion,
    },
    /// The state that the process had when it was expelled: no replica serves the stage.
    Kept,
    /// The state that the executor had already.
    Given,
}

/// The reason why a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The run is over.
    RunFinished,
    /// The run has diverged: weights that are not finite are of no use.
    Diverged {
        /// Microbatches of the run that had their outcome then.
        at: u64,
    },
    /// The replica left; some of its work may be unfinished.
    Left(Option<Unfinished>),
    /// The replica is no member any more. The process may join again as another instance.
    Expelled {
        /// The executor has a state of the stage: no process may have a newer one, so keep it until a donor is found.
        has_state: bool,
    },
}

/// The machine that a timeout of a replica is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The machine for microbatches.
    Stage(stage::Reason),
    /// An averaging round.
    Averaging(averaging::Reason),
    /// The download of the initial state.
    Download(DownloadReason),
    /// The upload to joiners.
    Upload(UploadReason),
    /// The time to leave is over.
    DepartureExpires,
}
