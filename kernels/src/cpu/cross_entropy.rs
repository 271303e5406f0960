//! Softmax cross-entropy, fused with its gradient.

use super::{
    lanes,
    math::{exp, ln_f64},
    threads::Threads,
};

/// Rows of one job.
const BLOCK_ROWS: usize = 16;

/// `losses[N] = -ln softmax(logits)[target]`; `logits[N,V] <- scale (softmax(logits) - onehot(target))`
pub(super) fn forward_backward(
    threads: &Threads,
    losses: &mut [f32],
    logits: &mut [f32],
    targets: &[u32],
    vocab: usize,
    scale: f32,
) {
    let jobs = losses.chunks_mut(BLOCK_ROWS).zip(logits.chunks_mut((BLOCK_ROWS * vocab).max(1)));
    threads.each(
        jobs.zip(targets.chunks(BLOCK_ROWS)),
        #[inline(always)]
        |((losses, logits), targets)| {
            for ((loss, row), &target) in losses.iter_mut().zip(logits.chunks_exact_mut(vocab)).zip(targets) {
                *loss = row_forward_backward(row, target as usize, scale);
            }
        },
    );
}

#[inline(always)]
fn row_forward_backward(row: &mut [f32], target: usize, scale: f32) -> f32 {
    let top = lanes::max(row);
    let below = top - row[target];
    row.iter_mut().for_each(|x| *x = exp(*x - top));
    let sum = lanes::sum(row);
    let factor = scale / sum;
    row.iter_mut().for_each(|x| *x *= factor);
    row[target] -= scale;
    (ln_f64(f64::from(sum)) + f64::from(below)) as f32
}
