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
    for x in row.iter_mut() {
        *x = exp(*x - top);
    }
    let sum = lanes::sum(row);
    let factor = scale / sum;
    for x in row.iter_mut() {
        *x *= factor;
    }
    row[target] -= scale;
    (ln_f64(f64::from(sum)) + f64::from(below)) as f32
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend,
        cpu::check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
    };

    fn naive(logits: &[f64], targets: &[u32], vocab: usize) -> Vec<f64> {
        let row = |(row, &target): (&[f64], &u32)| {
            let top = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
            sum.ln() + top - row[target as usize]
        };
        logits.chunks(vocab).zip(targets).map(row).collect()
    }

    #[test]
    fn loss_and_gradient_agree_with_f64() {
        for vocab in [1, 7, 16, 100] {
            let targets = [0, vocab as u32 / 2, vocab as u32 - 1];
            let ids = cpu().ids(&targets, vocab).unwrap();
            let mut logits = tensor(3 * vocab, 1);
            let mut losses = tensor(3, 2);
            let expected = naive(&wide(logits.as_slice()), &targets, vocab);
            let scale = 0.25;
            let slopes = gradients(|x| naive(&x[0], &targets, vocab), &[logits.as_slice()], &[scale; 3]);
            cpu().cross_entropy(&mut losses, &mut logits, &ids, vocab, scale).unwrap();
            close(losses.as_slice(), &expected, 1e-6);
            close(logits.as_slice(), &slopes[0], 1e-6);
        }
    }

    #[test]
    fn large_logits_neither_overflow_nor_hide() {
        let ids = cpu().ids(&[0, 0], 2).unwrap();
        let mut logits = vec![1e30, -1e30, f32::NAN, 0.0].into();
        let mut losses = tensor(2, 1);
        cpu().cross_entropy(&mut losses, &mut logits, &ids, 2, 1.0).unwrap();
        close(&losses.as_slice()[..1], &[0.0], 1e-6);
        assert!(losses.as_slice()[1].is_nan());
        assert!(logits.as_slice()[2].is_nan());
    }

    #[test]
    fn threads_do_not_show() {
        let (rows, vocab) = (100, 77);
        let targets: Vec<u32> = (0..rows).map(|i| i * 7 % vocab).collect();
        let (rows, vocab) = (rows as usize, vocab as usize);
        same_on_any_threads(|cpu| {
            let ids = cpu.ids(&targets, vocab).unwrap();
            let (mut losses, mut logits) = (tensor(rows, 1), tensor(rows * vocab, 2));
            cpu.cross_entropy(&mut losses, &mut logits, &ids, vocab, 0.1).unwrap();
            vec![losses, logits]
        });
    }
}
