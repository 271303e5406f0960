//! Which microbatches this start of a replica has applied: none twice, whoever says what.

use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;

use crate::MicrobatchId;

/// Ids remembered; the oldest is forgotten first. Nothing that old is under way: windows are far smaller.
pub(crate) const LEDGER_MAX: usize = 65_536;

/// The ids, by age and by value.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger {
    ids: BTreeSet<MicrobatchId>,
    by_age: VecDeque<MicrobatchId>,
}

impl Ledger {
    pub(crate) fn contains(&self, microbatch: MicrobatchId) -> bool {
        self.ids.contains(&microbatch)
    }

    /// The ids in a range.
    pub(crate) fn range(&self, ids: Range<MicrobatchId>) -> impl Iterator<Item = MicrobatchId> {
        self.ids.range(ids).copied()
    }

    pub(crate) fn insert(&mut self, microbatch: MicrobatchId) {
        if !self.ids.insert(microbatch) {
            return;
        }
        self.by_age.push_back(microbatch);
        if self.by_age.len() > LEDGER_MAX
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
        let mut ledger = Ledger::default();
        for id in (0..=LEDGER_MAX as u64).rev() {
            ledger.insert(MicrobatchId(id));
        }
        ledger.insert(MicrobatchId(0));
        assert!(!ledger.contains(MicrobatchId(LEDGER_MAX as u64)));
        assert!(ledger.contains(MicrobatchId(0)));
        assert_eq!((ledger.ids.len(), ledger.by_age.len()), (LEDGER_MAX, LEDGER_MAX));
    }
}
