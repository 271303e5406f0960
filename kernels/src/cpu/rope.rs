//! Rotary position embedding (Su et al.: arXiv 2104.09864), half-split pairs as in LLaMA's published weights.

use super::math::{exp_f64, ln_f64, sin_cos_f64};
use crate::AttentionShape;

/// Pairs that turn at a time.
const VECTOR: usize = 8;

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
    /// The table for `shape`: `kept` if it fits, else a new one that takes its place.
    pub(super) fn of(kept: &mut Option<Self>, shape: AttentionShape) -> &Self {
        let fitting = kept.take().filter(|table| table.fits(shape));
        kept.insert(fitting.unwrap_or_else(|| Self::new(shape)))
    }

    /// Angles `position * theta^(-2i/e)` for `position < T`, `i < e/2`.
    fn new(shape: AttentionShape) -> Self {
        let AttentionShape { tokens, head_width, theta, .. } = shape;
        let half = head_width / 2;
        let log_theta = ln_f64(f64::from(theta));
        let frequencies: Vec<f64> =
            (0..half).map(|i| exp_f64(-log_theta * (2 * i) as f64 / head_width as f64)).collect();
        let angles = (0..tokens).flat_map(|t| frequencies.iter().map(move |f| sin_cos_f64(t as f64 * f)));
        let (sin, cos) = angles.map(|(sin, cos)| (sin as f32, cos as f32)).unzip();
        Self { tokens, head_width, theta: theta.to_bits(), cos, sin }
    }

    fn fits(&self, shape: AttentionShape) -> bool {
        (self.tokens, self.head_width, self.theta) == (shape.tokens, shape.head_width, shape.theta.to_bits())
    }

    /// The angles at one position, which is below the tokens of the shape.
    #[inline(always)]
    pub(super) fn at(&self, position: usize) -> Angles<'_> {
        let half = self.head_width / 2;
        Angles { cos: &self.cos[position * half..][..half], sin: &self.sin[position * half..][..half] }
    }
}

/// Cosines and sines of the pairs of a head at one position.
#[derive(Clone, Copy, Debug)]
pub(super) struct Angles<'a> {
    cos: &'a [f32],
    sin: &'a [f32],
}

impl Angles<'_> {
    /// `y[e] =` the head `x[e]`, rotated.
    #[inline(always)]
    pub(super) fn rotate(self, y: &mut [f32], x: &[f32]) {
        self.turn(y, x, 1.0);
    }

    /// `y[e] =` the head `x[e]`, rotated back: the backward pass of [`Angles::rotate`].
    #[inline(always)]
    pub(super) fn rotate_back(self, y: &mut [f32], x: &[f32]) {
        self.turn(y, x, -1.0);
    }

    #[inline(always)]
    fn turn(self, y: &mut [f32], x: &[f32], sign: f32) {
        let half = self.cos.len();
        let whole = half - half % VECTOR;
        for first in (0..whole).step_by(VECTOR) {
            self.turn_pairs::<VECTOR>(y, x, first, sign);
        }
        for first in whole..half {
            self.turn_pairs::<1>(y, x, first, sign);
        }
    }

    /// Turns `N` pairs from the pair `first` on. Heads are too short for the loops a compiler makes of vectors.
    #[inline(always)]
    fn turn_pairs<const N: usize>(self, y: &mut [f32], x: &[f32], first: usize, sign: f32) {
        let second = first + self.cos.len();
        let (a, b) = (block::<N>(x, first), block::<N>(x, second));
        let (cos, sin) = (block::<N>(self.cos, first), block::<N>(self.sin, first));
        let (mut low, mut high) = ([0.0; N], [0.0; N]);
        for i in 0..N {
            let sin = sign * sin[i];
            (low[i], high[i]) = (a[i] * cos[i] - b[i] * sin, b[i] * cos[i] + a[i] * sin);
        }
        y[first..][..N].copy_from_slice(&low);
        y[second..][..N].copy_from_slice(&high);
    }
}

/// `N` numbers of `x` from `first` on.
#[inline(always)]
fn block<const N: usize>(x: &[f32], first: usize) -> [f32; N] {
    let mut numbers = [0.0; N];
    numbers.copy_from_slice(&x[first..][..N]);
    numbers
}

#[cfg(test)]
mod tests {
    use super::{Angles, Table};
    use crate::{
        AttentionShape,
        cpu::check::{close, gradients, numbers, rotated, wide},
    };

    const fn shape(
        batch: usize,
        tokens: usize,
        heads: usize,
        head_width: usize,
        theta: f32,
    ) -> AttentionShape {
        AttentionShape { batch, tokens, heads, kv_heads: heads, head_width, theta }
    }

    const SHAPES: [AttentionShape; 3] =
        [shape(1, 1, 1, 2, 1e4), shape(2, 5, 3, 6, 1e4), shape(3, 7, 2, 32, 5e5)];

    fn len(shape: AttentionShape) -> usize {
        shape.batch * shape.tokens * shape.heads * shape.head_width
    }

    /// Every head of `x[N, h*e]` by the angles of its position.
    fn each(x: &[f32], shape: AttentionShape, rotate: impl Fn(Angles<'_>, &mut [f32], &[f32])) -> Vec<f32> {
        let AttentionShape { tokens, heads, head_width, .. } = shape;
        let (table, mut y) = (Table::new(shape), vec![0.0; x.len()]);
        for (i, (y, x)) in y.chunks_mut(head_width).zip(x.chunks(head_width)).enumerate() {
            rotate(table.at(i / heads % tokens), y, x);
        }
        y
    }

    #[test]
    fn forward_and_backward_agree_with_f64() {
        for shape in SHAPES {
            let (x, dy) = (numbers(len(shape), 1), numbers(len(shape), 2));
            let y = each(&x, shape, |angles, y, x| angles.rotate(y, x));
            close(&y, &rotated(&wide(&x), shape.heads, shape), 1e-6);
            let dx = each(&dy, shape, |angles, dx, dy| angles.rotate_back(dx, dy));
            let slopes = gradients(|x| rotated(&x[0], shape.heads, shape), &[&x], &dy);
            close(&dx, &slopes[0], 1e-6);
        }
    }

    #[test]
    fn long_sequences_keep_their_angles() {
        let shape = shape(1, 9000, 1, 4, 1e4);
        let x = numbers(len(shape), 1);
        let y = each(&x, shape, |angles, y, x| angles.rotate(y, x));
        close(&y, &rotated(&wide(&x), 1, shape), 1e-6);
    }

    #[test]
    fn a_table_is_kept_while_it_fits() {
        let (mut kept, shape) = (None, SHAPES[1]);
        let first = Table::of(&mut kept, shape).cos.as_ptr();
        // Sizes that do not touch an angle.
        let alike = AttentionShape { batch: 9, heads: 6, ..shape };
        assert_eq!(Table::of(&mut kept, alike).cos.as_ptr(), first);
        for other in [
            AttentionShape { tokens: 6, ..shape },
            AttentionShape { head_width: 4, ..shape },
            AttentionShape { theta: 5e5, ..shape },
        ] {
            let (found, made) = (Table::of(&mut kept, other), Table::new(other));
            assert_eq!((&found.cos, &found.sin), (&made.cos, &made.sin));
        }
    }
}
