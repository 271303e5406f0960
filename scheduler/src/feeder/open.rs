//! A microbatch that was admitted and has no outcome yet.

use crate::Purpose;

/// A microbatch that was admitted and has no outcome.
#[derive(Clone, Debug)]
pub(super) struct Open<P> {
    pub(super) purpose: Purpose,
    pub(super) phase: Phase,
    pub(super) ids: Option<P>,
    /// Sent before a restart: the replica that had it is asked before it is sent again.
    pub(super) recalled: bool,
}

/// The progress of an open microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The process draws its tokens.
    Drawing,
    /// The microbatch waits for a replica of stage 0.
    Drawn,
    /// The reply of a replica is awaited.
    Sent,
    /// The gradient is back; claims are awaited.
    Returned,
}

impl<P> Open<P> {
    pub(super) fn new(purpose: Purpose) -> Self {
        Self { purpose, phase: Phase::Drawing, ids: None, recalled: false }
    }

    pub(super) fn trains(&self) -> bool {
        self.purpose == Purpose::Train
    }
}
