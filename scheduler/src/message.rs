//! What feeders and replicas say to each other about microbatches.

use std::net::SocketAddr;

use crate::averaging::{AveragingMessage, Round};
use crate::lease::Succession;
use crate::recovery_report::Inventory;
use crate::transfer::TransferMessage;
use crate::{Attempt, Duration, Incarnation, MicrobatchId, PeerId, StageIndex, WeightVersion};

/// One visit on the way of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Where in the pipeline; `None` is the feeder.
    pub stage: Option<StageIndex>,
    /// Which peer.
    pub peer: PeerId,
    /// Which start of that peer.
    pub incarnation: Incarnation,
}

/// Why a microbatch travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Forward and backward; weights learn from it.
    Train,
    /// Forward only, to measure the loss on held-out text.
    Evaluate,
    /// Like `Evaluate`, but the last stage replaces what it received by zeros: the control that shows whether
    /// the upstream matters.
    EvaluateCut,
}

/// Summed loss of the tokens of a microbatch.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Loss {
    /// Sum of cross-entropies, nats.
    pub sum: f64,
    /// Tokens summed over.
    pub tokens: u32,
}

impl Loss {
    /// Nats a token; not a number where there are no tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / f64::from(self.tokens)
    }
}

/// Why a microbatch was refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// A NaN or an infinity in what a stage received or computed.
    NonFinite,
    /// Bytes that do not fit the run: wrong shape, wrong length, token id out of range.
    Malformed(String),
    /// The executor has no stash of it.
    Unknown,
    /// The executor has no room for it.
    Busy,
    /// Nobody served the next stage for too long.
    Undeliverable,
    /// Nobody is known to hold it, and it may not be injected twice.
    Abandoned,
    /// The device failed.
    Device(String),
}

/// What a replica says of a microbatch it was asked about, or could not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Holding {
    /// It is here; its gradient will follow, to the one who asked last.
    Held,
    /// It is not here: send it.
    Missing,
    /// It was not taken: no slot is free. Nobody's fault.
    Busy,
}

/// Sign of life between neighbours, every second, and what routing needs to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Beat {
    /// Jobs the executor has answered since the replica started: a counter that stands still tells stuck from slow.
    pub counter: u64,
    /// Tasks that wait for the executor.
    pub queued: u32,
    /// Age of the oldest of them; zero if there are none, or if they wait for a feeder's word.
    pub oldest: Duration,
    /// Moving average of the time a forward takes to compute; none before the first.
    pub service: Option<Duration>,
    /// Microbatches the receiver may have unanswered at the sender.
    pub credit: u32,
}

/// Which ids of a feeder have their outcome: all of `first..below`, and of those from `below` on the ones whose bit
/// is set, least significant bit first. Everyone frees what they hold of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First id leased.
    pub first: u64,
    /// First id without an outcome.
    pub below: u64,
    /// Outcomes from `below` on, a bit an id; at most [`SPAN_BYTES_MAX`] long.
    pub beyond: Vec<u8>,
}

/// Longest bitmap of a [`Span`], bytes: windows are far smaller.
pub const SPAN_BYTES_MAX: usize = 1_024;

/// Spans a feeder announces at most: those of its latest leases.
pub const SPANS_MAX: usize = 16;

/// Ids in one claim or verdict at most.
pub const CLAIM_MAX: usize = 1_024;

impl Span {
    /// Whether `microbatch` has its outcome according to this span.
    #[must_use]
    pub fn contains(&self, microbatch: MicrobatchId) -> bool {
        let id = microbatch.0;
        let Some(offset) = id.checked_sub(self.below) else { return id >= self.first };
        let byte = usize::try_from(offset / 8).ok().and_then(|index| self.beyond.get(index));
        byte.is_some_and(|byte| byte & (1 << (offset % 8)) != 0)
    }
}

/// A message about microbatches. `P` is an opaque payload: bytes in production, a number in simulation.
///
/// Neighbours on the route exchange the first six; the rest is between a replica and the feeder that injected the
/// microbatch, its arbiter. Any of them may be lost, repeated or overtaken.
#[derive(Clone, Debug, PartialEq)]
pub enum Message<P> {
    /// Downstream: token ids and the activation.
    Forward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Which sending of it by this sender.
        attempt: Attempt,
        /// Why it travels.
        purpose: Purpose,
        /// An earlier sending was lost with its receiver: this one takes no slot.
        anew: bool,
        /// Visits so far, the feeder first, the sender last.
        route: Vec<Hop>,
        /// Who is known to hold it further downstream: to be asked before it is sent on anew.
        holder: Option<Hop>,
        /// Weight version the sender computed the activation with (0 from a feeder).
        version: WeightVersion,
        /// `B * (T + 1)` token ids, packed.
        ids: P,
        /// The packed activation; empty from the feeder.
        code: P,
    },
    /// Downstream: do you hold this? The sender is its upstream from now on.
    Ask {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Which sending of it by this sender.
        attempt: Attempt,
        /// Visits so far, the feeder first, the sender last.
        route: Vec<Hop>,
    },
    /// Upstream: the answer to `Ask` if there is no gradient yet, or to a `Forward` that was not taken.
    Holds {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number of what this answers.
        attempt: Attempt,
        /// What became of it.
        holding: Holding,
    },
    /// Upstream: a receipt. The microbatch was handed on to `next`.
    Passed {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number of the forward it arrived with.
        attempt: Attempt,
        /// Who has it now.
        next: Hop,
    },
    /// Upstream: the gradient of the activation. To a feeder: the microbatch came home (payload empty).
    Backward {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number of the forward this answers.
        attempt: Attempt,
        /// Training loss of the microbatch.
        loss: Loss,
        /// Who computed the gradient, the last stage first, the sender last. Each of them claims its contribution.
        path: Vec<Hop>,
        /// The packed boundary gradient.
        gradient: P,
    },
    /// To the nearest live hop of the route: the upstream of `holder` is gone, but the microbatch is there.
    Held {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Who holds it.
        holder: Hop,
    },
    /// To the feeder: may the sender apply its gradients of these microbatches?
    Claim {
        /// The sender's stage.
        stage: StageIndex,
        /// Which microbatches, at most [`CLAIM_MAX`].
        microbatches: Vec<MicrobatchId>,
    },
    /// From the feeder: the answer to claims. A grant is given once for a microbatch and stage, ever.
    Granted {
        /// Apply these.
        granted: Vec<MicrobatchId>,
        /// Somebody else applies these.
        denied: Vec<MicrobatchId>,
    },
    /// To the feeder: result of an evaluation.
    Evaluated {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Attempt number the feeder gave it.
        attempt: Attempt,
        /// Its loss.
        loss: Loss,
    },
    /// To the feeder: the microbatch is refused and counts as such.
    Refused {
        /// Which microbatch.
        microbatch: MicrobatchId,
        /// Who refused it.
        by: Hop,
        /// Why.
        reason: Refusal,
    },
    /// From a feeder to all replicas: which ids have their outcome.
    Ended {
        /// By first id, at most [`SPANS_MAX`].
        spans: Vec<Span>,
        /// The averaging round at hand; 0 before the first. Whoever has ended it says [`Message::Averaged`].
        round: Round,
        /// Every microbatch has its outcome: this round is one of the last, among weights that change no more.
        over: bool,
    },
    /// To a feeder: the sender has ended this averaging round and all before it.
    Averaged {
        /// Which round.
        round: Round,
    },
    /// From a feeder that takes over a range: what do you know of its ids?
    Adopt {
        /// The first id of the range.
        range: MicrobatchId,
        /// Which successor in a row asks.
        epoch: u64,
        /// Ids below were told before.
        from: MicrobatchId,
    },
    /// To a feeder that takes over a range: the answer, a page of it.
    Inventory(Inventory),
    /// To neighbours: a sign of life.
    Beat(Beat),
    /// Between replicas of a stage: an averaging round. For [`Averaging`](crate::Averaging), not for the machines of
    /// microbatches.
    Averaging(AveragingMessage<P>),
    /// Between a joining replica and one that serves: the state of their stage. For [`transfer`](crate::transfer).
    Transfer(TransferMessage<P>),
}

impl<P> Message<P> {
    /// The payloads: the token ids, and the packed activation or gradient.
    pub fn payloads(&self) -> (Option<&P>, Option<&P>) {
        match self {
            Self::Forward { ids, code, .. } => (Some(ids), Some(code)),
            Self::Backward { gradient, .. } => (None, Some(gradient)),
            Self::Averaging(message) => (None, message.content.payload()),
            Self::Transfer(message) => (None, message.payload()),
            _ => (None, None),
        }
    }

    /// The same message with other payloads; one without takes none.
    pub fn with_payloads<Q>(self, new_ids: Q, new_code: Q) -> Message<Q> {
        match self {
            Self::Forward { microbatch, attempt, purpose, anew, route, holder, version, .. } => {
                let (ids, code) = (new_ids, new_code);
                Message::Forward { microbatch, attempt, purpose, anew, route, holder, version, ids, code }
            }
            Self::Backward { microbatch, attempt, loss, path, .. } => {
                Message::Backward { microbatch, attempt, loss, path, gradient: new_code }
            }
            Self::Ask { microbatch, attempt, route } => Message::Ask { microbatch, attempt, route },
            Self::Holds { microbatch, attempt, holding } => Message::Holds { microbatch, attempt, holding },
            Self::Passed { microbatch, attempt, next } => Message::Passed { microbatch, attempt, next },
            Self::Held { microbatch, holder } => Message::Held { microbatch, holder },
            Self::Claim { stage, microbatches } => Message::Claim { stage, microbatches },
            Self::Granted { granted, denied } => Message::Granted { granted, denied },
            Self::Evaluated { microbatch, attempt, loss } => Message::Evaluated { microbatch, attempt, loss },
            Self::Refused { microbatch, by, reason } => Message::Refused { microbatch, by, reason },
            Self::Ended { spans, round, over } => Message::Ended { spans, round, over },
            Self::Averaged { round } => Message::Averaged { round },
            Self::Adopt { range, epoch, from } => Message::Adopt { range, epoch, from },
            Self::Inventory(inventory) => Message::Inventory(inventory),
            Self::Beat(beat) => Message::Beat(beat),
            Self::Averaging(message) => Message::Averaging(message.with_payload(new_code)),
            Self::Transfer(message) => Message::Transfer(message.with_payload(new_code)),
        }
    }
}

/// What a peer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Draws data and injects microbatches.
    Feeder,
    /// A feeder that takes over the ids of those that are gone.
    Successor,
    /// Serves, or waits to serve, a stage.
    Replica,
}

/// How far a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Standing {
    /// Placed on a stage and building its shard.
    Loading(StageIndex),
    /// Serving a stage.
    Serving(StageIndex),
    /// Every stage is served; waits.
    Standby,
    /// A feeder.
    Feeding,
}

/// One line of the membership table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// Its identity.
    pub peer: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// How far it is.
    pub standing: Standing,
    /// Where its data plane listens.
    pub address: SocketAddr,
}

/// Who takes part, as the coordinator last signed it. Members are ordered by peer id.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Grows by one with every change.
    pub version: u64,
    /// The members.
    pub members: Vec<Member>,
    /// Ranges of ids that have gone to a successor, by first id.
    pub successions: Vec<Succession>,
}
