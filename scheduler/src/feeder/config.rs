//! Settings of a feeder.

use super::{AveragingSchedule, EvaluationSchedule};
use crate::mutation::Mutation;
use crate::{Admission, Duration, Hop, Instance, RouteSecret};

/// How long a reply to a request for a lease is awaited before the request is repeated.
pub const LEASE_RETRY: Duration = Duration::from_secs(5);

/// Pause of the injection after a microbatch was refused as undeliverable: a stage is empty and the table does not show
/// it yet, and ids must not be wasted meanwhile.
pub const REFUSED_PAUSE: Duration = Duration::from_secs(1);

/// Time that a feeder waits for the claims of a microbatch whose gradient is back. Replicas repeat their claims three
/// times within it.
pub(super) const CLAIMS_WITHIN: Duration = Duration::from_secs(10);

/// More microbatches than this that wait for a replica show that the replicas of stage 0 have no room.
pub(super) const SCARCE: usize = 4;

/// Ids asked for at a time, in windows: half of them last while the next request is answered.
pub(super) const WINDOWS_A_LEASE: u64 = 4;

/// Times that an evaluation microbatch without an answer is sent; then the figure leaves it out.
pub const EVALUATION_TRIES: u32 = 8;

/// Evaluations that wait or run at most; further commands are declined.
pub const EVALUATIONS_MAX: usize = 16;

/// Identity and settings of a feeder.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// This start of this peer.
    pub me: Instance,
    /// Number of stages of the run.
    pub stages: u16,
    /// Training microbatches that need an outcome before the run is over.
    pub total: u64,
    /// The limit of microbatches in flight.
    pub admission: Admission,
    /// How long a reply is awaited before its status is requested; doubled, up to 8 times as long, each time the replica
    /// replies that it holds the microbatch. Default 3 s.
    pub status_after: Duration,
    /// How long the result of an evaluation is awaited at most, while none at all arrives; then it is sent again. As soon
    /// as the usual turnaround is known, the wait is a few of those, and no shorter than `status_after`. Default 20 s.
    pub evaluation_timeout: Duration,
    /// Time between two announcements of outcomes. Default 250 ms.
    pub announce_interval: Duration,
    /// Ids asked for at a time; more if that is less than four windows. What one feeder has leased, no other injects.
    /// Default 1,024.
    pub lease_count: u64,
    /// The schedule of averaging rounds. Default none.
    pub averaging: Option<AveragingSchedule>,
    /// Contributions of one optimizer step of a replica, at least 1: those of a step that is not complete are in no mean.
    /// Default 1.
    pub gradient_accumulation_steps: u64,
    /// The schedule of measurements of the loss on held-out text, besides commands. Default none.
    pub evaluation: Option<EvaluationSchedule>,
    /// The secret of this feeder, by which it knows the replicas that were handed a microbatch. The same after a restart.
    /// Default zeros, which any peer can guess.
    pub secret: RouteSecret,
    /// How long a feeder that was asked to stop waits for the microbatches in flight. Default 10 s.
    pub stop_within: Duration,
    /// The rule that a test breaks on purpose.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

impl Config {
    /// The defaults for a run of `stages` stages and `total` training microbatches.
    #[must_use]
    pub fn new(me: Instance, stages: u16, total: u64, admission: Admission) -> Self {
        Self {
            me,
            stages,
            total,
            admission,
            status_after: Duration::from_secs(3),
            evaluation_timeout: Duration::from_secs(20),
            announce_interval: Duration::from_millis(250),
            lease_count: 1_024,
            averaging: None,
            gradient_accumulation_steps: 1,
            evaluation: None,
            secret: RouteSecret::default(),
            stop_within: Duration::from_secs(10),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// This feeder as the first hop of a route.
    #[must_use]
    pub fn hop(&self) -> Hop {
        Hop::feeder(self.me)
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
