//! Payloads of the simulated world.

use crate::averaging::{GroupId, PartIndex};
use crate::transfer::{ChunkHash, ChunkSketch, SketchSeed};
use crate::{Instance, Rng};

/// A payload by kind, in place of tensors.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Payload {
    /// No payload.
    #[default]
    Empty,
    /// The token ids of a microbatch.
    Tokens,
    /// An activation.
    Activation,
    /// The gradient of an activation.
    Gradient,
    /// The numbers of a part.
    Numbers(Numbers),
    /// A piece of a state.
    Chunk(Vec<u64>),
}

/// Numbers of a part: a contribution, or a mean.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Numbers {
    pub(crate) group: GroupId,
    pub(crate) part: PartIndex,
    /// The members whose contributions are in the numbers, in order.
    pub(crate) of: Vec<Instance>,
    pub(crate) values: Vec<f64>,
}

/// Bytes of a word of a state.
pub(super) const WORD_BYTES: u64 = 8;

/// Length in bytes and digest of a chunk or of numbers.
pub(super) fn digest(payload: &Payload) -> (u64, ChunkHash) {
    let numbers: Vec<u64>;
    let words = match payload {
        Payload::Chunk(words) => words.as_slice(),
        Payload::Numbers(Numbers { values, .. }) => {
            numbers = values.iter().map(|number| number.to_bits()).collect();
            &numbers
        }
        _ => &[],
    };
    (words.len() as u64 * WORD_BYTES, hash(words))
}

/// Projections of the numbers of a chunk.
pub(super) fn sketch(payload: &Payload, chunk: u32, seed: SketchSeed) -> ChunkSketch {
    projections(if let Payload::Chunk(words) = payload { words } else { &[] }, chunk, seed)
}

/// Sums of the numbers with random signs.
pub(super) fn projections(words: &[u64], chunk: u32, seed: SketchSeed) -> ChunkSketch {
    let (mut rng, mut sums) = (Rng::new(seed.0 ^ u64::from(chunk)), ChunkSketch::default());
    for word in words {
        let (signs, number) = (rng.next_u64(), f64::from_bits(*word) as f32);
        for (place, sum) in sums.iter_mut().enumerate() {
            *sum += if signs >> place & 1 == 0 { number } else { -number };
        }
    }
    sums
}

/// A digest for an environment in which no peer forges one.
pub(super) fn hash(words: &[u64]) -> ChunkHash {
    let mut hash = [0; 32];
    for (lane, bytes) in (0_u64..).zip(hash.chunks_exact_mut(8)) {
        let mixed = words.iter().fold(lane, |state, word| Rng::new(state ^ word).next_u64());
        bytes.copy_from_slice(&mixed.to_le_bytes());
    }
    hash
}
