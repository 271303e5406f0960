//! One microbatch at one replica.

use super::job::Job;
use crate::handoff::Leg;
use crate::{Attempt, Hop, Loss, MicrobatchId, Purpose, Refusal, RouteKey, RouteProof, Time, WeightVersion};

/// A forward as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival<P> {
    pub(super) id: MicrobatchId,
    pub(super) attempt: Attempt,
    pub(super) purpose: Purpose,
    pub(super) is_retry: bool,
    pub(super) route: Vec<Hop>,
    pub(super) key: RouteKey,
    pub(super) downstream_holder: Option<Hop>,
    pub(super) ids: P,
    pub(super) activation: P,
}

/// A microbatch that a replica holds. Everything computed is kept until the microbatch has its outcome, so that it can
/// be sent again if a neighbour is lost.
#[derive(Clone, Debug)]
pub(super) struct Microbatch<P> {
    pub(super) purpose: Purpose,
    /// The receiver of the gradient: the peer that handed the microbatch on to this replica.
    pub(super) upstream: Leg,
    /// Another replica that asked for the gradient while the upstream is a member: it takes the place of a lost one. It
    /// gets the gradient too.
    pub(super) second_upstream: Option<Leg>,
    /// The hops before this replica.
    pub(super) route: Vec<Hop>,
    /// The key of this replica on that route.
    pub(super) key: RouteKey,
    pub(super) ids: P,
    /// Takes a slot until its backward is done; a retry takes none.
    pub(super) takes_slot: bool,
    pub(super) phase: Phase<P>,
    /// The result of the forward; none at the last stage.
    pub(super) output: Option<Output<P>>,
    pub(super) taken_at: Time,
    /// The sender marked it as a retry: another replica of this stage may have had it before, and is lost.
    pub(super) is_retry: bool,
    pub(super) claim: ClaimState,
    /// The first claim, on the clock of the own link.
    pub(super) claimed_since: Option<Time>,
    pub(super) update: UpdateState,
    /// The feeder has announced its outcome.
    pub(super) ended: bool,
}

/// The packed activation, and the weight version it was computed with.
#[derive(Clone, Debug)]
pub(super) struct Output<P> {
    pub(super) version: WeightVersion,
    pub(super) activation: P,
}

/// The progress of a microbatch at a replica.
#[derive(Clone, Debug)]
pub(super) enum Phase<P> {
    /// The forward waits for the executor.
    ForwardQueued { since: Time, activation: P },
    /// The executor computes forward.
    Forwarding,
    /// Computed; waits for a replica of the next stage.
    Unrouted { since: Time },
    /// Handed on; the gradient is awaited.
    HandedOn,
    /// The gradient came back and waits for the executor.
    BackwardQueued { since: Time, reply: GradientReply<P> },
    /// The executor computes backward.
    Backwarding { loss: Loss, path: Vec<Hop> },
    /// The gradient went upstream and is kept, in case it gets lost.
    Returned(GradientReply<P>),
    /// Refused here; the feeder was told.
    Refused { reason: Refusal, told_at: Time },
    /// The outcome was announced while the executor computed forward: its reply is discarded.
    Cancelled,
}

/// A gradient on its way up.
#[derive(Clone, Debug)]
pub(super) struct GradientReply<P> {
    pub(super) loss: Loss,
    /// The replicas that computed it, the last stage first.
    pub(super) path: Vec<Hop>,
    pub(super) gradient: P,
}

/// Whether this replica may apply its gradients of the microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ClaimState {
    Unclaimed,
    Claimed {
        at: Time,
    },
    Granted,
    Denied,
    /// The feeder left the claim unanswered for too long, or the grant was handed back: the gradients are never applied
    /// here, whatever the feeder answers.
    GivenUp,
}

/// The progress of the gradients of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpdateState {
    NotComputed,
    /// Computed; the executor keeps them until the feeder answers the claim.
    AwaitingGrant,
    Applying,
    /// Applied, dropped, or never to be computed.
    Done,
}

impl<P> Microbatch<P> {
    pub(super) fn new(arrival: Arrival<P>, sender: Hop, now: Time, takes_slot: bool) -> Self {
        let Arrival { attempt, purpose, is_retry, route, key, ids, activation, .. } = arrival;
        Self {
            purpose,
            upstream: Leg { hop: sender, attempt },
            second_upstream: None,
            route,
            key,
            ids,
            takes_slot,
            phase: Phase::ForwardQueued { since: now, activation },
            output: None,
            taken_at: now,
            is_retry,
            claim: ClaimState::Unclaimed,
            claimed_since: None,
            update: UpdateState::NotComputed,
            ended: false,
        }
    }

    pub(super) fn trains(&self) -> bool {
        self.purpose == Purpose::Train
    }

    /// Whether its next job computes gradients.
    pub(super) fn computes_gradients_next(&self, is_last: bool) -> bool {
        match self.phase {
            Phase::ForwardQueued { .. } => is_last && self.trains(),
            _ => true,
        }
    }

    /// Whether the feeder has not answered the claim.
    pub(super) fn is_unanswered(&self) -> bool {
        self.trains() && matches!(self.claim, ClaimState::Unclaimed | ClaimState::Claimed { .. })
    }

    /// Whether it does nothing but wait for the answer to its claim, where gradients without a grant are not computed.
    pub(super) fn waits_for_answer(&self, is_last: bool) -> bool {
        self.is_unanswered() && self.computes_gradients_next(is_last)
    }

    /// Whether this replica may apply its weight gradients.
    pub(super) fn is_granted(&self) -> bool {
        self.claim == ClaimState::Granted
    }

    /// The proof that this replica was handed the microbatch.
    pub(super) fn proof(&self, microbatch: MicrobatchId) -> RouteProof {
        RouteProof { microbatch, route: self.route.clone(), key: self.key }
    }

    /// The feeder that decides about the microbatch.
    pub(super) fn feeder(&self) -> Option<Hop> {
        self.route.first().copied()
    }

    /// The job that the microbatch waits for at its stage; from now on the executor has it.
    pub(super) fn start(&mut self, microbatch: MicrobatchId, first: bool, last: bool) -> Option<Job<P>>
    where
        P: Clone,
    {
        let (ids, granted) = (self.ids.clone(), self.is_granted());
        match std::mem::replace(&mut self.phase, Phase::Forwarding) {
            Phase::ForwardQueued { activation, .. } => Some(match self.purpose {
                Purpose::Train if last => Job::LossAndBackward { microbatch, ids, activation, granted },
                Purpose::Train => Job::Forward { microbatch, ids, activation },
                Purpose::Evaluate => Job::Evaluate { microbatch, ids, activation, cut: false },
                Purpose::EvaluateCut => Job::Evaluate { microbatch, ids, activation, cut: last && !first },
            }),
            Phase::BackwardQueued { reply: GradientReply { loss, path, gradient }, .. } => {
                self.phase = Phase::Backwarding { loss, path };
                Some(Job::Backward { microbatch, gradient, granted })
            }
            other => {
                self.phase = other;
                None
            }
        }
    }

    /// The time since which the microbatch waits for the executor.
    pub(super) fn queued_since(&self) -> Option<Time> {
        match self.phase {
            Phase::ForwardQueued { since, .. } | Phase::BackwardQueued { since, .. } => Some(since),
            Phase::Forwarding
            | Phase::Unrouted { .. }
            | Phase::HandedOn
            | Phase::Backwarding { .. }
            | Phase::Returned(_)
            | Phase::Refused { .. }
            | Phase::Cancelled => None,
        }
    }

    /// The time since which the microbatch waits for a replica of the next stage.
    pub(super) fn unrouted_since(&self) -> Option<Time> {
        if let Phase::Unrouted { since } = self.phase { Some(since) } else { None }
    }

    /// The time of the oldest claim or refusal that the feeder has not answered.
    pub(super) fn feeder_told_at(&self) -> Option<Time> {
        let refusal = if let Phase::Refused { told_at, .. } = self.phase { Some(told_at) } else { None };
        let claim = if let ClaimState::Claimed { at } = self.claim { Some(at) } else { None };
        refusal.into_iter().chain(claim).min()
    }

    /// Whether a gradient from downstream is needed.
    pub(super) fn awaits_gradient(&self) -> bool {
        matches!(self.phase, Phase::Unrouted { .. } | Phase::HandedOn)
    }

    /// Whether the executor keeps a stash of it.
    pub(super) fn is_stashed(&self) -> bool {
        let kept =
            matches!(self.phase, Phase::Unrouted { .. } | Phase::HandedOn | Phase::BackwardQueued { .. });
        kept && self.trains()
    }

    /// Whether its gradient went upstream, or never will.
    #[cfg(any(test, feature = "sim"))]
    pub(super) fn is_returned(&self) -> bool {
        matches!(self.phase, Phase::Returned(_) | Phase::Refused { .. } | Phase::Cancelled)
    }

    /// Whether the replica has done all its work for the microbatch.
    pub(super) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Returned(_)) && self.update == UpdateState::Done
    }

    /// Whether the executor still owes a reply.
    pub(super) fn is_running(&self) -> bool {
        let computing =
            matches!(self.phase, Phase::Forwarding | Phase::Backwarding { .. } | Phase::Cancelled);
        computing || self.update == UpdateState::Applying
    }
}
