//! Events and actions of averaging.

use crate::{Instance, PeerId};

use super::counts::Note;
use super::group::Round;
use super::job::{Job, Reply};
use super::message::AveragingMessage;

/// An event of averaging: a change of the members, a call of the feeder, a message, or a reply to a job.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The live serving replicas of this stage, in any order; this replica may be missing. A member that leaves this
    /// list while a round runs is gone for the rest of the round.
    Members(Vec<Instance>),
    /// The current round of the run, as the feeder calls it. Earlier rounds than the latest are ignored.
    Round(Round),
    /// What the members of this replica's group may weigh at most, the grants that they have, as the feeder that calls the
    /// rounds says. Its last word counts; an empty one bounds no weight.
    Weights(Vec<(PeerId, u64)>),
    /// Rounds up to this number are over for this replica, or left to the others: it takes part in none of them.
    Past(Round),
    /// The executor, or the thread that reduces, is done with a job.
    Replied(Reply<P>),
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message.
        message: AveragingMessage,
        /// The numbers that travel with it; empty if it has none.
        payload: P,
    },
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that averaging asks for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Do the job, and reply if the job has a reply.
    Execute(Job<P>),
    /// Send the message to a member.
    Send {
        /// The member.
        to: PeerId,
        /// The message.
        message: AveragingMessage,
        /// The numbers that travel with it; empty if it has none.
        payload: P,
    },
    /// A note for metrics and people.
    Counted(Note),
}

/// The reason for a timeout of averaging.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The executor has not delivered a snapshot.
    SnapshotExpires,
    /// Contributions to a part owned here are overdue.
    ContributionsExpire,
    /// Votes for a mean are overdue.
    VotesExpire,
    /// The owner of a part is overdue.
    OwnerExpires,
}
