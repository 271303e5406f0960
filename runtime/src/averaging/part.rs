//! A part of a fragment as bytes: all weights, then all first moments, then all second moments, little-endian f32.

use std::ops::Range;

use bytes::Bytes;
use swarmline_scheduler::averaging::Fault;

/// Bytes of a number of a part: its weight and both moments.
pub(super) const NUMBER_BYTES: usize = 12;

/// The numbers of a part: one weight and two moments each.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Numbers {
    pub(super) weights: Vec<f32>,
    pub(super) moments1: Vec<f32>,
    pub(super) moments2: Vec<f32>,
}

/// One number of a part: a weight and its moments.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Number {
    pub(super) weight: f32,
    pub(super) moment1: f32,
    pub(super) moment2: f32,
}

/// A part in bytes, read number by number.
#[derive(Clone, Copy, Debug)]
pub(super) struct PartView<'a>(pub(super) &'a [u8]);

impl PartView<'_> {
    pub(super) fn len(self) -> usize {
        self.0.len() / NUMBER_BYTES
    }

    /// The number at `index`, below [`PartView::len`].
    pub(super) fn at(self, index: usize) -> Number {
        let (numbers, len) = (self.0.as_chunks::<4>().0, self.len());
        let [weight, moment1, moment2] =
            [0, len, 2 * len].map(|column| f32::from_le_bytes(numbers[column + index]));
        Number { weight, moment1, moment2 }
    }
}

impl Numbers {
    /// The numbers at these indices.
    pub(super) fn slice(&self, range: Range<usize>) -> Self {
        let [weights, moments1, moments2] =
            [&self.weights, &self.moments1, &self.moments2].map(|column| column[range.clone()].to_vec());
        Self { weights, moments1, moments2 }
    }

    pub(super) fn to_bytes(&self) -> Bytes {
        let columns = [&self.weights, &self.moments1, &self.moments2];
        columns.into_iter().flatten().flat_map(|number| number.to_le_bytes()).collect()
    }

    /// The part in `bytes`, which must hold `len` numbers of each kind.
    pub(super) fn from_bytes(bytes: &[u8], len: usize) -> Result<Self, Fault> {
        if Some(bytes.len()) != len.checked_mul(NUMBER_BYTES) {
            return Err(Fault::Malformed);
        }
        let mut numbers = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        let mut column = || numbers.by_ref().take(len).collect::<Vec<f32>>();
        let part = Self { weights: column(), moments1: column(), moments2: column() };
        if part.is_possible() { Ok(part) } else { Err(Fault::NonFinite) }
    }

    /// Whether a replica can have these numbers.
    fn is_possible(&self) -> bool {
        let finite = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite());
        let squares = |numbers: &[f32]| numbers.iter().all(|number| number.is_finite() && *number >= 0.0);
        finite(&self.weights) && finite(&self.moments1) && squares(&self.moments2)
    }
}
