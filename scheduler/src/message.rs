//! Messages between feeders and replicas.

use crate::averaging::{AveragingMessage, Round};
use crate::prediction::PredictionMessage;
use crate::recovery_report::RecoveryReport;
use crate::transfer::TransferMessage;
use crate::{
    AckRange, Attempt, Duration, Hop, MicrobatchId, PeerId, RouteKey, RouteProof, StageIndex, WeightVersion,
};

/// Ids in one list of a claim or a claim reply at most.
pub const CLAIM_MAX: usize = 1_024;

/// Hops in the routes of one claim, so that a claim fits the header of a frame.
pub(crate) const CLAIM_HOPS_MAX: usize = 2_048;

/// The purpose of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Training: forward and backward, with an update of the weights.
    Train,
    /// Evaluation: forward only, to measure the loss on held-out text.
    Evaluate,
    /// Like `Evaluate`, but the last stage replaces the activation it received by zeros: the control that shows
    /// whether the upstream matters.
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
    /// Nats a token; NaN where there are no tokens.
    #[must_use]
    pub fn mean(&self) -> f64 {
        self.sum / f64::from(self.tokens)
    }
}

/// The reason why a microbatch was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A stage received or computed a NaN or an infinity.
    #[error("a number in it is not finite")]
    NonFinite,
    /// The payload does not fit the run: wrong shape, wrong length, token id out of range.
    #[error("{0}")]
    Malformed(String),
    /// The executor has no stash of the microbatch.
    #[error("the executor has no stash of it")]
    Unknown,
    /// The executor has no room for the microbatch.
    #[error("the executor has no room for it")]
    Busy,
    /// The next stage had no replica for too long.
    #[error("no replica serves the next stage")]
    Undeliverable,
    /// No replica is known to hold the microbatch, and it may not be injected twice.
    #[error("no replica is known to hold it")]
    Abandoned,
    /// The device failed; the text describes the failure.
    #[error("the device failed: {0}")]
    Device(String),
}

/// The status of a microbatch at a replica that was asked about it or could not take it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// The replica holds it; the gradient will follow, to the sender of the latest request.
    Held,
    /// The replica does not hold it: send it.
    Missing,
    /// The replica did not take it, because no slot is free. This is no fault.
    Busy,
    /// The replica gives it back: it reaches its feeder, or the next stage, no more. Send it to another replica.
    GivenBack,
}

/// Heartbeat between neighbours, every second, with the figures that routing needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Jobs that the executor has answered since the replica started: a counter that stands still tells stalled from
    /// slow.
    pub counter: u64,
    /// Tasks that wait for the executor.
    pub queued: u32,
    /// Time that the oldest of them has waited; zero if there are none, or if they wait for a grant.
    pub oldest: Duration,
    /// Moving average of the time of one forward; `None` before the first.
    pub service: Option<Duration>,
    /// Unanswered microbatches that the receiver may have at the sender.
    pub credit: u32,
}

/// A message without its payload. Neighbours on the route exchange the first six kinds; the next kinds pass between a
/// replica and a feeder. Any message may be lost, repeated or overtaken.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Downstream, with token ids and the activation: compute the microbatch.
    Forward {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Number of this attempt.
        attempt: Attempt,
        /// Training or evaluation.
        purpose: Purpose,
        /// An earlier attempt was lost with its receiver: this attempt takes no slot.
        is_retry: bool,
        /// The hops so far, the feeder first, the sender last.
        route: Vec<Hop>,
        /// The key of the receiver on this route.
        key: RouteKey,
        /// A replica further downstream that is known to hold the microbatch: the receiver asks it before it sends a
        /// forward.
        downstream_holder: Option<Hop>,
        /// Weight version that the sender computed the activation with; 0 from a feeder.
        version: WeightVersion,
    },
    /// Upstream, with the gradient of the activation. To a feeder, with an empty payload: the microbatch is back.
    Backward {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Number of the attempt that this message answers.
        attempt: Attempt,
        /// Training loss of the microbatch.
        loss: Loss,
        /// The replicas that computed the gradient, the last stage first, the sender last.
        path: Vec<Hop>,
    },
    /// Downstream: does the receiver hold the microbatch? From now on the sender is its upstream.
    StatusRequest {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Number of the attempt in question.
        attempt: Attempt,
        /// The hops so far, the feeder first, the sender last.
        route: Vec<Hop>,
        /// The key of the receiver on this route.
        key: RouteKey,
    },
    /// Upstream: the answer to a status request as long as there is no gradient, or to a forward that was not taken.
    StatusReply {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Number of the attempt that this message answers.
        attempt: Attempt,
        /// Its status at the sender.
        status: Status,
    },
    /// Upstream: a receipt. The microbatch was handed on to `next`.
    Forwarded {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// Number of the attempt that the sender received.
        attempt: Attempt,
        /// The replica that has it now.
        next: Hop,
    },
    /// To the nearest live hop of the route: `holder` has lost its upstream, but still has the microbatch.
    OrphanNotice {
        /// The microbatch.
        microbatch: MicrobatchId,
        /// The replica that holds it.
        holder: Hop,
    },
    /// To the feeder: may the sender apply its gradients of these microbatches?
    Claim {
        /// The stage of the sender.
        stage: StageIndex,
        /// The microbatches, at most [`CLAIM_MAX`], each with the proof that the sender was handed it; none asks for a
        /// sign of life.
        claimed: Vec<RouteProof>,
        /// Microbatches that the sender claimed earlier and promises never to apply, at most [`CLAIM_MAX`]. The reply
        /// denies them.
        forfeited: Vec<MicrobatchId>,
    },
    /// From the feeder: the answer to claims. For each microbatch and stage it grants exactly one claim.
    ClaimReply {
        /// The claimant applies its gradients of these microbatches.
        granted: Vec<MicrobatchId>,
        /// The claimant does not apply its gradients of these microbatches.
        denied: Vec<MicrobatchId>,
        /// The proof of these does not hold: the claimant, or the replica that handed them to it, lies.
        forged: Vec<MicrobatchId>,
    },
    /// To the feeder: the result of an evaluation.
    Evaluated {
        /// The microbatch, with the proof that the sender was handed it.
        proof: RouteProof,
        /// Number of an attempt of the feeder.
        attempt: Attempt,
        /// Loss of the microbatch.
        loss: Loss,
    },
    /// To the feeder: a replica refused the microbatch, which is its outcome.
    Refused {
        /// The microbatch, with the proof that the sender was handed it.
        proof: RouteProof,
        /// The replica that refused it.
        by: Hop,
        /// The reason.
        reason: Refusal,
    },
    /// From a feeder to each replica in its turn: these ids have their outcome, so replicas free their outputs and
    /// gradients.
    Outcomes {
        /// By first id, at most [`ACK_RANGES_MAX`](crate::ACK_RANGES_MAX).
        ranges: Vec<AckRange>,
    },
    /// From a feeder to every replica when it calls the round, and again with every announcement of outcomes.
    RoundCall {
        /// The round; 0 before the first.
        round: Round,
        /// Every microbatch has its outcome: this is one of the last rounds, and weights no longer change, once the replica
        /// has stepped with the rest of its accumulation.
        is_closing: bool,
        /// What each member of the receiver's group may weigh at most: the grants of this feeder that it has.
        weights: Vec<(PeerId, u64)>,
    },
    /// To a feeder: this averaging round and all earlier rounds have ended at the sender.
    RoundReport {
        /// The latest round that has ended.
        round: Round,
        /// In the rounds that carried the fragments last, no contribution waited for the rest of its optimizer step.
        is_complete: bool,
        /// Every fragment has been averaged with the sender's contribution in this round or a later one; `None` before
        /// that.
        carried: Option<Round>,
    },
    /// From a feeder that takes over a range of ids: a request for the receiver's recovery report.
    RecoverRange {
        /// The first id of the range.
        first: MicrobatchId,
        /// Number of the successor, from 1.
        epoch: u64,
        /// First id of the page requested.
        from: MicrobatchId,
    },
    /// To a feeder that takes over a range: one page of the recovery report.
    RecoveryReport(RecoveryReport),
    /// To neighbours, every second.
    Heartbeat(Heartbeat),
    /// Between replicas of a stage, in an averaging round.
    Averaging(AveragingMessage),
    /// Between a joiner and a donor, about the state of their stage.
    Transfer(TransferMessage),
    /// Between a reader and a replica. A request carries token ids and an activation, a reply the next activation or
    /// logits.
    Prediction(PredictionMessage),
}

/// A message and its payloads. `P` is opaque here: bytes in production, small values in simulation. A message without a
/// payload has empty payloads.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope<P> {
    /// The message.
    pub message: Message,
    /// The `B * (T + 1)` token ids of a forward or of a prediction, packed.
    pub ids: P,
    /// The packed activation or gradient, the numbers of an averaging round, or a chunk of a state.
    pub payload: P,
}

impl<P: Default> Envelope<P> {
    /// A message that carries `payload` and no token ids.
    pub fn with_payload(message: Message, payload: P) -> Self {
        Self { message, ids: P::default(), payload }
    }
}

impl<P: Default> From<Message> for Envelope<P> {
    fn from(message: Message) -> Self {
        Self::with_payload(message, P::default())
    }
}
