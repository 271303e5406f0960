//! Limits of a replica.

use crate::message::{CLAIM_HOPS_MAX, CLAIM_MAX};
use crate::mutation::Mutation;
use crate::{Duration, Hop, Instance, StageIndex};

/// Jobs given to the executor without a reply yet: one runs, one waits. The device never idles between two jobs, and a
/// microbatch that ends meanwhile rarely ends too late.
pub const EXECUTOR_DEPTH: usize = 2;

/// Retried microbatches that a replica holds at most, as a multiple of its slots. They take no slot, or a swarm whose
/// slots are all taken could not recover.
pub const RETRIES_PER_SLOT: usize = 4;

/// Microbatches of one feeder that a replica holds at most, as a multiple of its slots. Those whose gradient is computed
/// take no slot, and a feeder may announce no outcome.
pub(super) const HELD_PER_SLOT: usize = 16;
/// That limit for few slots: far more than an honest feeder has in flight.
pub(super) const HELD_MIN: usize = 4_096;

/// Identity and limits of a replica.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// This start of this peer.
    pub me: Instance,
    /// The stage it serves.
    pub stage: StageIndex,
    /// Number of stages of the run.
    pub stages: u16,
    /// Training microbatches between forward and backward at once, each worth one stash of memory; retries come on top,
    /// see [`RETRIES_PER_SLOT`]. Default 64.
    pub slots: usize,
    /// Evaluation microbatches held at once; they keep no stash. Default 64.
    pub evaluations_max: usize,
    /// Compute nothing while gradients wait for their grant, so that the next microbatch sees the update. For runs that
    /// drain the pipeline between updates. Default false.
    pub synchronous: bool,
    /// How long a reply is awaited before its status is requested; doubled, up to 8 times as long, each time the
    /// neighbour replies that it holds the microbatch. Default 3 s.
    pub status_after: Duration,
    /// Time between two heartbeats to neighbours. Default 1 s.
    pub heartbeat_interval: Duration,
    /// How long a computed activation waits while the next stage has no replica at all, before it is refused as
    /// undeliverable: a replica may join. Default 10 s.
    pub route_timeout: Duration,
    /// The rule that a test breaks on purpose.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

impl Config {
    /// The defaults for a replica of `stage` in a run of `stages` stages.
    #[must_use]
    pub fn new(me: Instance, stage: StageIndex, stages: u16) -> Self {
        Self {
            me,
            stage,
            stages,
            slots: 64,
            evaluations_max: 64,
            synchronous: false,
            status_after: Duration::from_secs(3),
            heartbeat_interval: Duration::from_secs(1),
            route_timeout: Duration::from_secs(10),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// This replica as a hop of a route.
    #[must_use]
    pub fn hop(&self) -> Hop {
        Hop::replica(self.stage, self.me)
    }

    /// Unfinished jobs of the executor at most, forgets included: the capacity that its channel needs.
    #[must_use]
    pub fn jobs_max(&self) -> usize {
        self.slots.saturating_mul(1 + RETRIES_PER_SLOT).saturating_add(2 * EXECUTOR_DEPTH)
    }

    /// Microbatches in one claim: their routes are no longer than [`CLAIM_HOPS_MAX`] together.
    pub(super) fn claims_max(&self) -> usize {
        (CLAIM_HOPS_MAX / (usize::from(self.stage.0) + 1)).clamp(1, CLAIM_MAX)
    }

    /// Retried microbatches held at once.
    #[must_use]
    pub fn retries_max(&self) -> usize {
        self.slots.saturating_mul(RETRIES_PER_SLOT)
    }

    /// Microbatches of one feeder held at once, with those that only wait for their outcome.
    #[must_use]
    pub fn held_max(&self) -> usize {
        self.slots.saturating_mul(HELD_PER_SLOT).max(HELD_MIN)
    }

    /// Whether this rule is broken on purpose.
    #[cfg(test)]
    pub(crate) fn breaks(&self, rule: Mutation) -> bool {
        self.mutation == Some(rule)
    }

    #[cfg(not(test))]
    pub(crate) const fn breaks(&self, _rule: Mutation) -> bool {
        false
    }

    pub(super) fn is_last(&self) -> bool {
        self.stage.0.saturating_add(1) >= self.stages
    }

    /// The sender as a hop upstream of this replica.
    pub(super) fn upstream(&self, from: Instance) -> Hop {
        Hop { stage: self.stage.0.checked_sub(1).map(StageIndex), instance: from }
    }

    /// The sender as a hop downstream of this replica.
    pub(super) fn downstream(&self, from: Instance) -> Hop {
        Hop::replica(self.next_stage(), from)
    }

    pub(super) fn next_stage(&self) -> StageIndex {
        StageIndex(self.stage.0.saturating_add(1))
    }

    /// Whether `route` leads from a feeder through every stage before this one.
    pub(super) fn accepts_route(&self, route: &[Hop]) -> bool {
        let stages = std::iter::once(None).chain((0..self.stage.0).map(|stage| Some(StageIndex(stage))));
        route.iter().map(|hop| hop.stage).eq(stages)
    }

    /// Whether `path` leads from the last stage down to `sender`, at the next stage.
    pub(super) fn accepts_path(&self, path: &[Hop], sender: Hop) -> bool {
        let stages = (self.stage.0.saturating_add(1)..self.stages).rev().map(|stage| Some(StageIndex(stage)));
        path.last() == Some(&sender) && path.iter().map(|hop| hop.stage).eq(stages)
    }
}
