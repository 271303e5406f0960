//! What happens to the residual stream at a cut: anchors of tokens, coordinates in a subspace.

use super::{
    matmul::{Matrix, product},
    threads::Threads,
};
use crate::{
    Write,
    random::{Domain, key, philox4x32},
};

/// Rows of one job.
const BLOCK_ROWS: usize = 32;
/// Deviation of a sum of eight uniform bytes: sqrt(8 (256^2 - 1) / 12).
const DEVIATION: f64 = 209.022_327_2;

/// `x[N,d] = scale * E0[ids]`
///
/// Columns `2j` and `2j + 1` of token `id` are the sums of the eight bytes of words 0, 1 and 2, 3 of Philox at
/// counter `(j, id, 0, 0)` in the anchor domain of `seed`, centred, times `(scale / deviation)` in f32.
pub(super) fn anchor(threads: &Threads, x: &mut [f32], ids: &[u32], seed: u64, width: usize, scale: f32) {
    let key = key(seed, Domain::Anchor);
    let factor = (f64::from(scale) / DEVIATION) as f32;
    threads.each(
        x.chunks_mut((BLOCK_ROWS * width).max(1)).zip(ids.chunks(BLOCK_ROWS)),
        #[inline(always)]
        |(x, ids)| {
            for (x, &id) in x.chunks_exact_mut(width).zip(ids) {
                anchor_row(x, id, key, factor);
            }
        },
    );
}

#[inline(always)]
fn anchor_row(x: &mut [f32], id: u32, key: [u32; 2], factor: f32) {
    for (j, pair) in (0u32..).zip(x.chunks_mut(2)) {
        let [a, b, c, d] = philox4x32([j, id, 0, 0], key);
        let values = [bytes(a) + bytes(b), bytes(c) + bytes(d)];
        for (x, value) in pair.iter_mut().zip(values) {
            *x = (value as i32 - 1020) as f32 * factor;
        }
    }
}

/// Sum of the four bytes of a word.
#[inline(always)]
fn bytes(word: u32) -> u32 {
    let pairs = (word & 0x00FF_00FF) + ((word >> 8) & 0x00FF_00FF);
    (pairs & 0xFFFF) + (pairs >> 16)
}

/// `z[N,k] (= | +=) x[N,d] basis[k,d]^T`
pub(super) fn project(
    threads: &Threads,
    z: &mut [f32],
    x: &[f32],
    basis: &[f32],
    rows: usize,
    width: usize,
    code: usize,
    write: Write,
) {
    let (x, basis) = (Matrix::rows(x, width), Matrix::rows(basis, width).transposed());
    threads.product(|parallelism| product(z, x, basis, rows, code, width, write, parallelism));
}

/// `x[N,d] = anchor[N,d] + z[N,k] basis[k,d]`
pub(super) fn reconstruct(
    threads: &Threads,
    x: &mut [f32],
    z: &[f32],
    basis: &[f32],
    anchor: &[f32],
    rows: usize,
    width: usize,
    code: usize,
) {
    x[..rows * width].copy_from_slice(&anchor[..rows * width]);
    let (z, basis) = (Matrix::rows(z, code), Matrix::rows(basis, width));
    threads.product(|parallelism| product(x, z, basis, rows, width, code, Write::Add, parallelism));
}
