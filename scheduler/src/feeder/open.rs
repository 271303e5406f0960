//! A microbatch that was admitted and has no outcome yet.

use crate::handoff::attempts::{Neighbour, Sendings};
use crate::handoff::status_timer::Asking;
use crate::{Duration, Hop, Purpose, Time};

/// A microbatch that was admitted and has no outcome.
#[derive(Clone, Debug)]
pub(super) struct Open<P> {
    pub(super) purpose: Purpose,
    pub(super) phase: Phase,
    pub(super) ids: Option<P>,
    pub(super) sendings: Sendings,
    /// A sending was lost with its receiver.
    pub(super) lost: bool,
    /// Sent before a restart: who had it is asked before it is sent again.
    pub(super) recalled: bool,
    /// Who is known to hold it beyond stage 0.
    pub(super) beyond: Option<Hop>,
}

/// How far it is.
#[derive(Clone, Copy, Debug)]
pub(super) enum Phase {
    /// The shell draws its tokens.
    Drawing,
    /// Waits for a replica of stage 0.
    Drawn,
    /// An answer is awaited.
    Sent {
        /// When to ask for it.
        asking: Asking,
    },
}

impl<P> Open<P> {
    pub(super) fn new(purpose: Purpose) -> Self {
        Self {
            purpose,
            phase: Phase::Drawing,
            ids: None,
            sendings: Sendings::default(),
            lost: false,
            recalled: false,
            beyond: None,
        }
    }

    pub(super) fn trains(&self) -> bool {
        self.purpose == Purpose::Train
    }

    /// When to ask who owes an answer, if `wait` is the usual wait.
    pub(super) fn due(&self, wait: Duration) -> Option<Time> {
        if let Phase::Sent { asking } = self.phase { Some(asking.due(wait)) } else { None }
    }

    /// The replica whose answer is awaited.
    pub(super) fn awaited(&self) -> Option<Neighbour> {
        if matches!(self.phase, Phase::Sent { .. }) { self.sendings.latest() } else { None }
    }
}
