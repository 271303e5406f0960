//! Events and actions of the machine for microbatches.

use super::{Job, JobReply, Note};
use crate::{Duration, Envelope, Instance, Message, PeerId, TableUpdate};

/// An event of a replica's stage: a message, a reply of the executor, or news from the coordinator or the transport.
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
    /// The executor replied to a job.
    Completed(JobReply<P>),
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
    /// The coordinator replied: the own link works.
    Reached,
    /// Take no more microbatches; finish the microbatches held.
    Drain,
    /// The run is over: every microbatch has its outcome.
    Finished,
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that a replica's stage asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Give the job to the executor, in order. At most [`Config::jobs_max`](super::Config::jobs_max) are unfinished.
    Execute(Job<P>),
    /// Send the message.
    Send {
        /// The receiver.
        to: PeerId,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// A note for metrics and people.
    Counted(Note),
    /// Draining is over: no microbatch is held any more. Occurs once.
    Drained,
}

/// The reason for a timeout of a stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A neighbour's reply is overdue: the status of the microbatch is to be requested.
    ReplyOverdue,
    /// A feeder's answer to a claim or a refusal is overdue.
    FeederOverdue,
    /// The run is finished, and claims have no answer.
    LastGrantsOverdue,
    /// A computed activation has found no replica of the next stage.
    RouteExpires,
    /// A forward from a peer that the table does not place has waited long enough.
    ParkedExpires,
    /// Neighbours expect a heartbeat.
    HeartbeatDue,
    /// A neighbour has been silent for so long that its verdict may change.
    NeighbourSilent,
}
