//! Limits of a replica.

use crate::mutation::Mutation;
use crate::{Duration, Hop, Incarnation, PeerId, StageIndex};

/// Jobs given to the executor and not answered yet: one runs, one waits, so that the device never idles between
/// two, and what ends meanwhile rarely ends too late.
pub const EXECUTOR_DEPTH: usize = 2;

/// Microbatches sent anew that a replica holds at most, as a multiple of its slots. They take no slot, or a swarm
/// whose slots are all taken could not recover.
pub const RESTORED_SLOTS: usize = 4;

/// Who a replica is and what it may hold.
#[derive(Clone, Debug)]
pub struct Config {
    /// Identity of this peer.
    pub peer: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
    /// The stage it serves.
    pub stage: StageIndex,
    /// Number of stages of the run.
    pub stages: u16,
    /// Training microbatches between forward and backward at once, each worth one stash of memory; those sent anew
    /// come on top, see [`RESTORED_SLOTS`]. Default 64.
    pub slots: usize,
    /// Evaluation microbatches held at once; they keep no stash. Default 64.
    pub evaluations_max: usize,
    /// Nothing is computed while gradients wait for their grant: whoever comes after them sees what they change. For
    /// runs that drain the pipeline between updates. Default false.
    pub in_step: bool,
    /// How long an answer is waited for before the silent side is asked what became of it; doubled, up to 8 times as
    /// long, each time it says that it holds it. Default 3 s.
    pub ask_after: Duration,
    /// How often neighbours hear a sign of life. Default 1 s.
    pub beat_every: Duration,
    /// How long a computed activation waits while nobody at all serves the next stage before it is refused as
    /// undeliverable: somebody may join. Default 10 s.
    pub route_patience: Duration,
    /// Which rule to break, to see whether the tests notice.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

impl Config {
    /// The defaults for a replica of `stage` in a run of `stages` stages.
    #[must_use]
    pub fn new(peer: PeerId, incarnation: Incarnation, stage: StageIndex, stages: u16) -> Self {
        Self {
            peer,
            incarnation,
            stage,
            stages,
            slots: 64,
            evaluations_max: 64,
            in_step: false,
            ask_after: Duration::from_secs(3),
            beat_every: Duration::from_secs(1),
            route_patience: Duration::from_secs(10),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// This replica as a visit on a route.
    #[must_use]
    pub fn hop(&self) -> Hop {
        self.neighbour(Some(self.stage), self.peer, self.incarnation)
    }

    /// Jobs, forgets included, that can lie unfinished with the executor: the capacity its channel needs.
    #[must_use]
    pub fn jobs_max(&self) -> usize {
        self.slots.saturating_mul(1 + RESTORED_SLOTS).saturating_add(2 * EXECUTOR_DEPTH)
    }

    /// Microbatches held at once that were sent anew.
    #[must_use]
    pub fn restored_max(&self) -> usize {
        self.slots.saturating_mul(RESTORED_SLOTS)
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

    pub(super) fn is_last(&self) -> bool {
        self.stage.0.saturating_add(1) >= self.stages
    }

    /// The hop of a sender if it is upstream of here.
    pub(super) fn upstream(&self, peer: PeerId, incarnation: Incarnation) -> Hop {
        self.neighbour(self.stage.0.checked_sub(1).map(StageIndex), peer, incarnation)
    }

    /// The hop of a sender if it is downstream of here.
    pub(super) fn downstream(&self, peer: PeerId, incarnation: Incarnation) -> Hop {
        self.neighbour(Some(self.next_stage()), peer, incarnation)
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

    fn neighbour(&self, stage: Option<StageIndex>, peer: PeerId, incarnation: Incarnation) -> Hop {
        Hop { stage, peer, incarnation }
    }
}
