//! What happens to averaging, and what it wants done.

use crate::{Instance, PeerId};

use super::counts::Note;
use super::group::Round;
use super::job::{Job, Reply};
use super::message::AveragingMessage;

/// What happens to averaging.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The live serving replicas of this stage, in any order, with or without this one. A member that leaves this list
    /// while a round runs is gone for the rest of it.
    Members(Vec<Instance>),
    /// The current round of the run, as the feeder calls it. Numbers below the known one are ignored.
    Round(Round),
    /// Rounds up to this one are over for this replica, or left to the others: it takes part in none of them.
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

/// What averaging wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Do this job.
    Execute(Job<P>),
    /// Send this to a member.
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

/// Why averaging wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The executor has not delivered a snapshot.
    SnapshotExpires,
    /// Contributions to a part owned here are late.
    ContributionsExpire,
    /// The owner of a part is late.
    OwnerExpires,
}
