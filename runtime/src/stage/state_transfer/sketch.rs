//! Random projections of the chunks of a state: sums of its numbers with random signs. The `.proto` file says which.

use bytes::Bytes;
use swarmline_scheduler::Rng;
use swarmline_scheduler::transfer::{ChunkSketch, SKETCH_NUMBERS, SketchSeed};

/// Numbers whose signs are one word of random bits.
const NUMBERS_PER_WORD: usize = u64::BITS as usize / SKETCH_NUMBERS;
/// Bytes of the length of a state's header, before the header.
const LENGTH_BYTES: usize = 8;
/// Bits of a number's place, in words, in the position of its signs.
const WORD_BITS: u32 = 40;

/// The projections of a chunk by its number in the state.
#[must_use]
pub fn chunk_sketch(bytes: &Bytes, chunk: u32, seed: SketchSeed) -> ChunkSketch {
    projections(bytes, chunk, seed)
}

pub(super) fn projections(bytes: &[u8], chunk: u32, seed: SketchSeed) -> ChunkSketch {
    let numbers = if chunk == 0 { behind_header(bytes) } else { bytes };
    let (numbers, _) = numbers.as_chunks::<4>();
    let mut sums = [0.0_f64; SKETCH_NUMBERS];
    let first = splitmix64(seed.0).wrapping_add(u64::from(chunk) << WORD_BITS);
    for (word, numbers) in (0..).zip(numbers.chunks(NUMBERS_PER_WORD)) {
        let mut signs = splitmix64(first.wrapping_add(word));
        for number in numbers {
            let number = f32::from_le_bytes(*number);
            for (place, sum) in sums.iter_mut().enumerate() {
                let sign = ((signs >> place) as u32) << 31;
                *sum += f64::from(f32::from_bits(number.to_bits() ^ sign));
            }
            signs >>= SKETCH_NUMBERS;
        }
    }
    sums.map(|sum| sum as f32)
}

/// The numbers of the first chunk: counters and names of tensors are before them.
fn behind_header(bytes: &[u8]) -> &[u8] {
    let length = bytes.first_chunk().map_or(0, |length: &[u8; LENGTH_BYTES]| u64::from_le_bytes(*length));
    let start = usize::try_from(length).unwrap_or(usize::MAX).saturating_add(LENGTH_BYTES);
    bytes.get(start..).unwrap_or_default()
}

fn splitmix64(place: u64) -> u64 {
    Rng::new(place).next_u64()
}
