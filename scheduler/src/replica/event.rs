//! What happens to a replica, and what it wants done.

use crate::stage::{Job, JobReply};
use crate::transfer::{DownloadNote, DownloadReason, Manifest, StateId, UploadNote, UploadReason};
use crate::{Directive, Duration, Envelope, Instance, Membership, PeerId, WeightVersion, averaging, stage};

use super::departure::Unfinished;

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. Older ones than the known one are ignored.
    Membership(Membership),
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// The executor replied to a job of a microbatch.
    Completed(JobReply<P>),
    /// A job of an averaging round is done.
    Averaged(averaging::Reply<P>),
    /// The reply to [`Action::Export`].
    Exported {
        /// The copy.
        state: StateId,
        /// Its manifest; `None` if no copy could be made.
        manifest: Option<Manifest>,
    },
    /// The reply to [`Action::Import`]: whether the state fits the stage. If not, nothing has changed.
    Imported(bool),
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

/// What the coordinator says when a replica asks whether it still is a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Confirmation {
    /// It is.
    Member,
    /// It is not: what it holds is of no use any more.
    NotAMember,
    /// The coordinator does not answer. The last table is all there is to go by.
    Unreachable,
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Give this to the executor, in order.
    Execute(Job<P>),
    /// Do this job of an averaging round: `Reduce` anywhere, the others by the executor, in order with its jobs.
    Average(averaging::Job<P>),
    /// Send this.
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
    /// Send a chunk with these bytes of the copy, which has them.
    SendChunk {
        /// The joiner.
        to: PeerId,
        /// The copy.
        state: StateId,
        /// Number of the chunk.
        chunk: u32,
        /// Its place in the state, bytes.
        offset: u64,
        /// Its length, bytes.
        bytes: u32,
    },
    /// Drop the copy.
    Release {
        /// The copy.
        state: StateId,
    },
    /// Make room for a state of this length, which is within the limits, and drop what was stored before.
    Begin {
        /// Length of the state, bytes.
        bytes: u64,
    },
    /// Put verified bytes at their place.
    Store {
        /// Its place, bytes from the beginning.
        offset: u64,
        /// The bytes.
        payload: P,
    },
    /// The state is there: take it over. Reply: [`Event::Imported`].
    Import {
        /// Where it comes from.
        donor: Instance,
        /// Optimizer steps of its weights.
        version: WeightVersion,
    },
    /// Tell the coordinator that the stage is served from now on. Repeated until it is heard.
    Ready,
    /// This process stood still for a while. Ask the coordinator whether it still is a member. Reply:
    /// [`Event::Confirmed`]. Nothing is sent before.
    Confirm,
    /// A note for metrics and people.
    Counted(Note),
    /// There is nothing left to do. Said once; the last action.
    End(End),
}

/// What a replica counts, by the machine that does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    /// It serves from now on, beginning with this state.
    Began(InitialState),
    /// Of microbatches.
    Stage(stage::Note),
    /// Of averaging rounds.
    Averaging(averaging::Note),
    /// Of the download before it serves.
    Download(DownloadNote),
    /// Of joiners that take its state.
    Upload(UploadNote),
}

/// The state that a replica began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InitialState {
    /// That of a replica that serves.
    Downloaded {
        /// The replica.
        donor: Instance,
        /// Optimizer steps of its weights.
        version: WeightVersion,
    },
    /// The initial weights of the run: no replica serves the stage.
    Initial {
        /// Weights of the stage had been updated before: what it had learned is lost.
        was_trained: bool,
    },
    /// The one that the executor was given.
    Given,
}

/// How a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The run is over.
    RunFinished,
    /// It left; some of its work may be unfinished.
    Left(Option<Unfinished>),
    /// It is no member any more: what it holds is of no use. The process may join again as another instance.
    Expelled,
}

/// Why a replica wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// For its microbatches.
    Stage(stage::Reason),
    /// For an averaging round.
    Averaging(averaging::Reason),
    /// For the download before it serves.
    Download(DownloadReason),
    /// For joiners that take its state.
    Upload(UploadReason),
    /// The time to leave is over.
    DepartureExpires,
}
