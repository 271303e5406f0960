//! The ids a feeder may still inject.

use std::collections::VecDeque;

use crate::{Lease, MicrobatchId};

/// Leased ids that are not drawn yet, in the order leased.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges {
    /// Half-open.
    open: VecDeque<(u64, u64)>,
    /// Everything below was leased before: an answer that arrives twice gives nothing twice.
    seen: u64,
}

impl Ranges {
    /// Adds what of `lease` is new and training text.
    pub(super) fn add(&mut self, lease: &Lease) {
        let end = lease.first.0.saturating_add(lease.count).min(MicrobatchId::EVALUATION_BIT);
        let first = lease.first.0.max(self.seen);
        if first < end {
            self.open.push_back((first, end));
            self.seen = end;
        }
    }

    pub(super) fn take(&mut self) -> Option<MicrobatchId> {
        let (first, end) = self.open.front_mut()?;
        let id = MicrobatchId(*first);
        *first += 1;
        if first == end {
            self.open.pop_front();
        }
        Some(id)
    }

    /// Takes out one id that was injected before.
    pub(super) fn remove(&mut self, id: MicrobatchId) {
        let Some(index) = self.open.iter().position(|&(first, end)| (first..end).contains(&id.0)) else {
            return;
        };
        let Some((first, end)) = self.open.remove(index) else { return };
        let rest = [(first, id.0), (id.0 + 1, end)].into_iter().filter(|(first, end)| first < end);
        rest.rev().for_each(|part| self.open.insert(index, part));
    }

    pub(super) fn left(&self) -> u64 {
        self.open.iter().map(|(first, end)| end - first).sum()
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
    fn what_was_injected_is_not_given_again() {
        let mut ranges = Ranges::default();
        ranges.add(&lease(0, 6));
        for id in [0, 3, 5, 3, 99] {
            ranges.remove(MicrobatchId(id));
        }
        let ids: Vec<_> = std::iter::from_fn(|| ranges.take()).map(|id| id.0).collect();
        assert_eq!(ids, [1, 2, 4]);
    }
}
