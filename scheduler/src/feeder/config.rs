//! Settings of a feeder.

use crate::{Admission, Duration, Hop, Incarnation, PeerId};

/// How long an unanswered request for a lease is waited for before it is repeated.
pub const LEASE_RETRY: Duration = Duration::from_secs(5);

/// How long nothing is injected after a microbatch came back undeliverable or found no room: the table does not know
/// yet that a stage is empty or leaves, and ids must not be burnt meanwhile.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// A microbatch that so many windows of others have overtaken is given up at its deadline, however lively the rest is.
pub const OVERTAKEN_WINDOWS: u64 = 4;

/// Evaluations that can wait behind each other; further commands are declined.
pub const EVALUATIONS_MAX: usize = 16;

/// Who a feeder is and how it feeds.
#[derive(Clone, Debug)]
pub struct Config {
    /// Identity of this peer.
    pub peer: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// Number of stages of the run.
    pub stages: u16,
    /// Training microbatches to see an outcome of.
    pub total: u64,
    /// How many may be in flight.
    pub admission: Admission,
    /// A microbatch is reported lost after this long without any outcome, its own or another's. Default 60 s.
    pub deadline: Duration,
    /// Ids asked for at a time. Default 1,024.
    pub lease_count: u64,
}

impl Config {
    /// The defaults for a run of `stages` stages and `total` training microbatches.
    #[must_use]
    pub fn new(
        peer: PeerId,
        incarnation: Incarnation,
        stages: u16,
        total: u64,
        admission: Admission,
    ) -> Self {
        let deadline = Duration::from_secs(60);
        Self { peer, incarnation, stages, total, admission, deadline, lease_count: 1_024 }
    }

    /// This feeder as the first visit of a route.
    #[must_use]
    pub fn hop(&self) -> Hop {
        Hop { stage: None, peer: self.peer, incarnation: self.incarnation }
    }
}
