//! How much a replica has contributed to each set since that had its last round.

use swarmline_scheduler::averaging::SetIndex;

/// Contributions of a replica, and how many there were when each set was last round.
#[derive(Clone, Debug)]
pub struct Ledger {
    contributions: u64,
    /// By set; `None` before the first round of a joiner.
    counted: Vec<Option<u64>>,
}

impl Ledger {
    /// For a replica whose weights are the run's initial ones: every contribution counts.
    #[must_use]
    pub fn fresh(sets: u32) -> Self {
        Self { contributions: 0, counted: vec![Some(0); sets.max(1) as usize] }
    }

    /// For a replica whose weights are another one's: what it has is counted there already, so it has no weight in a
    /// set until that has been round once.
    #[must_use]
    pub fn joined(sets: u32) -> Self {
        Self { contributions: 0, counted: vec![None; sets.max(1) as usize] }
    }

    /// More contributions are in the weights.
    pub fn add(&mut self, contributions: u64) {
        self.contributions = self.contributions.saturating_add(contributions);
    }

    /// Contributions so far.
    #[must_use]
    pub fn contributions(&self) -> u64 {
        self.contributions
    }

    /// Contributions since the last round of `set`.
    #[must_use]
    pub fn weight(&self, set: SetIndex) -> u64 {
        let counted = self.counted.get(set.0 as usize).copied().flatten();
        counted.map_or(0, |counted| self.contributions.saturating_sub(counted))
    }

    /// A set has been round with the first `contributions` in it.
    pub fn went_round(&mut self, set: SetIndex, contributions: u64) {
        if let Some(counted) = self.counted.get_mut(set.0 as usize) {
            *counted = Some(contributions);
        }
    }
}
