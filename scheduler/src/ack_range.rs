//! The ranges in which a feeder announces microbatches that have their outcome.

use std::ops::Range;

use crate::{IdSet, MicrobatchId};

/// Open ids that an [`AckRange`] names at most. The feeder admits no id so far beyond its oldest open id that more could
/// be open.
pub const ACK_OPEN_MAX: usize = 65_536;

/// Ranges of one announcement at most: a feeder names those of its latest leases.
pub const ACK_RANGES_MAX: usize = 16;

/// The outcomes in one range of leased ids: every id of the range has its outcome, except those that are open.
///
/// A window bounds the open ids, so a microbatch that is stuck makes no announcement longer and holds back no other.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckRange {
    /// The first id of the range.
    pub first: u64,
    /// The id after the last that has its outcome.
    pub end: u64,
    /// The ids between `first` and `end` without an outcome, ascending; at most [`ACK_OPEN_MAX`].
    pub open: Vec<u64>,
}

impl AckRange {
    /// The ids of `range` that are in `ended`, as far as the open ids between them can be named.
    #[must_use]
    pub fn of(range: Range<u64>, ended: &IdSet) -> Self {
        let first = range.start;
        let end = ended.end_within(range).unwrap_or(first);
        let mut open: Vec<u64> = ended.gaps(first..end).flatten().take(ACK_OPEN_MAX + 1).collect();
        let end = if open.len() > ACK_OPEN_MAX { open.pop().unwrap_or(first) } else { end };
        Self { first, end, open }
    }

    /// Whether `microbatch` has its outcome according to this range.
    #[must_use]
    pub fn contains(&self, microbatch: MicrobatchId) -> bool {
        (self.first..self.end).contains(&microbatch.0) && self.open.binary_search(&microbatch.0).is_err()
    }

    /// The ids with an outcome, as runs in ascending order that do not touch. More open ids than [`ACK_OPEN_MAX`], and
    /// open ids that are not ascending, cut the range off.
    pub fn runs(&self) -> impl Iterator<Item = Range<u64>> {
        let named = &self.open[..self.open.len().min(ACK_OPEN_MAX)];
        let beyond = self.open.get(ACK_OPEN_MAX).map_or(self.end, |&id| id.min(self.end));
        let starts = std::iter::once(self.first).chain(named.iter().map(|id| id.saturating_add(1)));
        let ends = named.iter().copied().chain([beyond]);
        starts
            .zip(ends)
            .map(|(start, end)| start..end)
            .take_while(|run| run.start <= run.end)
            .filter(|run| !run.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set(ids: impl IntoIterator<Item = u64>) -> IdSet {
        let mut set = IdSet::default();
        ids.into_iter().for_each(|id| set.insert(MicrobatchId(id)));
        set
    }

    fn union(ranges: &[AckRange]) -> IdSet {
        let mut set = IdSet::default();
        ranges.iter().flat_map(AckRange::runs).for_each(|run| set.insert_run(run));
        set
    }

    #[test]
    fn a_range_names_the_open_ids_below_its_newest_outcome() {
        let ended = set([4, 5, 7, 16, 40]);
        let range = AckRange::of(4..20, &ended);
        assert_eq!(range, AckRange { first: 4, end: 17, open: vec![6, 8, 9, 10, 11, 12, 13, 14, 15] });
        let named: Vec<_> = (0..50).filter(|&id| range.contains(MicrobatchId(id))).collect();
        assert_eq!(named, [4, 5, 7, 16]);
        assert_eq!(union(&[range]), set([4, 5, 7, 16]));
        assert_eq!(AckRange::of(20..40, &ended), AckRange { first: 20, end: 20, open: Vec::new() });
    }

    #[test]
    fn one_open_id_hides_no_outcome_behind_it() {
        let ended = set((0..1).chain(2..1_000_000));
        let range = AckRange::of(0..u64::MAX, &ended);
        assert_eq!((range.end, &*range.open), (1_000_000, &[1][..]));
        assert_eq!(union(&[range]), ended);
    }

    #[test]
    fn more_open_ids_than_a_range_may_name_cut_it_off() {
        let max = ACK_OPEN_MAX as u64;
        let range = AckRange::of(0..u64::MAX, &set([max, max + 2]));
        assert_eq!((range.end, range.open.len()), (max + 1, ACK_OPEN_MAX));
        assert_eq!(union(&[range]), set([max]));
    }

    #[test]
    fn absurd_ranges_do_not_overflow() {
        let many = AckRange { first: 0, end: u64::MAX, open: (1..).take(2 * ACK_OPEN_MAX).collect() };
        assert_eq!(union(&[many]), set([0]));
        let last = AckRange { first: 9, end: u64::MAX, open: vec![u64::MAX] };
        assert_eq!(union(&[last]).end(), u64::MAX);
        let unsorted = AckRange { first: 0, end: 10, open: vec![8, 3] };
        assert_eq!(union(&[unsorted]).end(), 8);
        let backwards = AckRange { first: 9, end: 3, open: vec![1] };
        assert!(union(&[backwards]).is_empty());
    }
}
