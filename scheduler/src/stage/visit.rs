//! One microbatch at one replica.

use crate::patience::Wait;
use crate::{Attempt, Hop, Loss, MicrobatchId, Purpose, Time, WeightVersion};

/// A forward as it arrived.
#[derive(Clone, Debug)]
pub(super) struct Arrival<P> {
    pub(super) microbatch: MicrobatchId,
    pub(super) attempt: Attempt,
    pub(super) purpose: Purpose,
    pub(super) route: Vec<Hop>,
    pub(super) ids: P,
    pub(super) code: P,
}

/// Who a microbatch is exchanged with, and under which attempt number. Upstream and downstream numbers are apart:
/// a sending anew changes one of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Neighbour {
    pub(super) hop: Hop,
    pub(super) attempt: Attempt,
}

/// What a replica knows of a microbatch it holds.
#[derive(Clone, Debug)]
pub(super) struct Visit<P> {
    pub(super) purpose: Purpose,
    pub(super) upstream: Neighbour,
    pub(super) downstream: Option<Neighbour>,
    /// The visits before this one.
    pub(super) route: Vec<Hop>,
    pub(super) wait: Wait,
    pub(super) phase: Phase<P>,
}

/// How far a microbatch is here.
#[derive(Clone, Debug)]
pub(super) enum Phase<P> {
    /// The forward waits for the executor.
    ForwardQueued { since: Time, ids: P, code: P },
    /// The executor computes forward; the ids wait to be sent on.
    Forwarding { ids: P },
    /// Computed; waits for a replica of the next stage.
    Unrouted { since: Time, version: WeightVersion, ids: P, code: P },
    /// Sent on; what comes back is awaited.
    Passed,
    /// The gradient came back and waits for the executor.
    BackwardQueued { since: Time, loss: Loss, gradient: P },
    /// The executor computes backward.
    Backwarding { loss: Loss },
    /// The executor is done and nothing is left to hold.
    Released,
    /// Refused while the executor had it: everybody was told, the answer is thrown away.
    Cancelled,
}

impl<P> Visit<P> {
    pub(super) fn trains(&self) -> bool {
        self.purpose == Purpose::Train
    }

    /// Since when it waits for the executor.
    pub(super) fn queued_since(&self) -> Option<Time> {
        match self.phase {
            Phase::ForwardQueued { since, .. } | Phase::BackwardQueued { since, .. } => Some(since),
            Phase::Forwarding { .. }
            | Phase::Unrouted { .. }
            | Phase::Passed
            | Phase::Backwarding { .. }
            | Phase::Released
            | Phase::Cancelled => None,
        }
    }

    /// Since when it waits for a replica of the next stage.
    pub(super) fn unrouted_since(&self) -> Option<Time> {
        if let Phase::Unrouted { since, .. } = self.phase { Some(since) } else { None }
    }

    /// Whether the executor keeps a stash that only a backward or a forget removes.
    pub(super) fn stashed(&self) -> bool {
        let kept =
            matches!(self.phase, Phase::Unrouted { .. } | Phase::Passed | Phase::BackwardQueued { .. });
        self.trains() && kept
    }

    /// Whether the executor still owes an answer.
    pub(super) fn running(&self) -> bool {
        matches!(self.phase, Phase::Forwarding { .. } | Phase::Backwarding { .. } | Phase::Cancelled)
    }
}
