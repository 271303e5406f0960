//! Elementwise passes over parameters, moments and gradients.

use super::threads::Threads;
use crate::AdamStep;

/// Numbers of one job, and of one partial sum.
const BLOCK: usize = 1 << 14;
/// Partial sums held at a time; sums without a block are 0.
const SUMS: usize = 256;
/// Interleaved sums of a block.
const LANES: usize = 16;

/// `y += alpha x`
pub(super) fn add_scaled(threads: &Threads, y: &mut [f32], x: &[f32], alpha: f32) {
    threads.each(
        y.chunks_mut(BLOCK).zip(x.chunks(BLOCK)),
        #[inline(always)]
        |(y, x)| {
            for (y, x) in y.iter_mut().zip(x) {
                *y = alpha.mul_add(*x, *y);
            }
        },
    );
}

/// Sum of squares in f64: interleaved within a block, blocks in order.
pub(super) fn sum_squares(threads: &Threads, x: &[f32]) -> f64 {
    let mut sum = 0.0;
    for x in x.chunks(SUMS * BLOCK) {
        let mut partial = [0.0; SUMS];
        threads.each(
            partial.iter_mut().zip(x.chunks(BLOCK)),
            #[inline(always)]
            |(sum, x)| *sum = block_sum_squares(x),
        );
        for part in partial {
            sum += part;
        }
    }
    sum
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
    let mut sum = 0.0;
    for part in sums {
        sum += part;
    }
    sum
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

#[cfg(test)]
mod tests {
    use crate::{
        AdamStep, Backend,
        cpu::check::{close, cpu, same_on_any_threads, tensor, wide},
    };

    const STEP: AdamStep = AdamStep {
        beta1: 0.9,
        beta2: 0.999,
        bias_correction2: 0.002,
        epsilon: 1e-8,
        gradient_scale: 0.5,
        decay: 1e-3,
        gradient_rate: 2e-3,
        momentum_rate: 1e-2,
    };

    /// The same update in f64: `w`, `m`, `v` after it.
    fn naive(w: f64, m: f64, v: f64, g: f64) -> [f64; 3] {
        let [beta1, beta2, correction, epsilon] =
            [STEP.beta1, STEP.beta2, STEP.bias_correction2, STEP.epsilon].map(f64::from);
        let [scale, decay, gradient_rate, momentum_rate] =
            [STEP.gradient_scale, STEP.decay, STEP.gradient_rate, STEP.momentum_rate].map(f64::from);
        let g = scale * g;
        let m = beta1 * m + (1.0 - beta1) * g;
        let v = beta2 * v + (1.0 - beta2) * g * g;
        let denominator = (v / correction).sqrt() + epsilon;
        [(1.0 - decay) * w - gradient_rate * g / denominator - momentum_rate * m / denominator, m, v]
    }

    #[test]
    fn adam_agrees_with_f64() {
        for len in [1, 16, 1003] {
            let [mut w, mut m, g] = [1, 2, 3].map(|stream| tensor(len, stream));
            let mut v = tensor(len, 4);
            v.as_mut_slice().iter_mut().for_each(|x| *x *= *x);
            let inputs = [&w, &m, &v, &g].map(|x| wide(x.as_slice()));
            cpu().adam_update(&mut w, &mut m, &mut v, &g, len, STEP).unwrap();
            let expected: Vec<[f64; 3]> =
                (0..len).map(|i| naive(inputs[0][i], inputs[1][i], inputs[2][i], inputs[3][i])).collect();
            for (which, got) in [w, m, v].iter().enumerate() {
                let expected: Vec<f64> = expected.iter().map(|all| all[which]).collect();
                close(got.as_slice(), &expected, 2e-6);
            }
        }
    }

    #[test]
    fn elementwise_operations_touch_their_length_only() {
        let (mut y, x) = (tensor(10, 1), tensor(10, 2));
        let before = y.clone();
        cpu().fill(&mut y, 2.0, 3).unwrap();
        cpu().add_scaled(&mut y, &x, 0.5, 2).unwrap();
        let expected: Vec<f64> = x.as_slice()[..2].iter().map(|&x| 2.0 + 0.5 * f64::from(x)).collect();
        close(&y.as_slice()[..2], &expected, 1e-6);
        assert_eq!(y.as_slice()[2], 2.0);
        assert_eq!(y.as_slice()[3..], before.as_slice()[3..]);
        cpu().copy(&mut y, &x, 4).unwrap();
        assert_eq!(y.as_slice()[..4], x.as_slice()[..4]);
    }

    #[test]
    fn squares_add_up_and_show_what_is_not_finite() {
        for len in [0, 5, 40_000] {
            let mut x = tensor(len, 1);
            let expected: f64 = wide(x.as_slice()).iter().map(|x| x * x).sum();
            let sum = cpu().sum_squares(&x, len).unwrap();
            assert!((sum - expected).abs() <= 1e-12 * expected);
            for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                if let Some(last) = x.as_mut_slice().last_mut() {
                    *last = bad;
                    assert!(!cpu().sum_squares(&x, len).unwrap().is_finite());
                }
            }
        }
    }

    #[test]
    fn threads_do_not_show() {
        let len = 100_003;
        let g = tensor(len, 3);
        same_on_any_threads(|cpu| {
            let [mut w, mut m, mut v] = [1, 2, 3].map(|stream| tensor(len, stream));
            v.as_mut_slice().iter_mut().for_each(|x| *x *= *x);
            cpu.adam_update(&mut w, &mut m, &mut v, &g, len, STEP).unwrap();
            cpu.add_scaled(&mut w, &g, 0.3, len).unwrap();
            let sum = cpu.sum_squares(&w, len).unwrap().to_bits();
            let halves = [sum >> 32, sum & 0xFFFF_FFFF].map(|half| f32::from_bits(half as u32));
            vec![w, m, v, halves.to_vec().into()]
        });
    }
}
