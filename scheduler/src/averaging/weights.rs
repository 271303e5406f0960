//! What a replica may weigh in a mean: a replica says its weight, and the feeder that calls the rounds says what was
//! granted to it.

use std::collections::BTreeMap;

use crate::PeerId;

/// Largest weight of a contribution: larger than in any run, and small enough that sums of weights are exact.
pub const WEIGHT_MAX: u64 = 1 << 40;

/// The last word of the feeder that calls; empty if it bounds no weight.
#[derive(Debug, Default)]
pub(super) struct Weights(BTreeMap<PeerId, u64>);

impl Weights {
    /// The feeder has confirmed these grants.
    pub(super) fn confirm(&mut self, weights: Vec<(PeerId, u64)>) {
        self.0 = weights.into_iter().collect();
    }

    /// The largest weight of a replica.
    pub(super) fn of(&self, peer: PeerId) -> u64 {
        if self.0.is_empty() {
            return WEIGHT_MAX;
        }
        self.0.get(&peer).map_or(0, |grants| (*grants).min(WEIGHT_MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_word_of_the_caller_counts() {
        let [member, other] = [3, 4].map(|key| PeerId([key; 32]));
        let mut weights = Weights::default();
        let of = |weights: &Weights| [weights.of(member), weights.of(other)];
        assert_eq!(of(&weights), [WEIGHT_MAX; 2]);
        weights.confirm(vec![(member, 5), (other, u64::MAX)]);
        assert_eq!(of(&weights), [5, WEIGHT_MAX]);
        weights.confirm(vec![(member, 6)]);
        assert_eq!(of(&weights), [6, 0]);
        weights.confirm(Vec::new());
        assert_eq!(of(&weights), [WEIGHT_MAX; 2], "of several feeders none knows all grants");
    }
}
