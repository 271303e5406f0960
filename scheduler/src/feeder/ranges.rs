//! The ids that a feeder may still inject.

use std::ops::Range;

use crate::{IdSet, Lease, MicrobatchId};

/// Leased ids that are not drawn yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    open: IdSet,
    /// Every id below was leased before: a lease that arrives twice adds no id twice.
    seen: u64,
}

impl Ranges {
    /// Adds the ids of `lease` that are new and belong to training text.
    pub(super) fn add(&mut self, lease: &Lease) {
        let end = lease.ids().end.min(MicrobatchId::EVALUATION_BIT);
        let first = lease.first.0.max(self.seen);
        self.open.insert_run(first..end);
        self.seen = self.seen.max(end);
    }

    /// The id that [`Ranges::take`] gives next.
    pub(super) fn next(&self) -> Option<MicrobatchId> {
        self.open.first()
    }

    pub(super) fn take(&mut self) -> Option<MicrobatchId> {
        self.open.pop_first()
    }

    /// Takes out an id that was injected before.
    pub(super) fn remove(&mut self, id: MicrobatchId) {
        self.open.remove(id);
    }

    /// Takes out ids that were injected before.
    pub(super) fn remove_run(&mut self, run: Range<u64>) {
        self.open.remove_run(run);
    }

    pub(super) fn left(&self) -> u64 {
        self.open.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(first: u64, count: u64) -> Lease {
        Lease { first: MicrobatchId(first), count, epoch: 0 }
    }

    #[test]
    fn gives_every_id_once() {
        let mut ranges = Ranges::default();
        for lease in
            [lease(4, 2), lease(4, 2), lease(5, 2), lease(10, 1), lease(u64::MAX, u64::MAX), lease(0, 0)]
        {
            ranges.add(&lease);
        }
        assert_eq!(ranges.left(), 4);
        let ids: Vec<_> = std::iter::from_fn(|| ranges.take()).map(|id| id.0).collect();
        assert_eq!(ids, [4, 5, 6, 10]);
        assert_eq!(ranges.left(), 0);
    }

    #[test]
    fn an_id_that_was_injected_is_not_given_again() {
        let mut ranges = Ranges::default();
        ranges.add(&lease(0, 6));
        for id in [0, 3, 5, 3, 99] {
            ranges.remove(MicrobatchId(id));
        }
        let ids: Vec<_> = std::iter::from_fn(|| ranges.take()).map(|id| id.0).collect();
        assert_eq!(ids, [1, 2, 4]);
    }
}
