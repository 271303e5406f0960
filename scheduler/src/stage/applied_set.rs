//! The microbatches that this start of a replica has applied: no microbatch twice, even if it is granted twice.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use crate::MicrobatchId;

/// Ids remembered; the oldest is forgotten first. No microbatch that old is in flight: windows are far smaller.
pub(super) const APPLIED_MAX: usize = 65_536;

/// The ids, by age and by value.
#[derive(Clone, Debug, Default)]
pub(super) struct AppliedSet {
    ids: BTreeSet<MicrobatchId>,
    by_age: VecDeque<MicrobatchId>,
}

impl AppliedSet {
    pub(super) fn contains(&self, microbatch: MicrobatchId) -> bool {
        self.ids.contains(&microbatch)
    }

    /// The ids in a range.
    pub(super) fn range(&self, ids: Range<MicrobatchId>) -> impl Iterator<Item = MicrobatchId> {
        self.ids.range(ids).copied()
    }

    pub(super) fn insert(&mut self, microbatch: MicrobatchId) {
        if !self.ids.insert(microbatch) {
            return;
        }
        self.by_age.push_back(microbatch);
        if self.by_age.len() > APPLIED_MAX
            && let Some(oldest) = self.by_age.pop_front()
        {
            self.ids.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_the_oldest_and_nothing_else() {
        let mut applied = AppliedSet::default();
        for id in (0..=APPLIED_MAX as u64).rev() {
            applied.insert(MicrobatchId(id));
        }
        applied.insert(MicrobatchId(0));
        assert!(!applied.contains(MicrobatchId(APPLIED_MAX as u64)));
        assert!(applied.contains(MicrobatchId(0)));
        assert_eq!((applied.ids.len(), applied.by_age.len()), (APPLIED_MAX, APPLIED_MAX));
    }
}
