//! Which stage a replica serves.

use std::collections::BTreeMap;

use crate::{StageIndex, Standing};

/// Replicas placed on each stage, loading or serving.
#[derive(Clone, Debug)]
pub struct Occupancy {
    replicas: BTreeMap<StageIndex, u32>,
}

impl Occupancy {
    /// Counts the members' standings over `stages` stages.
    pub fn new(stages: u16, standings: impl Iterator<Item = Standing>) -> Self {
        let mut replicas: BTreeMap<_, _> = (0..stages).map(|stage| (StageIndex(stage), 0)).collect();
        for standing in standings {
            if let Standing::Loading(stage) | Standing::Serving(stage) = standing {
                *replicas.entry(stage).or_default() += 1;
            }
        }
        Self { replicas }
    }

    /// Where a newcomer is needed: its `previous` stage if there is room, else the stage with the fewest
    /// replicas, the earliest of them; `None` if every stage has `limit` replicas.
    #[must_use]
    pub fn place(&self, limit: u32, previous: Option<StageIndex>) -> Option<StageIndex> {
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
        let standings =
            [Standing::Serving(stage(0)), Standing::Loading(stage(2)), Standing::Standby, Standing::Feeding];
        let occupancy = Occupancy::new(4, standings.into_iter());
        assert_eq!(occupancy.place(1, None), Some(stage(1)));
        assert_eq!(occupancy.place(1, Some(stage(3))), Some(stage(3)));
        assert_eq!(occupancy.place(1, Some(stage(2))), Some(stage(1)));
        assert_eq!(occupancy.place(1, Some(stage(9))), Some(stage(1)));
        assert_eq!(Occupancy::new(1, standings.into_iter().take(1)).place(1, None), None);
        assert_eq!(Occupancy::new(0, standings.into_iter().skip(3)).place(1, None), None);
    }
}
