//! The rotation that spreads outliers over the columns of a row.

use crate::random::LANES;
use std::hint::black_box;

/// Walsh-Hadamard transform of every `block` numbers of `x`, in natural order, not normalised; `block` is a power of
/// two that divides the length. `fused` is faster where multiply-adds are instructions; the bits are the same.
#[inline(always)]
pub(super) fn hadamard(x: &mut [f32], block: usize, fused: bool) {
    let mut half = 1;
    if block >= LANES {
        // Hidden from the compiler, which would otherwise make scalar sums and differences of them.
        let signs = black_box(&SIGNS);
        for chunk in x.as_chunks_mut::<LANES>().0 {
            *chunk = if fused {
                chunk_stages::<true>(*chunk, signs)
            } else {
                chunk_stages::<false>(*chunk, signs)
            };
            // Chunk by chunk: the loop over several chunks at a time gathers single numbers.
            black_box(());
        }
        half = LANES;
    }
    while 2 * half < block {
        two_stages(x, half);
        half *= 4;
    }
    if half < block {
        one_stage(x, half);
    }
}

/// The signs of the first number in each butterfly of [`chunk_stages`].
const SIGNS: [[f32; LANES]; 4] = {
    let mut signs = [[1.0; LANES]; 4];
    let mut stage = 0;
    while stage < signs.len() {
        let mut lane = 0;
        while lane < LANES {
            if lane >> stage & 1 == 1 {
                signs[stage][lane] = -1.0;
            }
            lane += 1;
        }
        stage += 1;
    }
    signs
};

/// All butterflies within one chunk.
#[inline(always)]
fn chunk_stages<const FUSED: bool>(x: [f32; LANES], signs: &[[f32; LANES]; 4]) -> [f32; LANES] {
    let x = chunk_stage::<2, FUSED>(chunk_stage::<1, FUSED>(x, &signs[0]), &signs[1]);
    chunk_stage::<8, FUSED>(chunk_stage::<4, FUSED>(x, &signs[2]), &signs[3])
}

/// One stage as a shuffle and `a + b` or `a - b`, which a multiplication by a sign makes alike.
#[inline(always)]
fn chunk_stage<const HALF: usize, const FUSED: bool>(x: [f32; LANES], signs: &[f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        // A product with a sign is exact, so fusing it rounds nothing away.
        out[i] = if FUSED { x[i].mul_add(signs[i], x[i ^ HALF]) } else { x[i] * signs[i] + x[i ^ HALF] };
    }
    out
}

/// Butterflies with halves `half` apart, then butterflies with halves `2 half` apart, in one pass.
#[inline(always)]
fn two_stages(x: &mut [f32], half: usize) {
    for x in x.chunks_exact_mut(4 * half) {
        let (lower, upper) = x.split_at_mut(2 * half);
        let ((a, b), (c, d)) = (lower.split_at_mut(half), upper.split_at_mut(half));
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            let (p, q, r, s) = (*a + *b, *a - *b, *c + *d, *c - *d);
            (*a, *b, *c, *d) = (p + r, q + s, p - r, q - s);
        }
    }
}

/// Butterflies with halves `half` apart.
#[inline(always)]
fn one_stage(x: &mut [f32], half: usize) {
    for x in x.chunks_exact_mut(2 * half) {
        let (a, b) = x.split_at_mut(half);
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}
