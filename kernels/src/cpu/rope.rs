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
