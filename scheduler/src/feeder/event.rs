//! Events and actions of a feeder.

use super::{Divergence, Measured, Outcome, Record};
use crate::{
    Directive, Duration, Envelope, Evidence, Hop, Instance, Lease, Message, MicrobatchId, PeerId, Purpose,
    RunTally, TableUpdate,
};

/// An event of a feeder: a message, a reply to one of its actions, a command, or news from the coordinator or the
/// transport.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. A table that is not newer than the last is ignored.
    Membership(TableUpdate),
    /// The coordinator leased a range. Ids that were leased before are not injected again.
    Lease(Lease),
    /// The coordinator told how far other feeders have come; comes before a lease and after every report.
    RunProgress(RunTally),
    /// The reply to [`Action::Draw`].
    Drawn {
        /// The microbatch drawn.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
    },
    /// A message arrived from an authenticated peer.
    Received {
        /// The sender.
        from: Instance,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
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
    /// Measure the loss on held-out microbatches `first..first + count`, besides those of the schedule. Training goes on,
    /// except in a synchronous run.
    Evaluate {
        /// Index of the first microbatch, from 0; its id is [`MicrobatchId::evaluation`] of this feeder's block and the index.
        first: u64,
        /// Number of microbatches.
        count: u64,
        /// `Evaluate` or `EvaluateCut`; `Train` counts as `Evaluate`.
        purpose: Purpose,
    },
    /// Inject nothing more; finish the microbatches in flight, then [`Action::End`].
    Stop,
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// An action that a feeder asks its process for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Make the record durable before any action that follows.
    Journal(Record),
    /// Draw the tokens of a microbatch. Reply: [`Event::Drawn`].
    Draw {
        /// The microbatch to draw.
        microbatch: MicrobatchId,
        /// `Train` for training text, otherwise held-out text.
        purpose: Purpose,
    },
    /// Send the message to a replica.
    Send {
        /// The replica.
        to: PeerId,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// Ask the coordinator for ids.
    RequestLease {
        /// The first id that this feeder does not have; `None` if it has no block.
        next: Option<MicrobatchId>,
        /// Number of ids.
        count: u64,
    },
    /// More of what a replica says is false than sound: it is believed no more. Report it to the coordinator.
    Struck {
        /// The replica.
        replica: Hop,
        /// What it has said.
        evidence: Evidence,
    },
    /// A microbatch has its outcome; occurs once for every microbatch sent.
    Outcome {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Its outcome.
        outcome: Outcome,
    },
    /// An evaluation is over; they end in the order in which they began.
    Evaluated(Measured),
    /// An [`Event::Evaluate`] was not taken: [`EVALUATIONS_MAX`](super::EVALUATIONS_MAX) wait already, or the feeder is
    /// stopped.
    EvaluationDeclined,
    /// The feeder has ended. This is its last action.
    End(End),
}

/// The reason why a feeder ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every microbatch of the run has its outcome, and the last evaluations are done.
    Finished,
    /// The feeder was asked to stop, and its microbatches have their outcome or
    /// [`Config::stop_within`](super::Config::stop_within) is over.
    Stopped,
    /// Another feeder has taken over its ids.
    Succeeded {
        /// The successor.
        by: PeerId,
    },
    /// The coordinator says that the run is finished.
    RunFinished,
    /// Training has diverged: the run is over.
    Diverged {
        /// Microbatches of the run that had their outcome then.
        at: u64,
        /// What showed it.
        sign: Divergence,
    },
    /// The coordinator dismissed the feeder; the text is for people.
    Dismissed(String),
}

/// The reason for a timeout of a feeder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A replica's reply is overdue: the status of the microbatch is to be requested.
    ReplyOverdue,
    /// A request for a lease has no reply.
    LeaseRetry,
    /// Injecting goes on after a microbatch was undeliverable.
    PauseEnds,
    /// A replica of stage 0 may be tried again.
    QuarantineEnds,
    /// A replica of stage 0 has been silent for so long that its verdict may change.
    NeighbourSilent,
    /// The next announcement of outcomes is due.
    AnnouncementDue,
    /// A replica has not ended an averaging round.
    RoundExpires,
    /// Replicas owe a report about a range that is taken over.
    RecoveryDue,
    /// The time for microbatches in flight after a stop is over.
    StopExpires,
    /// A microbatch is back, and claims of it have not come.
    ClaimsOverdue,
}
