//! The weight of a replica in a round: the contributions that its weights have gained since the last round of the
//! fragment.

use swarmline_scheduler::averaging::FragmentIndex;

/// Contributions of a replica, one for each microbatch in its weights, and their number at the last round of each
/// fragment.
#[derive(Clone, Debug)]
pub struct Contributions {
    total: u64,
    /// By fragment; `None` until a joiner's first round.
    averaged: Vec<Option<u64>>,
}

impl Contributions {
    /// For a replica that starts from the run's initial weights: every contribution counts.
    #[must_use]
    pub fn fresh(fragments: u32) -> Self {
        Self { total: 0, averaged: vec![Some(0); fragments.max(1) as usize] }
    }

    /// For a replica that starts from the weights of a donor, which counts the contributions in them: the replica has
    /// weight 0 in a fragment until that fragment has been averaged once.
    #[must_use]
    pub fn joined(fragments: u32) -> Self {
        Self { total: 0, averaged: vec![None; fragments.max(1) as usize] }
    }

    /// Counts contributions that have entered the weights.
    pub fn add(&mut self, contributions: u64) {
        self.total = self.total.saturating_add(contributions);
    }

    /// Contributions so far.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Contributions that no mean of `fragment` has carried.
    #[must_use]
    pub fn uncarried(&self, fragment: FragmentIndex) -> u64 {
        self.uncarried_at(fragment, self.total)
    }

    /// The same when there were `total` contributions.
    pub(super) fn uncarried_at(&self, fragment: FragmentIndex, total: u64) -> u64 {
        let averaged = self.averaged.get(fragment.0 as usize).copied().flatten();
        total.saturating_sub(averaged.unwrap_or(0))
    }

    /// Whether this replica is a joiner that has no mean of `fragment` yet.
    pub(super) fn is_new(&self, fragment: FragmentIndex) -> bool {
        self.averaged.get(fragment.0 as usize).is_some_and(Option::is_none)
    }

    /// Notes that a joiner has followed the mean of `fragment`: its contributions count from the next round on.
    pub(super) fn set_followed(&mut self, fragment: FragmentIndex) {
        if let Some(averaged) = self.averaged.get_mut(fragment.0 as usize) {
            averaged.get_or_insert(0);
        }
    }

    /// Weight of this replica in the mean of `fragment`: its contributions since the last round of that fragment.
    #[must_use]
    pub fn weight(&self, fragment: FragmentIndex) -> u64 {
        let averaged = self.averaged.get(fragment.0 as usize).copied().flatten();
        averaged.map_or(0, |averaged| self.total.saturating_sub(averaged))
    }

    /// Notes that `fragment` was averaged in full with the first `contributions` in it.
    pub fn set_averaged(&mut self, fragment: FragmentIndex, contributions: u64) {
        if let Some(averaged) = self.averaged.get_mut(fragment.0 as usize) {
            *averaged = Some(contributions);
        }
    }
}
