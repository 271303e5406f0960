//! What happens to a feeder, and what it wants done.

use super::{Measured, Outcome, Record};
use crate::{Directive, Duration, Envelope, Instance, Lease, Membership, MicrobatchId, PeerId, Purpose};

/// What happens to a feeder.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. Older ones than the known one are ignored.
    Membership(Membership),
    /// The coordinator leased a range. Ids that were leased before are not injected again.
    Lease(Lease),
    /// The shell drew a microbatch it was asked for.
    Drawn {
        /// The id.
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
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Instance),
    /// The transport measured the round trip to a peer.
    RoundTrip(Instance, Duration),
    /// The coordinator replied to a heartbeat.
    Directive(Directive),
    /// Measure the loss on held-out microbatches `first..first + count`, besides those of the schedule. Training holds
    /// meanwhile.
    Evaluate {
        /// Index of the first, from 0; its id is [`MicrobatchId::evaluation`] of that.
        first: u64,
        /// How many.
        count: u64,
        /// `Evaluate` or `EvaluateCut`; `Train` counts as `Evaluate`.
        purpose: Purpose,
    },
    /// Inject nothing more; finish what is in flight, then [`Action::End`].
    Stop,
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// What a feeder wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Make this durable before any action that follows.
    Journal(Record),
    /// Draw the tokens of this microbatch and reply with [`Event::Drawn`].
    Draw {
        /// The id.
        microbatch: MicrobatchId,
        /// From training text or held-out text.
        purpose: Purpose,
    },
    /// Send this to a replica.
    Send {
        /// The replica.
        to: PeerId,
        /// The message and its payloads.
        envelope: Envelope<P>,
    },
    /// Ask the coordinator for this many ids.
    RequestLease {
        /// How many.
        count: u64,
    },
    /// A microbatch has its outcome; said once for every microbatch sent.
    Outcome {
        /// The id.
        microbatch: MicrobatchId,
        /// What became of it.
        outcome: Outcome,
    },
    /// An evaluation is over; they end in the order in which they began.
    Evaluated(Measured),
    /// An [`Event::Evaluate`] was not taken: [`EVALUATIONS_MAX`](super::EVALUATIONS_MAX) wait already, or the feeder is
    /// stopped.
    EvaluationDeclined,
    /// There is nothing left to do. Said once; the last action.
    End(End),
}

/// How a feeder ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Every microbatch of the run has its outcome, and the last evaluations are done.
    Finished,
    /// It was asked to stop, and what was in flight has its outcome or had its time.
    Stopped,
    /// Another feeder has taken over its ids.
    Succeeded {
        /// The other feeder.
        by: PeerId,
    },
    /// The run is finished by the account of the coordinator.
    RunFinished,
    /// The coordinator wants it to leave; the text is for people.
    Dismissed(String),
}

/// Why a feeder wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A replica owes a reply and its status is to be requested.
    ReplyOverdue,
    /// A request for a lease has no reply.
    LeaseRetry,
    /// Injecting goes on after a microbatch was undeliverable.
    PauseEnds,
    /// A replica of stage 0 may be tried again.
    QuarantineEnds,
    /// A replica of stage 0 is silent.
    NeighbourSilent,
    /// Replicas expect to hear which microbatches have their outcome.
    AnnouncementDue,
    /// A replica has not ended an averaging round.
    RoundExpires,
    /// Replicas owe a report about a range that is taken over.
    RecoveryDue,
    /// What is in flight has had its time.
    StopExpires,
}
