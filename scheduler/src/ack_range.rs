//! The ranges in which a feeder announces microbatches that have their outcome.

use std::ops::Range;

use crate::{IdSet, MicrobatchId};

/// Longest bitmap of an [`AckRange`], bytes: 8,192 ids, far more than a window holds.
pub const ACK_BITMAP_BYTES_MAX: usize = 1_024;

/// Ranges of one announcement at most: a feeder names those of its latest leases.
pub const ACK_RANGES_MAX: usize = 16;

/// Ids that a bitmap can name.
const BITMAP_IDS: u64 = 8 * ACK_BITMAP_BYTES_MAX as u64;

/// The outcomes in one range of leased ids: all of `first..watermark`, and those whose bit is set from there on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AckRange {
    /// The first id of the range.
    pub first: u64,
    /// The first id without an outcome; at least `first`.
    pub watermark: u64,
    /// One bit for each id from `watermark` on, least significant first; at most [`ACK_BITMAP_BYTES_MAX`] long.
    pub bitmap: Vec<u8>,
}

impl AckRange {
    /// The ids of `range` that are in `ended`, as far as one bitmap reaches.
    #[must_use]
    pub fn of(range: Range<u64>, ended: &IdSet) -> Self {
        let watermark = ended.first_missing(range.start).min(range.end);
        let mut bitmap = Vec::new();
        let reach = range.end.min(watermark.saturating_add(BITMAP_IDS));
        for id in ended.runs(watermark..reach).flatten() {
            set_bit(&mut bitmap, id - watermark);
        }
        Self { first: range.start, watermark, bitmap }
    }

    /// The ids of `range` that are in `ended`, in as many ranges as needed, but only the last [`ACK_RANGES_MAX`].
    #[must_use]
    pub fn all_of(range: &Range<u64>, ended: &IdSet) -> Vec<Self> {
        let mut named: Vec<Self> = Vec::new();
        let mut from = range.start;
        while let Some(run) = ended.runs(from..range.end).next() {
            let next = Self::of(run.start..range.end, ended);
            from = next.watermark.saturating_add(BITMAP_IDS).min(range.end);
            named.push(next);
        }
        named.split_off(named.len().saturating_sub(ACK_RANGES_MAX))
    }

    /// Whether `microbatch` has its outcome according to this range.
    #[must_use]
    pub fn contains(&self, microbatch: MicrobatchId) -> bool {
        self.runs().iter().any(|run| run.contains(&microbatch.0))
    }

    /// The ids with an outcome, as runs in ascending order that do not touch. A bitmap beyond its limit is cut off.
    #[must_use]
    pub fn runs(&self) -> Vec<Range<u64>> {
        let mut runs = Vec::new();
        runs.push(self.first..self.watermark);
        for id in self.ids_of_bitmap() {
            match runs.last_mut() {
                Some(run) if run.end == id => run.end = id + 1,
                _ => runs.push(id..id + 1),
            }
        }
        runs
    }

    /// The ids whose bit is set, in ascending order; `u64::MAX` cannot be named.
    fn ids_of_bitmap(&self) -> impl Iterator<Item = u64> {
        let bytes = (0_u64..).zip(self.bitmap.iter().take(ACK_BITMAP_BYTES_MAX));
        let offsets = bytes.flat_map(|(index, byte)| {
            (0..8).filter(move |bit| byte & (1 << bit) != 0).map(move |bit| index * 8 + bit)
        });
        offsets.filter_map(|offset| self.watermark.checked_add(offset)).filter(|&id| id < u64::MAX)
    }
}

fn set_bit(bitmap: &mut Vec<u8>, offset: u64) {
    let byte = usize::try_from(offset / 8).unwrap_or(usize::MAX);
    if byte >= bitmap.len() {
        bitmap.resize(byte + 1, 0);
    }
    bitmap[byte] |= 1 << (offset % 8);
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
    fn a_range_names_the_ids_up_to_the_first_gap_and_then_bit_by_bit() {
        let ended = set([4, 5, 7, 16, 40]);
        let range = AckRange::of(4..20, &ended);
        assert_eq!(range, AckRange { first: 4, watermark: 6, bitmap: vec![0b10, 0b100] });
        let named: Vec<_> = (0..50).filter(|&id| range.contains(MicrobatchId(id))).collect();
        assert_eq!(named, [4, 5, 7, 16]);
    }

    #[test]
    fn ids_beyond_the_reach_of_one_bitmap_take_several_ranges() {
        let ended = set([10, 11, 30_000, 90_000]);
        assert_eq!(AckRange::of(0..100_000, &ended).bitmap.len(), 2);
        let all = AckRange::all_of(&(0..100_000), &ended);
        assert_eq!((all.len(), union(&all)), (3, ended));
    }

    #[test]
    fn absurd_ranges_do_not_overflow() {
        let range =
            AckRange { first: 9, watermark: u64::MAX - 1, bitmap: vec![0xFF; ACK_BITMAP_BYTES_MAX + 9] };
        assert_eq!(union(&[range]).end(), u64::MAX);
        let backwards = AckRange { first: 9, watermark: 3, bitmap: Vec::new() };
        assert!(union(&[backwards]).is_empty());
    }
}
