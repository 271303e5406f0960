//! A part of a fragment as bytes: all weights, then all first moments, then all second moments, little-endian f32.

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

impl Numbers {
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
