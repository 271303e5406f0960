//! The gated unit of the feed-forward layer (Shazeer: arXiv 2002.05202): `silu(gate) * up`.

use super::{math::sigmoid, threads::Threads};

/// Numbers of one job.
const BLOCK: usize = 1 << 14;

/// `h = silu(gate) * up`
pub(super) fn forward(threads: &Threads, h: &mut [f32], gate: &[f32], up: &[f32]) {
    let jobs = h.chunks_mut(BLOCK).zip(gate.chunks(BLOCK)).zip(up.chunks(BLOCK));
    threads.each(
        jobs,
        #[inline(always)]
        |((h, gate), up)| {
            for ((h, &gate), &up) in h.iter_mut().zip(gate).zip(up) {
                *h = gate * sigmoid(gate) * up;
            }
        },
    );
}

/// With `s = sigmoid(gate)`: `dup = dh gate s`, `dgate = dh up s (1 + gate (1 - s))`.
pub(super) fn backward(
    threads: &Threads,
    dgate: &mut [f32],
    dup: &mut [f32],
    dh: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    let outputs = dgate.chunks_mut(BLOCK).zip(dup.chunks_mut(BLOCK));
    let jobs = outputs.zip(dh.chunks(BLOCK)).zip(gate.chunks(BLOCK)).zip(up.chunks(BLOCK));
    threads.each(
        jobs,
        #[inline(always)]
        |((((dgate, dup), dh), gate), up)| {
            let outputs = dgate.iter_mut().zip(dup);
            for ((((dgate, dup), &dh), &gate), &up) in outputs.zip(dh).zip(gate).zip(up) {
                let s = sigmoid(gate);
                *dup = dh * gate * s;
                *dgate = dh * up * s * (1.0 + gate * (1.0 - s));
            }
        },
    );
}
