//! The replicas on each stage, and the choice of a stage for a replica.

use std::collections::BTreeSet;

use crate::{MemberState, StageIndex};

/// Replicas on each stage, counted as they come and go.
#[derive(Clone, Debug)]
pub(super) struct Occupancy {
    stages: Vec<Replicas>,
    /// The stages by the replicas placed on them: the first has the fewest.
    by_placed: BTreeSet<(u32, StageIndex)>,
    unserved: BTreeSet<StageIndex>,
}

/// Replicas on one stage.
#[derive(Clone, Copy, Debug, Default)]
struct Replicas {
    /// Loading or serving.
    placed: u32,
    serving: u32,
}

impl Occupancy {
    /// `stages` stages without replicas.
    pub(super) fn new(stages: u16) -> Self {
        let all = || (0..stages).map(StageIndex);
        Self {
            stages: vec![Replicas::default(); stages.into()],
            by_placed: all().map(|stage| (0, stage)).collect(),
            unserved: all().collect(),
        }
    }

    /// A member is in `state` from now on.
    pub(super) fn enter(&mut self, state: MemberState) {
        self.change(state, |count| count.saturating_add(1));
    }

    /// A member was in `state` until now.
    pub(super) fn exit(&mut self, state: MemberState) {
        self.change(state, |count| count.saturating_sub(1));
    }

    /// The stage that a new replica is placed on: its `previous` stage if there is room, else the first of the stages
    /// with the fewest replicas; `None` if every stage has `limit` replicas.
    #[must_use]
    pub(super) fn place(&self, limit: u32, previous: Option<StageIndex>) -> Option<StageIndex> {
        let room = |stage: &StageIndex| self.get(*stage).is_some_and(|replicas| replicas.placed < limit);
        let fewest = || self.by_placed.first().map(|&(_, stage)| stage);
        previous.filter(room).or_else(fewest).filter(room)
    }

    /// Whether `stage` is a stage of the run without a replica that serves it.
    #[must_use]
    pub(super) fn is_unserved(&self, stage: StageIndex) -> bool {
        self.unserved.contains(&stage)
    }

    /// Replicas that serve `stage`.
    #[must_use]
    pub(super) fn serving(&self, stage: StageIndex) -> u32 {
        self.get(stage).map_or(0, |replicas| replicas.serving)
    }

    /// Whether every stage is served.
    #[must_use]
    pub(super) fn is_complete(&self) -> bool {
        self.unserved.is_empty()
    }

    /// Stages without a replica that serves, ascending.
    pub(super) fn unserved(&self) -> impl Iterator<Item = StageIndex> {
        self.unserved.iter().copied()
    }

    fn get(&self, stage: StageIndex) -> Option<&Replicas> {
        self.stages.get(usize::from(stage.0))
    }

    fn change(&mut self, state: MemberState, count: impl Fn(u32) -> u32) {
        let Some(stage) = state.stage() else { return };
        let Some(replicas) = self.stages.get_mut(usize::from(stage.0)) else { return };
        self.by_placed.remove(&(replicas.placed, stage));
        replicas.placed = count(replicas.placed);
        self.by_placed.insert((replicas.placed, stage));
        if state == MemberState::Serving(stage) {
            replicas.serving = count(replicas.serving);
        }
        if replicas.serving == 0 {
            self.unserved.insert(stage)
        } else {
            self.unserved.remove(&stage)
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_the_emptiest_stage_and_prefers_the_old_one() {
        let stage = StageIndex;
        let states = [
            MemberState::Serving(stage(0)),
            MemberState::Loading(stage(2)),
            MemberState::Standby,
            MemberState::Feeding,
        ];
        let mut occupancy = Occupancy::new(4);
        states.into_iter().for_each(|state| occupancy.enter(state));
        assert_eq!(occupancy.place(1, None), Some(stage(1)));
        assert_eq!(occupancy.place(1, Some(stage(3))), Some(stage(3)));
        assert_eq!(occupancy.place(1, Some(stage(2))), Some(stage(1)));
        assert_eq!(occupancy.place(1, Some(stage(9))), Some(stage(1)));
        assert_eq!(occupancy.unserved().collect::<Vec<_>>(), [1, 2, 3].map(stage));
        occupancy.exit(states[0]);
        assert_eq!(occupancy.place(1, None), Some(stage(0)));
        assert!(occupancy.is_unserved(stage(0)) && !occupancy.is_unserved(stage(4)));
        assert_eq!(Occupancy::new(0).place(1, None), None);
    }

    #[test]
    fn a_full_run_has_no_place() {
        let mut occupancy = Occupancy::new(1);
        occupancy.enter(MemberState::Loading(StageIndex(0)));
        assert_eq!(occupancy.place(1, None), None);
        assert_eq!(occupancy.place(2, None), Some(StageIndex(0)));
    }
}
