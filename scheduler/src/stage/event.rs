//! What happens to a stage, and what it wants done.

use super::{Job, JobReply, Note};
use crate::{Duration, Envelope, Instance, Membership, PeerId};

/// What happens to a replica's stage.
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
    /// The executor replied to a job.
    Completed(JobReply<P>),
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The transport measured the round trip to a peer.
    RoundTrip(Instance, Duration),
    /// The coordinator replied: the own link works.
    Reached,
    /// Take no more microbatches, finish those held.
    Drain,
    /// The run is over: every microbatch has its outcome, and nothing held is of use any more.
    Finished,
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// What a replica's stage wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Give this to the executor, in order. At most [`Config::jobs_max`](super::Config::jobs_max) are unfinished at once.
    Execute(Job<P>),
    /// Send this.
    Send {
        /// The receiver.
        to: PeerId,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// A note for metrics and people.
    Counted(Note),
    /// Draining is over: no microbatch is held any more. Said once.
    Drained,
}

/// Why a stage wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A neighbour owes a reply and its status is to be requested.
    ReplyOverdue,
    /// A feeder owes an answer: to a claim, or to a refusal.
    FeederOverdue,
    /// The run is finished, and claims have no answer.
    LastGrantsOverdue,
    /// A computed activation has found no replica of the next stage.
    RouteExpires,
    /// A forward came from a peer that the table does not place.
    ParkedExpires,
    /// Neighbours expect a heartbeat.
    HeartbeatDue,
    /// A neighbour is silent.
    NeighbourSilent,
}
