//! Settings of a feeder.

use super::Carrying;
use crate::mutation::Mutation;
use crate::{Admission, Duration, Hop, Incarnation, PeerId, Purpose};

/// How long an unanswered request for a lease is waited for before it is repeated.
pub const LEASE_RETRY: Duration = Duration::from_secs(5);

/// How long nothing is injected after a microbatch came back undeliverable or found no room: the table does not know
/// yet that a stage is empty or leaves, and ids must not be burnt meanwhile.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// When everything has its outcome a feeder stays this long at most for claims that are on their way.
pub(super) const ANSWERS_WITHIN: Duration = Duration::from_secs(3);

/// How often an evaluation without an answer is sent; then the figure does without it.
pub const EVALUATION_TRIES: u32 = 8;

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
    /// How long an answer is waited for before the silent replica is asked what became of it; doubled, up to 8 times as
    /// long, each time it says that it holds it. Default 3 s.
    pub ask_after: Duration,
    /// How long the answer to an evaluation is waited for while none at all arrives; then it is sent again. Default 20 s.
    pub evaluation_patience: Duration,
    /// How often replicas hear which microbatches have their outcome. Default 250 ms.
    pub tell_every: Duration,
    /// Ids asked for at a time. Default 1,024.
    pub lease_count: u64,
    /// When replicas carry their contributions on to others: how averaging rounds are counted, and how many end a run.
    /// Default never.
    pub carrying: Option<Carrying>,
    /// Which rule to break, to see whether the tests notice.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
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
        Self {
            peer,
            incarnation,
            stages,
            total,
            admission,
            ask_after: Duration::from_secs(3),
            evaluation_patience: Duration::from_secs(20),
            tell_every: Duration::from_millis(250),
            lease_count: 1_024,
            carrying: None,
            #[cfg(test)]
            mutation: None,
        }
    }

    /// This feeder as the first visit of a route.
    #[must_use]
    pub fn hop(&self) -> Hop {
        Hop { stage: None, peer: self.peer, incarnation: self.incarnation }
    }

    /// How long an answer is waited for.
    pub(super) fn patience(&self, purpose: Purpose) -> Duration {
        if purpose == Purpose::Train { self.ask_after } else { self.evaluation_patience }
    }

    /// Whether this rule is broken on purpose.
    #[cfg(test)]
    pub(super) fn breaks(&self, rule: Mutation) -> bool {
        self.mutation == Some(rule)
    }

    #[cfg(not(test))]
    pub(super) const fn breaks(&self, _rule: Mutation) -> bool {
        false
    }
}
