//! The ids that a feeder may still inject.

use std::ops::Range;

use crate::{Block, IdSet, Lease, MicrobatchId};

/// Leased ids that are not drawn yet.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    open: IdSet,
    /// The first id that this feeder does not have: a lease that arrives twice adds no id twice.
    seen: u64,
    block: Option<Block>,
}

impl Ranges {
    /// Adds the ids of `lease` that are new and belong to training text.
    pub(super) fn add(&mut self, lease: &Lease) {
        let end = lease.ids().end.min(MicrobatchId::EVALUATION_BIT);
        let first = lease.first.0.max(self.seen);
        self.open.insert_run(first..end);
        self.seen = self.seen.max(end);
        self.block = Some(lease.first.block());
    }

    /// The id that [`Ranges::take`] gives next.
    pub(super) fn next(&self) -> Option<MicrobatchId> {
        self.open.first()
    }

    pub(super) fn take(&mut self) -> Option<MicrobatchId> {
        self.open.pop_first()
    }

    /// Takes out ids that were injected before.
    pub(super) fn remove_run(&mut self, run: Range<u64>) {
        self.open.remove_run(run);
    }

    /// Drops the ids beyond the last that a former start injected: the coordinator may have given them to another feeder
    /// since. Ids below it are left: the draws of some were overtaken.
    pub(super) fn drop_unused(&mut self) {
        let open: Vec<_> = self.open.runs(0..self.seen).collect();
        if let Some(last) = open.last().filter(|last| last.end == self.seen) {
            self.seen = last.start;
            self.open.remove_run(last.clone());
        }
    }

    /// The first id that this feeder does not have; `None` before the first lease.
    pub(super) fn next_lease(&self) -> Option<MicrobatchId> {
        self.block.map(|_| MicrobatchId(self.seen))
    }

    /// The block of this feeder's ids; `None` before the first lease.
    pub(super) fn block(&self) -> Option<Block> {
        self.block
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
    fn unused_ids_of_a_former_start_are_leased_again() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.next_lease(), None);
        ranges.add(&lease(0, 6));
        ranges.remove_run(0..4);
        ranges.drop_unused();
        assert_eq!((ranges.left(), ranges.next_lease()), (0, Some(MicrobatchId(4))));
        ranges.add(&lease(4, 3));
        assert_eq!((ranges.left(), ranges.block()), (3, Some(Block(0))));
        ranges.remove_run(5..6);
        ranges.drop_unused();
        assert_eq!((ranges.left(), ranges.next_lease()), (1, Some(MicrobatchId(6))), "4 was overtaken");
    }

    #[test]
    fn an_id_that_was_injected_is_not_given_again() {
        let mut ranges = Ranges::default();
        ranges.add(&lease(0, 6));
        for id in [0, 3, 5, 3, 99] {
            ranges.remove_run(id..id + 1);
        }
        let ids: Vec<_> = std::iter::from_fn(|| ranges.take()).map(|id| id.0).collect();
        assert_eq!(ids, [1, 2, 4]);
    }
}
