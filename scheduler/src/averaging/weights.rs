//! What a replica may weigh in a mean: a replica says its weight, and feeders say what they have granted to it.

use std::collections::BTreeMap;

use crate::PeerId;

/// Largest weight of a contribution: larger than in any run, and small enough that sums of weights are exact.
pub const WEIGHT_MAX: u64 = 1 << 40;

/// Feeders whose word is kept at most; of further ones the word of the one with the highest key is dropped.
const FEEDERS_MAX: usize = 64;

/// The last word of each feeder.
#[derive(Debug, Default)]
pub(super) struct Weights {
    by_feeder: BTreeMap<PeerId, BTreeMap<PeerId, u64>>,
}

impl Weights {
    /// A feeder has confirmed these grants; with none it bounds no weight.
    pub(super) fn confirm(&mut self, feeder: PeerId, weights: Vec<(PeerId, u64)>) {
        if weights.is_empty() {
            self.by_feeder.remove(&feeder);
            return;
        }
        self.by_feeder.insert(feeder, weights.into_iter().collect());
        if self.by_feeder.len() > FEEDERS_MAX {
            self.by_feeder.pop_last();
        }
    }

    /// The largest weight of a replica: the grants of all feeders. Without the word of any feeder none is bounded.
    pub(super) fn of(&self, peer: PeerId) -> u64 {
        if self.by_feeder.is_empty() {
            return WEIGHT_MAX;
        }
        let granted = self.by_feeder.values().filter_map(|weights| weights.get(&peer));
        granted.fold(0, |sum: u64, grants| sum.saturating_add(*grants)).min(WEIGHT_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grants_of_all_feeders_count_and_each_has_its_last_word() {
        let [first, second, member, other] = [1, 2, 3, 4].map(|key| PeerId([key; 32]));
        let mut weights = Weights::default();
        assert_eq!(weights.of(member), WEIGHT_MAX);
        weights.confirm(first, vec![(member, 5)]);
        weights.confirm(second, vec![(member, 7), (other, 1)]);
        weights.confirm(first, vec![(member, 6)]);
        assert_eq!((weights.of(member), weights.of(other), weights.of(first)), (13, 1, 0));
        [first, second].into_iter().for_each(|feeder| weights.confirm(feeder, Vec::new()));
        assert_eq!(weights.of(member), WEIGHT_MAX);
    }
}
