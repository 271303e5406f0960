//! The choice of a stage for a replica.

use std::collections::BTreeMap;

use crate::{MemberState, StageIndex};

/// Replicas placed on each stage, loading or serving.
#[derive(Clone, Debug)]
pub(super) struct Occupancy {
    replicas: BTreeMap<StageIndex, u32>,
}

impl Occupancy {
    /// Counts the replicas among `states` over `stages` stages.
    pub(super) fn new(stages: u16, states: impl Iterator<Item = MemberState>) -> Self {
        let mut replicas: BTreeMap<_, _> = (0..stages).map(|stage| (StageIndex(stage), 0)).collect();
        for state in states {
            if let Some(stage) = state.stage() {
                *replicas.entry(stage).or_default() += 1;
            }
        }
        Self { replicas }
    }

    /// The stage that a new replica is placed on: its `previous` stage if there is room, else the first of the stages
    /// with the fewest replicas; `None` if every stage has `limit` replicas.
    #[must_use]
    pub(super) fn place(&self, limit: u32, previous: Option<StageIndex>) -> Option<StageIndex> {
        let room = |stage: &StageIndex| self.replicas.get(stage).is_some_and(|&count| count < limit);
        let fewest = || self.replicas.iter().min_by_key(|(_, count)| **count).map(|(&stage, _)| stage);
        previous.filter(room).or_else(fewest).filter(room)
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
        let occupancy = Occupancy::new(4, states.into_iter());
        assert_eq!(occupancy.place(1, None), Some(stage(1)));
        assert_eq!(occupancy.place(1, Some(stage(3))), Some(stage(3)));
        assert_eq!(occupancy.place(1, Some(stage(2))), Some(stage(1)));
        assert_eq!(occupancy.place(1, Some(stage(9))), Some(stage(1)));
        assert_eq!(Occupancy::new(1, states.into_iter().take(1)).place(1, None), None);
        assert_eq!(Occupancy::new(0, states.into_iter().skip(3)).place(1, None), None);
    }
}
