//! Fragments: the numbers that are averaged together. Every replica computes the same fragments for itself.

use std::ops::Range;

use swarmline_kernels::random;
use swarmline_scheduler::averaging::{FragmentIndex, FragmentSize, PartIndex};

use super::part::NUMBER_BYTES;
use crate::hashing;

/// The numbers of a stage, divided into disjoint fragments of nearly equal size that are spread over every tensor.
///
/// A tensor is cut into blocks of as many numbers as there are fragments. A block gives one number to each fragment, in
/// turn, from a position drawn by a counter-based random number keyed by (run seed, tensor name, block). So no table is
/// sent or stored. The numbers of a fragment are ordered by tensor, then by position.
#[derive(Clone, Debug)]
pub struct Fragments {
    seed: u64,
    count: usize,
    tensors: Vec<Tensor>,
}

#[derive(Clone, Copy, Debug)]
struct Tensor {
    stream: u64,
    len: usize,
}

/// The numbers of one tensor that belong to one part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// Index of the tensor in the list.
    pub(super) tensor: usize,
    /// Positions in the tensor, ascending.
    pub(super) positions: Vec<usize>,
}

impl Fragments {
    /// Divides `tensors`, given by global name and length, into `count` fragments, at least 1.
    #[must_use]
    pub fn new<'a>(seed: u64, count: u32, tensors: impl IntoIterator<Item = (&'a str, usize)>) -> Self {
        let tensor = |(name, len): (&str, usize)| Tensor {
            stream: hashing::key(&[b"averaging ", name.as_bytes()]),
            len,
        };
        Self { seed, count: count.max(1) as usize, tensors: tensors.into_iter().map(tensor).collect() }
    }

    /// Numbers of a fragment, over all tensors.
    #[must_use]
    pub fn len(&self, fragment: FragmentIndex) -> usize {
        self.tensors.iter().map(|tensor| self.numbers_of(tensor, fragment)).sum()
    }

    /// The size of the largest fragment, and the parts with which none is longer than `part_bytes_max`.
    #[must_use]
    pub fn size(&self, part_bytes_max: usize) -> FragmentSize {
        // A fragment has at most one number more of each tensor than its fair share.
        let largest: usize = self.tensors.iter().map(|tensor| tensor.len.div_ceil(self.count)).sum();
        let parts = largest.div_ceil((part_bytes_max / NUMBER_BYTES).max(1));
        let parts_min = u32::try_from(parts).unwrap_or(u32::MAX).max(1);
        FragmentSize { bytes: (largest * NUMBER_BYTES) as u64, parts_min }
    }

    /// Bytes of part `part` of `parts` of a fragment.
    #[must_use]
    pub fn part_bytes(&self, fragment: FragmentIndex, parts: u32, part: PartIndex) -> usize {
        range_of(self.len(fragment), parts, part).len() * NUMBER_BYTES
    }

    /// The positions of the numbers of part `part` of `parts`.
    pub(super) fn stretches(&self, fragment: FragmentIndex, parts: u32, part: PartIndex) -> Vec<Stretch> {
        let wanted = range_of(self.len(fragment), parts, part);
        let mut stretches = Vec::new();
        let mut before = 0;
        for (index, tensor) in self.tensors.iter().enumerate() {
            let end = before + self.numbers_of(tensor, fragment);
            let here = wanted.start.clamp(before, end) - before..wanted.end.clamp(before, end) - before;
            before = end;
            if !here.is_empty() {
                let positions = here.map(|block| self.position(tensor, fragment, block)).collect();
                stretches.push(Stretch { tensor: index, positions });
            }
        }
        stretches
    }

    /// Numbers of a tensor that belong to a fragment: one of each whole block, and perhaps one of the rest.
    fn numbers_of(&self, tensor: &Tensor, fragment: FragmentIndex) -> usize {
        let blocks = tensor.len / self.count;
        blocks + usize::from(self.position(tensor, fragment, blocks) < tensor.len)
    }

    /// Position in the tensor of the number that a block gives to a fragment.
    fn position(&self, tensor: &Tensor, fragment: FragmentIndex, block: usize) -> usize {
        let drawn = random::uniform_u64(self.seed, tensor.stream, block as u64) % self.count as u64;
        // `drawn` is below `count`, a usize.
        let turn = usize::try_from(drawn).unwrap_or(0);
        block * self.count + (fragment.0 as usize % self.count + self.count - turn) % self.count
    }
}

/// The numbers of part `part` of `parts` among the `len` of its fragment: parts differ by at most one number.
pub(super) fn range_of(len: usize, parts: u32, part: PartIndex) -> Range<usize> {
    let bound = |part: u64| {
        let product = len as u128 * u128::from(part) / u128::from(parts.max(1));
        usize::try_from(product).unwrap_or(len).min(len)
    };
    bound(u64::from(part.0))..bound(u64::from(part.0) + 1)
}
