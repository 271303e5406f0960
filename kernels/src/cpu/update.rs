//! Elementwise passes over parameters, moments and gradients.

use super::threads::Threads;
use crate::AdamStep;

/// Numbers of one job, and of one partial sum.
const BLOCK: usize = 1 << 14;
const LANES: usize = 16;

/// `y += alpha x`
pub(super) fn add_scaled(threads: &Threads, y: &mut [f32], x: &[f32], alpha: f32) {
    threads.each(
        y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)),
        #[inline(always)]
        |(y, x)| y.iter_mut().zip(x).for_each(|(y, x)| *y = alpha.mul_add(*x, *y)),
    );
}

/// Sum of squares in f64: interleaved within a block, blocks in order.
pub(super) fn sum_squares(threads: &Threads, x: &[f32]) -> f64 {
    let mut partial = vec![0.0; x.len().div_ceil(BLOCK)];
    threads.each(
        partial.iter_mut().zip(x.chunks(BLOCK)),
        #[inline(always)]
        |(sum, x)| *sum = block_sum_squares(x),
    );
    partial.iter().sum()
}

#[inline(always)]
fn block_sum_squares(x: &[f32]) -> f64 {
    let mut sums = [0.0; LANES];
    let (body, tail) = x.as_chunks::<LANES>();
    for x in body {
        for i in 0..LANES {
            sums[i] += f64::from(x[i]) * f64::from(x[i]);
        }
    }
    for i in 0..tail.len() {
        sums[i] += f64::from(tail[i]) * f64::from(tail[i]);
    }
    sums.iter().sum()
}

/// One Adam-family update in one pass; [`crate::Backend::adam_update`] has the equations.
pub(super) fn adam(
    threads: &Threads,
    w: &mut [f32],
    m: &mut [f32],
    v: &mut [f32],
    g: &[f32],
    step: AdamStep,
) {
    let outputs = w.chunks_mut(BLOCK).zip(m.chunks_mut(BLOCK)).zip(v.chunks_mut(BLOCK));
    threads.each(
        outputs.zip(g.chunks(BLOCK)),
        #[inline(always)]
        |(((w, m), v), g)| {
            for (((w, m), v), g) in w.iter_mut().zip(m).zip(v).zip(g) {
                let g = g * step.gradient_scale;
                *m = step.beta1 * *m + (1.0 - step.beta1) * g;
                *v = step.beta2 * *v + (1.0 - step.beta2) * g * g;
                let denominator = (*v / step.bias_correction2).sqrt() + step.epsilon;
                let move_by = step.gradient_rate * g + step.momentum_rate * *m;
                *w = (1.0 - step.decay) * *w - move_by / denominator;
            }
        },
    );
}
