//! Rotary position embedding (Su et al.: arXiv 2104.09864), half-split pairs as in LLaMA's published weights.

use super::{
    math::{exp_f64, ln_f64, sin_cos_f64},
    threads::Threads,
};
use crate::RopeShape;

/// Cosines and sines of every (position, pair): made once per shape, in f64, rounded.
#[derive(Debug)]
pub(super) struct Table {
    tokens: usize,
    head_width: usize,
    theta: u32,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Table {
    /// Angles `position * theta^(-2i/e)` for `position < T`, `i < e/2`.
    pub(super) fn new(shape: RopeShape) -> Self {
        let RopeShape { tokens, head_width, theta, .. } = shape;
        assert!(head_width.is_multiple_of(2), "rope needs an even head width, not {head_width}");
        let half = head_width / 2;
        let log_theta = ln_f64(f64::from(theta));
        let frequencies: Vec<f64> =
            (0..half).map(|i| exp_f64(-log_theta * (2 * i) as f64 / head_width as f64)).collect();
        let angles = (0..tokens).flat_map(|t| frequencies.iter().map(move |f| sin_cos_f64(t as f64 * f)));
        let (sin, cos) = angles.map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        Self { tokens, head_width, theta: theta.to_bits(), cos, sin }
    }

    /// Whether the table answers for `shape`.
    pub(super) fn fits(&self, shape: RopeShape) -> bool {
        (self.tokens, self.head_width, self.theta) == (shape.tokens, shape.head_width, shape.theta.to_bits())
    }
}

/// The direction of a rotation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turn {
    Forward,
    Back,
}

/// Rotates `x[N, heads*e]` in place.
pub(super) fn rotate(threads: &Threads, x: &mut [f32], table: &Table, shape: RopeShape, turn: Turn) {
    let half = shape.head_width / 2;
    let row = shape.heads * shape.head_width;
    threads.each(
        x.chunks_mut((shape.tokens * row).max(1)),
        #[inline(always)]
        |sequence| {
            let angles = table.cos.chunks_exact(half).zip(table.sin.chunks_exact(half));
            for (row, (cos, sin)) in sequence.chunks_exact_mut(row).zip(angles) {
                for head in row.chunks_exact_mut(2 * half) {
                    let (a, b) = head.split_at_mut(half);
                    rotate_head(a, b, cos, sin, turn);
                }
            }
        },
    );
}

#[inline(always)]
fn rotate_head(a: &mut [f32], b: &mut [f32], cos: &[f32], sin: &[f32], turn: Turn) {
    let sign = if turn == Turn::Forward { 1.0 } else { -1.0 };
    for (((a, b), cos), sin) in a.iter_mut().zip(b).zip(cos).zip(sin) {
        let sin = sign * sin;
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend, RopeShape,
        cpu::check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
    };

    const SHAPES: [RopeShape; 3] = [
        RopeShape { batch: 1, tokens: 1, heads: 1, head_width: 2, theta: 10_000.0 },
        RopeShape { batch: 2, tokens: 5, heads: 3, head_width: 6, theta: 10_000.0 },
        RopeShape { batch: 3, tokens: 7, heads: 2, head_width: 32, theta: 500_000.0 },
    ];

    fn naive(x: &[f64], shape: RopeShape) -> Vec<f64> {
        let (half, row) = (shape.head_width / 2, shape.heads * shape.head_width);
        let mut y = x.to_vec();
        for (i, y) in y.iter_mut().enumerate() {
            let (position, column) = ((i / row % shape.tokens) as f64, i % shape.head_width);
            let pair = (column % half) as f64;
            let angle = position * f64::from(shape.theta).powf(-2.0 * pair / shape.head_width as f64);
            *y = if column < half {
                x[i] * angle.cos() - x[i + half] * angle.sin()
            } else {
                x[i] * angle.cos() + x[i - half] * angle.sin()
            };
        }
        y
    }

    fn len(shape: RopeShape) -> usize {
        shape.batch * shape.tokens * shape.heads * shape.head_width
    }

    #[test]
    fn forward_and_backward_agree_with_f64() {
        let mut cpu = cpu();
        for shape in SHAPES {
            let (mut x, mut dx) = (tensor(len(shape), 1), tensor(len(shape), 2));
            let expected = naive(&wide(x.as_slice()), shape);
            let slopes = gradients(|x| naive(&x[0], shape), &[x.as_slice()], dx.as_slice());
            cpu.rope(&mut x, shape).unwrap();
            close(x.as_slice(), &expected, 1e-6);
            cpu.rope_backward(&mut dx, shape).unwrap();
            close(dx.as_slice(), &slopes[0], 1e-6);
        }
    }

    #[test]
    fn long_sequences_keep_their_angles() {
        let shape = RopeShape { batch: 1, tokens: 9000, heads: 1, head_width: 4, theta: 10_000.0 };
        let mut x = tensor(len(shape), 1);
        let expected = naive(&wide(x.as_slice()), shape);
        cpu().rope(&mut x, shape).unwrap();
        close(x.as_slice(), &expected, 1e-6);
    }

    #[test]
    fn threads_do_not_show() {
        same_on_any_threads(|cpu| {
            let mut x = tensor(len(SHAPES[2]), 1);
            cpu.rope(&mut x, SHAPES[2]).unwrap();
            vec![x]
        });
    }
}
