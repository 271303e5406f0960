//! Limits of a replica.

use crate::{Duration, Hop, Incarnation, PeerId, StageIndex};

/// Jobs given to the executor and not answered yet: one runs, one waits, so that the device never idles between
/// two, and a refusal rarely comes too late.
pub const EXECUTOR_DEPTH: usize = 2;

/// A microbatch that so many times the slots' number of jobs have overtaken is refused when its time is over, however
/// lively the rest is.
pub const OVERTAKEN_SLOTS: u64 = 8;

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
    /// Training microbatches held at once, each worth one stash of memory. Default 64.
    pub slots: usize,
    /// Evaluation microbatches held at once; they keep no stash. Default 64.
    pub evaluations_max: usize,
    /// Tasks that wait for the executor before further forwards are refused as busy. Gradients always find room:
    /// each belongs to a microbatch held. Default 128.
    pub queue_max: usize,
    /// A microbatch is refused after this long in which the executor did nothing for anybody: nobody answers for it
    /// any more. Longer than the feeder's deadline, which speaks first. Default 120 s.
    pub hold_max: Duration,
    /// How long a computed activation waits for somebody to serve the next stage before it is refused as
    /// undeliverable: the table may lag behind the upstream's. Default 1 s.
    pub route_patience: Duration,
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
            queue_max: 128,
            hold_max: Duration::from_secs(120),
            route_patience: Duration::from_secs(1),
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
        self.slots.saturating_add(EXECUTOR_DEPTH)
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

    fn neighbour(&self, stage: Option<StageIndex>, peer: PeerId, incarnation: Incarnation) -> Hop {
        Hop { stage, peer, incarnation }
    }
}
