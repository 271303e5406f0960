//! A compact stream of token ids.

use std::ops::Range;

/// Token ids in order: one byte each if all are below 256, four otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TokenStream {
    /// Ids below 256.
    Bytes(Vec<u8>),
    /// Ids of any size.
    Ids(Vec<u32>),
}

impl TokenStream {
    /// Number of tokens.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Bytes(bytes) => bytes.len(),
            Self::Ids(ids) => ids.len(),
        }
    }

    /// Whether the stream is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All ids in order.
    pub fn iter(&self) -> impl Iterator<Item = u32> + '_ {
        let (bytes, ids): (&[u8], &[u32]) = match self {
            Self::Bytes(bytes) => (bytes, &[]),
            Self::Ids(ids) => (&[], ids),
        };
        // One of the two is empty.
        bytes.iter().map(|&byte| u32::from(byte)).chain(ids.iter().copied())
    }

    /// Appends the ids of `range` to `out`.
    ///
    /// # Panics
    /// If `range` reaches past the end.
    pub fn copy_to(&self, out: &mut Vec<u32>, range: Range<usize>) {
        match self {
            Self::Bytes(bytes) => out.extend(bytes[range].iter().map(|&byte| u32::from(byte))),
            Self::Ids(ids) => out.extend_from_slice(&ids[range]),
        }
    }

    pub(super) fn append(&mut self, other: &Self) {
        match (&mut *self, other) {
            (Self::Bytes(all), Self::Bytes(more)) => all.extend_from_slice(more),
            (Self::Ids(all), more) => more.copy_to(all, 0..more.len()),
            (Self::Bytes(_), Self::Ids(_)) => {
                let mut all: Vec<u32> = self.iter().collect();
                other.copy_to(&mut all, 0..other.len());
                *self = Self::Ids(all);
            }
        }
    }

    /// Cuts off the tokens from `at` on and returns them.
    pub(super) fn split_off(&mut self, at: usize) -> Self {
        match self {
            Self::Bytes(bytes) => Self::Bytes(bytes.split_off(at)),
            Self::Ids(ids) => Self::Ids(ids.split_off(at)),
        }
    }
}
