//! Sets of microbatch ids. Ids are leased, injected and finished in long runs, so a set is a list of runs.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::MicrobatchId;

/// A set of ids, kept as disjoint runs that do not touch. Its memory depends on the number of runs, not on their
/// length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct IdSet {
    /// First id of a run, and the id after its last.
    runs: BTreeMap<u64, u64>,
}

impl IdSet {
    /// Adds one id.
    pub fn insert(&mut self, id: MicrobatchId) {
        self.insert_run(id.0..id.0.saturating_add(1));
    }

    /// Adds every id of `run`.
    pub fn insert_run(&mut self, run: Range<u64>) {
        if run.is_empty() {
            return;
        }
        let Range { mut start, mut end } = run;
        if let Some((&first, &last)) = self.runs.range(..=start).next_back()
            && last >= start
        {
            if last >= end {
                return;
            }
            (start, end) = (first, end.max(last));
        }
        while let Some((&first, &last)) = self.runs.range(start..=end).next() {
            end = end.max(last);
            self.runs.remove(&first);
        }
        self.runs.insert(start, end);
    }

    /// Removes one id.
    pub fn remove(&mut self, id: MicrobatchId) {
        self.remove_run(id.0..id.0.saturating_add(1));
    }

    /// Removes every id of `run`.
    pub fn remove_run(&mut self, run: Range<u64>) {
        loop {
            // The turn before has removed the run that it found.
            let Some(gone) = self.runs(run.clone()).next() else { return };
            let Some((&first, &end)) = self.runs.range(..=gone.start).next_back() else { return };
            self.runs.remove(&first);
            let rest = [first..gone.start, gone.end..end];
            self.runs.extend(rest.into_iter().filter(|run| !run.is_empty()).map(|run| (run.start, run.end)));
        }
    }

    /// The lowest id.
    #[must_use]
    pub fn first(&self) -> Option<MicrobatchId> {
        self.runs.first_key_value().map(|(&first, _)| MicrobatchId(first))
    }

    /// Removes the lowest id and returns it.
    pub fn pop_first(&mut self) -> Option<MicrobatchId> {
        let first = self.first()?;
        self.remove(first);
        Some(first)
    }

    /// Drops the lowest runs until at most `limit` are left.
    pub fn keep_last_runs(&mut self, limit: usize) {
        while self.runs.len() > limit {
            self.runs.pop_first();
        }
    }

    /// Whether `id` is in the set.
    #[must_use]
    pub fn contains(&self, id: MicrobatchId) -> bool {
        self.runs.range(..=id.0).next_back().is_some_and(|(_, &end)| id.0 < end)
    }

    /// Number of ids.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.runs.iter().map(|(first, end)| end - first).sum()
    }

    /// Number of ids of `within`.
    #[must_use]
    pub fn len_within(&self, within: Range<u64>) -> u64 {
        self.runs(within).map(|run| run.end - run.start).sum()
    }

    /// Whether the set has no id.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// The id after the highest; 0 for the empty set.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.runs.last_key_value().map_or(0, |(_, &end)| end)
    }

    /// The id after the highest of `within`; `None` if the set has no id of it.
    #[must_use]
    pub fn end_within(&self, within: Range<u64>) -> Option<u64> {
        let (&first, &end) = self.runs.range(..within.end).next_back()?;
        let run = first.max(within.start)..end.min(within.end);
        (!run.is_empty()).then_some(run.end)
    }

    /// The runs, clipped to `within`, in ascending order.
    pub fn runs(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.runs.range(..within.start).next_back();
        let inside = self.runs.range(within.start..within.end.max(within.start));
        let clipped = move |(&first, &end): (&u64, &u64)| first.max(within.start)..end.min(within.end);
        before.into_iter().chain(inside).map(clipped).filter(|run| !run.is_empty())
    }

    /// The runs of `within` that are not in the set, in ascending order.
    pub fn gaps(&self, within: Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let runs: Vec<_> = self.runs(within.clone()).collect();
        let starts = std::iter::once(within.start).chain(runs.clone().into_iter().map(|run| run.end));
        let ends = runs.into_iter().map(|run| run.start).chain([within.end]);
        starts.zip(ends).map(|(start, end)| start..end).filter(|run| !run.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::Rng;

    fn set<const N: usize>(runs: [(u64, u64); N]) -> IdSet {
        let mut set = IdSet::default();
        runs.into_iter().for_each(|(first, end)| set.insert_run(first..end));
        set
    }

    #[test]
    fn runs_that_touch_or_overlap_are_one() {
        let mut set = set([(4, 6), (8, 10), (20, 20)]);
        set.insert_run(6..8);
        assert_eq!(set, self::set([(4, 10)]));
        set.insert_run(0..100);
        assert_eq!((set.len(), set.end()), (100, 100));
    }

    #[test]
    fn an_id_taken_out_splits_its_run() {
        let mut set = set([(0, 3)]);
        for id in [1, 1, 7] {
            set.remove(MicrobatchId(id));
        }
        assert_eq!(set, self::set([(0, 1), (2, 3)]));
        let ids: Vec<_> = std::iter::from_fn(|| set.pop_first()).map(|id| id.0).collect();
        assert_eq!(ids, [0, 2]);
        assert!(set.is_empty());
    }

    #[test]
    fn the_highest_id_of_all_fits() {
        let mut set = IdSet::default();
        set.insert_run(u64::MAX - 2..u64::MAX);
        set.insert(MicrobatchId(u64::MAX));
        assert_eq!(set.len(), 2);
        assert!(!set.contains(MicrobatchId(u64::MAX)), "the id after it cannot be named");
    }

    /// Every operation against a plain set of numbers.
    #[test]
    fn behaves_like_a_set_of_numbers() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let (mut set, mut plain) = (IdSet::default(), BTreeSet::new());
            for _ in 0..60 {
                let (first, count) = (rng.below(64), rng.below(12));
                match rng.below(3) {
                    0 => {
                        set.insert_run(first..first + count);
                        plain.extend(first..first + count);
                    }
                    1 => {
                        set.remove(MicrobatchId(first));
                        plain.remove(&first);
                    }
                    _ => {
                        assert_eq!(set.contains(MicrobatchId(first)), plain.contains(&first), "seed {seed}");
                    }
                }
            }
            let within = rng.below(40)..40 + rng.below(40);
            let inside: Vec<_> = within.clone().filter(|id| plain.contains(id)).collect();
            let outside: Vec<_> = within.clone().filter(|id| !plain.contains(id)).collect();
            assert_eq!(set.runs(within.clone()).flatten().collect::<Vec<_>>(), inside, "seed {seed}");
            assert_eq!(set.gaps(within.clone()).flatten().collect::<Vec<_>>(), outside, "seed {seed}");
            assert_eq!(set.len(), plain.len() as u64, "seed {seed}");
            assert_eq!(set.end_within(within.clone()), inside.last().map(|id| id + 1), "seed {seed}");
        }
    }
}
