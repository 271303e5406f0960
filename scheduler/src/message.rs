//! What feeders and replicas say to each other.

use crate::averaging::{AveragingMessage, Round};
use crate::recovery_report::RecoveryReport;
use crate::transfer::TransferMessage;
use crate::{AckRange, Attempt, Duration, Hop, MicrobatchId, StageIndex, WeightVersion};

/// Ids in one claim or claim reply at most.
pub const CLAIM_MAX: usize = 1_024;

/// Why a microbatch travels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Purpose {
    /// Forward and backward; weights learn from it.
    Train,
    /// Forward only, to measure the loss on held-out text.
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

/// Why a microbatch was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// A NaN or an infinity in what a stage received or computed.
    #[error("a number in it is not finite")]
    NonFinite,
    /// Bytes that do not fit the run: wrong shape, wrong length, token id out of range.
    #[error("{0}")]
    Malformed(String),
    /// The executor has no stash of it.
    #[error("the executor has no stash of it")]
    Unknown,
    /// The executor has no room for it.
    #[error("the executor has no room for it")]
    Busy,
    /// The next stage had no replica for too long.
    #[error("no replica serves the next stage")]
    Undeliverable,
    /// No replica is known to hold it, and it may not be injected twice.
    #[error("no replica is known to hold it")]
    Abandoned,
    /// The device failed; the text says how.
    #[error("the device failed: {0}")]
    Device(String),
}

/// What a replica says of a microbatch it was asked about, or could not take.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Status {
    /// It is here; its gradient will follow, to the sender of the latest request.
    Held,
    /// It is not here: send it.
    Missing,
    /// It was not taken, because no slot is free. This is no fault.
    Busy,
}

/// Sign of life between neighbours, every second, with what routing needs to know.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Heartbeat {
    /// Jobs the executor has answered since the replica started: a counter that stands still tells stalled from slow.
    pub counter: u64,
    /// Tasks that wait for the executor.
    pub queued: u32,
    /// Age of the oldest of them; zero if there are none, or if they wait for a grant.
    pub oldest: Duration,
    /// Moving average of the time a forward takes to compute; `None` before the first.
    pub service: Option<Duration>,
    /// Unanswered microbatches the receiver may have at the sender.
    pub credit: u32,
}

/// A message without its payload. Neighbours on the route exchange the first six; the next ones pass between a replica
/// and the feeder that injected the microbatch. Any of them may be lost, repeated or overtaken.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Downstream, with token ids and the activation: compute this.
    Forward {
        /// The id.
        microbatch: MicrobatchId,
        /// Number of this sending.
        attempt: Attempt,
        /// Why it travels.
        purpose: Purpose,
        /// An earlier attempt was lost with its receiver: this one takes no slot.
        is_retry: bool,
        /// The hops so far, the feeder first, the sender last.
        route: Vec<Hop>,
        /// A replica further downstream that is known to hold it: to be asked before the receiver sends it on.
        downstream_holder: Option<Hop>,
        /// Weight version the sender computed the activation with; 0 from a feeder.
        version: WeightVersion,
    },
    /// Upstream, with the gradient of the activation. To a feeder, with an empty payload: the microbatch is back.
    Backward {
        /// The id.
        microbatch: MicrobatchId,
        /// Number of the forward this answers.
        attempt: Attempt,
        /// Training loss of the microbatch.
        loss: Loss,
        /// The replicas that computed the gradient, the last stage first, the sender last. The path is the claim of
        /// each of them.
        path: Vec<Hop>,
    },
    /// Downstream: do you hold this? From now on the sender is its upstream.
    StatusRequest {
        /// The id.
        microbatch: MicrobatchId,
        /// Number of the sending this asks about.
        attempt: Attempt,
        /// The hops so far, the feeder first, the sender last.
        route: Vec<Hop>,
    },
    /// Upstream: the answer to a status request as long as there is no gradient, or to a forward that was not taken.
    StatusReply {
        /// The id.
        microbatch: MicrobatchId,
        /// Number of what this answers.
        attempt: Attempt,
        /// What became of it.
        status: Status,
    },
    /// Upstream: a receipt. The microbatch was handed on to `next`.
    Forwarded {
        /// The id.
        microbatch: MicrobatchId,
        /// Number of the forward it arrived with.
        attempt: Attempt,
        /// The replica that has it now.
        next: Hop,
    },
    /// To the nearest live hop of the route: `holder` has lost its upstream, but still has the microbatch.
    OrphanNotice {
        /// The id.
        microbatch: MicrobatchId,
        /// The replica that holds it.
        holder: Hop,
    },
    /// To the feeder: may the sender apply its gradients of these microbatches?
    Claim {
        /// The stage of the sender.
        stage: StageIndex,
        /// The ids, at most [`CLAIM_MAX`].
        microbatches: Vec<MicrobatchId>,
    },
    /// From the feeder: the answer to claims. For each microbatch and stage it grants exactly one claim.
    ClaimReply {
        /// The sender of the claim applies these.
        granted: Vec<MicrobatchId>,
        /// Another replica applies these.
        denied: Vec<MicrobatchId>,
    },
    /// To the feeder: the result of an evaluation.
    Evaluated {
        /// The id.
        microbatch: MicrobatchId,
        /// The number the feeder gave it.
        attempt: Attempt,
        /// Its loss.
        loss: Loss,
    },
    /// To the feeder: the microbatch is refused and counts as such.
    Refused {
        /// The id.
        microbatch: MicrobatchId,
        /// The replica that refused it.
        by: Hop,
        /// Why.
        reason: Refusal,
    },
    /// From a feeder to every replica: these ids have their outcome, so what is kept of them is freed.
    Outcomes {
        /// By first id, at most [`ACK_RANGES_MAX`](crate::ACK_RANGES_MAX).
        ranges: Vec<AckRange>,
    },
    /// From a feeder to every replica: the current averaging round. Repeated until the round has ended everywhere.
    RoundCall {
        /// The round; 0 before the first.
        round: Round,
        /// Every microbatch has its outcome: this round is one of the last, of weights that no longer change.
        is_closing: bool,
    },
    /// To a feeder: this averaging round and all before it have ended at the sender.
    RoundReport {
        /// The round.
        round: Round,
    },
    /// From a feeder that takes over a range of ids: what do you know of them?
    RecoverRange {
        /// The first id of the range.
        first: MicrobatchId,
        /// Number of the successor, from 1.
        epoch: u64,
        /// Ids below were reported before.
        from: MicrobatchId,
    },
    /// To a feeder that takes over a range: one page of the answer.
    RecoveryReport(RecoveryReport),
    /// To neighbours: a sign of life.
    Heartbeat(Heartbeat),
    /// Between replicas of a stage: an averaging round.
    Averaging(AveragingMessage),
    /// Between a joining replica and a donor: the state of their stage.
    Transfer(TransferMessage),
}

/// A message and the payloads that travel with it. `P` is opaque here: bytes in production, small values in simulation.
/// A message without a payload has empty ones.
#[derive(Clone, Debug, PartialEq)]
pub struct Envelope<P> {
    /// What is said.
    pub message: Message,
    /// Of a forward: the `B * (T + 1)` token ids, packed.
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
