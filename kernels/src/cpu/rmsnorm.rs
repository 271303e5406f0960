//! Root-mean-square normalisation (Zhang, Sennrich: arXiv 1910.07467) with a gain per column.

use super::{lanes, scratch::Scratch, threads::Threads};
use crate::Write;

/// Rows of one job: fixed, so that the partial sums of `dgain` are the same for every thread count.
const BLOCK_ROWS: usize = 64;

/// `y[N,d] = x * rstd * gain`, `rstd[N] = 1 / sqrt(mean(x^2) + epsilon)`
pub(super) fn forward(
    threads: &Threads,
    y: &mut [f32],
    rstd: &mut [f32],
    x: &[f32],
    gain: &[f32],
    epsilon: f32,
) {
    let width = gain.len();
    let block = BLOCK_ROWS * width;
    let jobs = y.chunks_mut(block).zip(rstd.chunks_mut(BLOCK_ROWS)).zip(x.chunks(block));
    threads.each(
        jobs,
        #[inline(always)]
        |((y, rstd), x)| {
            for ((y, rstd), x) in y.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
                *rstd = 1.0 / (lanes::dot(x, x) / width as f32 + epsilon).sqrt();
                scale_row(y, x, gain, *rstd);
            }
        },
    );
}

/// `y[N,d] = x * rstd * gain` with known `rstd[N]`
pub(super) fn apply(threads: &Threads, y: &mut [f32], x: &[f32], gain: &[f32], rstd: &[f32]) {
    let width = gain.len();
    let block = BLOCK_ROWS * width;
    let jobs = y.chunks_mut(block).zip(rstd.chunks(BLOCK_ROWS)).zip(x.chunks(block));
    threads.each(
        jobs,
        #[inline(always)]
        |((y, rstd), x)| {
            for ((y, &rstd), x) in y.chunks_exact_mut(width).zip(rstd).zip(x.chunks_exact(width)) {
                scale_row(y, x, gain, rstd);
            }
        },
    );
}

/// With `u = dy * gain` and `s = sum(u x) rstd^3 / d`: `dx (= | +=) rstd u - s x`, `dgain += sum_rows dy x rstd`.
pub(super) fn backward(
    threads: &Threads,
    scratch: &Scratch,
    dx: &mut [f32],
    dgain: &mut [f32],
    dy: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: &[f32],
    write: Write,
) {
    let width = gain.len();
    let block = BLOCK_ROWS * width;
    let mut partial = scratch.take(rstd.len().div_ceil(BLOCK_ROWS) * width);
    let outputs = dx.chunks_mut(block).zip(partial.chunks_mut(width));
    let jobs = outputs.zip(dy.chunks(block)).zip(x.chunks(block)).zip(rstd.chunks(BLOCK_ROWS));
    threads.each(
        jobs,
        #[inline(always)]
        |((((dx, partial), dy), x), rstd)| {
            let rows = dx.chunks_exact_mut(width).zip(dy.chunks_exact(width)).zip(x.chunks_exact(width));
            for (((dx, dy), x), &rstd) in rows.zip(rstd) {
                backward_row(dx, partial, dy, x, gain, rstd, write);
            }
        },
    );
    for partial in partial.chunks_exact(width) {
        dgain.iter_mut().zip(partial).for_each(|(sum, part)| *sum += part);
    }
}

#[inline(always)]
fn scale_row(y: &mut [f32], x: &[f32], gain: &[f32], rstd: f32) {
    for ((y, x), gain) in y.iter_mut().zip(x).zip(gain) {
        *y = x * rstd * gain;
    }
}

#[inline(always)]
fn backward_row(
    dx: &mut [f32],
    dgain: &mut [f32],
    dy: &[f32],
    x: &[f32],
    gain: &[f32],
    rstd: f32,
    write: Write,
) {
    let width = gain.len();
    let (dx, dgain, dy, x) = (&mut dx[..width], &mut dgain[..width], &dy[..width], &x[..width]);
    let share = lanes::dot3(dy, gain, x) * rstd * rstd * rstd / width as f32;
    for c in 0..width {
        let value = (dy[c] * gain[c]).mul_add(rstd, -(share * x[c]));
        dx[c] = match write {
            Write::Set => value,
            Write::Add => dx[c] + value,
        };
        dgain[c] = (dy[c] * x[c]).mul_add(rstd, dgain[c]);
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend, Write,
        cpu::check::{close, cpu, gradients, numbers, same_on_any_threads, tensor},
    };

    const EPSILON: f32 = 1e-5;

    /// `inputs` are `x` and `gain`.
    fn naive(inputs: &[Vec<f64>]) -> Vec<f64> {
        let (x, gain) = (&inputs[0], &inputs[1]);
        let row = |x: &[f64]| -> Vec<f64> {
            let mean = x.iter().map(|x| x * x).sum::<f64>() / gain.len() as f64;
            let rstd = 1.0 / (mean + f64::from(EPSILON)).sqrt();
            x.iter().zip(gain).map(|(x, gain)| x * rstd * gain).collect()
        };
        x.chunks(gain.len()).flat_map(row).collect()
    }

    #[test]
    fn forward_and_backward_agree_with_f64() {
        for (rows, width) in [(1, 1), (3, 5), (2, 16), (5, 37)] {
            let len = rows * width;
            let (x, gain, dy) = (tensor(len, 1), tensor(width, 2), tensor(len, 3));
            let (mut y, mut rstd) = (tensor(len, 4), tensor(rows, 5));
            cpu().rmsnorm(&mut y, &mut rstd, &x, &gain, rows, width, EPSILON).unwrap();
            let wide =
                [numbers(len, 1), numbers(width, 2)].map(|x| x.iter().map(|&x| f64::from(x)).collect());
            close(y.as_slice(), &naive(&wide), 1e-6);

            let mut again = tensor(len, 6);
            cpu().rmsnorm_apply(&mut again, &x, &gain, &rstd, rows, width).unwrap();
            assert_eq!(again, y);

            let slopes = gradients(naive, &[x.as_slice(), gain.as_slice()], dy.as_slice());
            for write in [Write::Set, Write::Add] {
                let (mut dx, mut dgain) = (tensor(len, 7), tensor(width, 8));
                let (dx0, dgain0) = (dx.clone(), dgain.clone());
                cpu()
                    .rmsnorm_backward(&mut dx, &mut dgain, &dy, &x, &gain, &rstd, rows, width, write)
                    .unwrap();
                let kept = if write == Write::Add { 1.0 } else { 0.0 };
                let want = |slopes: &[f64], before: &[f32], kept: f64| -> Vec<f64> {
                    slopes.iter().zip(before).map(|(s, &b)| s + kept * f64::from(b)).collect()
                };
                close(dx.as_slice(), &want(&slopes[0], dx0.as_slice(), kept), 2e-6);
                close(dgain.as_slice(), &want(&slopes[1], dgain0.as_slice(), 1.0), 2e-6);
            }
        }
    }

    #[test]
    fn threads_do_not_show() {
        let (rows, width) = (333, 70);
        let len = rows * width;
        let (x, gain, dy) = (tensor(len, 1), tensor(width, 2), tensor(len, 3));
        same_on_any_threads(|cpu| {
            let (mut y, mut rstd) = (tensor(len, 4), tensor(rows, 5));
            cpu.rmsnorm(&mut y, &mut rstd, &x, &gain, rows, width, EPSILON).unwrap();
            let (mut dx, mut dgain) = (tensor(len, 6), tensor(width, 7));
            let write = Write::Add;
            cpu.rmsnorm_backward(&mut dx, &mut dgain, &dy, &x, &gain, &rstd, rows, width, write).unwrap();
            vec![y, rstd, dx, dgain]
        });
    }
}
