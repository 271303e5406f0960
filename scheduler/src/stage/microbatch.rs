//! One microbatch at one replica.

use crate::handoff::attempts::{Neighbour, Sendings};
use crate::handoff::status_timer::Asking;
use crate::{Attempt, Duration, Hop, Loss, MicrobatchId, Purpose, Refusal, Time, WeightVersion};

/// A forward as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival<P> {
    pub(super) microbatch: MicrobatchId,
    pub(super) attempt: Attempt,
    pub(super) purpose: Purpose,
    pub(super) anew: bool,
    pub(super) route: Vec<Hop>,
    pub(super) holder: Option<Hop>,
    pub(super) ids: P,
    pub(super) code: P,
}

/// Everything a replica knows of a microbatch it holds. What was computed is kept until the microbatch has its
/// outcome: whoever loses it later can be given it again.
#[derive(Clone, Debug)]
pub(super) struct Visit<P> {
    pub(super) purpose: Purpose,
    /// Who hears of the gradient: the one who asked last.
    pub(super) upstream: Neighbour,
    /// The visits before this one.
    pub(super) route: Vec<Hop>,
    pub(super) ids: P,
    /// Takes a slot until its backward is done; what is sent anew takes none.
    pub(super) slotted: bool,
    pub(super) phase: Phase<P>,
    /// What the forward gave; none at the last stage.
    pub(super) output: Option<Output<P>>,
    pub(super) sendings: Sendings,
    /// When it was taken.
    pub(super) taken: Time,
    /// It had been lost with another replica of this stage.
    pub(super) anew: bool,
    /// A sending was lost with its receiver.
    pub(super) lost: bool,
    /// The nearest replica known to hold it further downstream than the next stage's or at it.
    pub(super) beyond: Option<Hop>,
    pub(super) claim: Claim,
    pub(super) share: Share,
    /// The feeder has announced its outcome.
    pub(super) ended: bool,
}

/// The packed activation and what it was computed with.
#[derive(Clone, Debug)]
pub(super) struct Output<P> {
    pub(super) version: WeightVersion,
    pub(super) code: P,
}

/// How far a microbatch is here.
#[derive(Clone, Debug)]
pub(super) enum Phase<P> {
    /// The forward waits for the executor.
    ForwardQueued { since: Time, code: P },
    /// The executor computes forward.
    Forwarding,
    /// Computed; waits for a replica of the next stage.
    Unrouted { since: Time },
    /// Handed on; the gradient is awaited.
    Passed { asking: Asking },
    /// The gradient came back and waits for the executor.
    BackwardQueued { since: Time, answer: Answer<P> },
    /// The executor computes backward.
    Backwarding { loss: Loss, path: Vec<Hop> },
    /// The gradient went upstream and is kept for whoever asks.
    Answered(Answer<P>),
    /// Refused here; the feeder was told.
    Refused { reason: Refusal, told: Time },
    /// Ended elsewhere while the executor computed forward: its answer is thrown away.
    Cancelled,
}

/// A gradient on its way up.
#[derive(Clone, Debug)]
pub(super) struct Answer<P> {
    pub(super) loss: Loss,
    /// Who computed it, the last stage first.
    pub(super) path: Vec<Hop>,
    pub(super) gradient: P,
}

/// Whether this replica may apply its gradients of the microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Claim {
    None,
    Asked { at: Time },
    Granted,
    Denied,
}

/// What became of the gradients of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// Not computed.
    None,
    /// Computed; waits in the executor for the feeder's word.
    Waiting,
    /// The executor applies it.
    Applying,
    /// Applied, dropped or never to be.
    Settled,
}

impl<P> Visit<P> {
    pub(super) fn new(arrival: Arrival<P>, sender: Hop, now: Time, slotted: bool) -> Self {
        let Arrival { attempt, purpose, anew, route, holder, ids, code, .. } = arrival;
        Self {
            purpose,
            upstream: Neighbour { hop: sender, attempt },
            route,
            ids,
            slotted,
            phase: Phase::ForwardQueued { since: now, code },
            output: None,
            sendings: Sendings::default(),
            taken: now,
            anew,
            lost: false,
            beyond: holder,
            claim: Claim::None,
            share: Share::None,
            ended: false,
        }
    }

    pub(super) fn trains(&self) -> bool {
        self.purpose == Purpose::Train
    }

    /// The feeder that decides about it.
    pub(super) fn arbiter(&self) -> Option<Hop> {
        self.route.first().copied()
    }

    /// Since when it waits for the executor.
    pub(super) fn queued_since(&self) -> Option<Time> {
        match self.phase {
            Phase::ForwardQueued { since, .. } | Phase::BackwardQueued { since, .. } => Some(since),
            Phase::Forwarding
            | Phase::Unrouted { .. }
            | Phase::Passed { .. }
            | Phase::Backwarding { .. }
            | Phase::Answered(_)
            | Phase::Refused { .. }
            | Phase::Cancelled => None,
        }
    }

    /// Since when it waits for a replica of the next stage.
    pub(super) fn unrouted_since(&self) -> Option<Time> {
        if let Phase::Unrouted { since } = self.phase { Some(since) } else { None }
    }

    /// When to ask who owes an answer, if `wait` is the usual wait; the first debt of all.
    pub(super) fn due(&self, wait: Duration) -> Option<Time> {
        let phase = match self.phase {
            Phase::Passed { asking } => Some(asking.due(wait)),
            Phase::Refused { told, .. } => Some(told + wait),
            _ => None,
        };
        let claim = if let Claim::Asked { at } = self.claim { Some(at + wait) } else { None };
        [phase, claim].into_iter().flatten().min()
    }

    /// Whether a gradient from downstream is of use.
    pub(super) fn awaits_gradient(&self) -> bool {
        matches!(self.phase, Phase::Unrouted { .. } | Phase::Passed { .. })
    }

    /// Whether all that was to be done here is done.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Answered(_)) && self.share == Share::Settled
    }

    /// Whether the executor still owes an answer.
    pub(super) fn running(&self) -> bool {
        let computing =
            matches!(self.phase, Phase::Forwarding | Phase::Backwarding { .. } | Phase::Cancelled);
        computing || self.share == Share::Applying
    }

    /// The downstream whose gradient is awaited.
    pub(super) fn awaited(&self) -> Option<Neighbour> {
        if matches!(self.phase, Phase::Passed { .. }) { self.sendings.latest() } else { None }
    }
}
