//! Small dense products inside other operations, in register tiles.
//!
//! Every number of the result is one chain of fused multiply-adds in the order of `k`: the same bits on every
//! instruction set.

use super::matrix::Matrix;
use crate::Write;
use pulp::{Arch, Simd, WithSimd};

/// Widths and strides of the right factor and of the result are multiples of this.
pub(super) const ALIGN: usize = 16;
/// Rows of a register tile: with two vectors a row, eight independent chains hide the latency of an add.
const TILE_ROWS: usize = 4;

/// `x` rounded up to a multiple of [`ALIGN`].
pub(super) fn align(x: usize) -> usize {
    x.next_multiple_of(ALIGN)
}

/// `c[m,n] (= | +=) a[m,k] b[k,n]`; rows of `b` and `c` are `b_stride` and `c_stride` apart, `n` is a multiple
/// of [`ALIGN`].
#[derive(Debug)]
pub(super) struct Product<'a> {
    pub(super) c: &'a mut [f32],
    pub(super) c_stride: usize,
    pub(super) a: Matrix<'a>,
    pub(super) b: &'a [f32],
    pub(super) b_stride: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) write: Write,
}

impl Product<'_> {
    /// Computes it with the instructions of `arch`.
    pub(super) fn run(self, arch: Arch) {
        assert!(self.n.is_multiple_of(ALIGN) && self.n <= self.b_stride && self.n <= self.c_stride);
        self.a.check(self.m, self.k);
        arch.dispatch(self);
    }

    /// Rows `row..row + R`, columns `column..column + V` vectors.
    #[inline(always)]
    fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize, column: usize) {
        let width = V * S::F32_LANES;
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        if self.write == Write::Add {
            for r in 0..R {
                let at = (row + r) * self.c_stride + column;
                let kept = S::as_simd_f32s(&self.c[at..at + width]).0;
                for v in 0..V {
                    sums[r][v] = kept[v];
                }
            }
        }
        for k in 0..self.k {
            let at = k * self.b_stride + column;
            let b = S::as_simd_f32s(&self.b[at..at + width]).0;
            for r in 0..R {
                let at = (row + r) * self.a.row_stride + k * self.a.column_stride;
                // SAFETY: `run` checked that rows up to `m` and columns up to `k` lie inside `a`, and
                // `with_simd` keeps `row + R` within `m`.
                let factor = simd.splat_f32s(unsafe { *self.a.data.get_unchecked(at) });
                for v in 0..V {
                    sums[r][v] = simd.mul_add_f32s(factor, b[v], sums[r][v]);
                }
            }
        }
        for r in 0..R {
            let at = (row + r) * self.c_stride + column;
            let out = S::as_mut_simd_f32s(&mut self.c[at..at + width]).0;
            for v in 0..V {
                out[v] = sums[r][v];
            }
        }
    }

    #[inline(always)]
    fn band<S: Simd, const R: usize>(&mut self, simd: S, row: usize) {
        let mut column = 0;
        while column + 2 * S::F32_LANES <= self.n {
            self.tile::<S, R, 2>(simd, row, column);
            column += 2 * S::F32_LANES;
        }
        if column < self.n {
            self.tile::<S, R, 1>(simd, row, column);
        }
    }
}

impl WithSimd for Product<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        let mut row = 0;
        while row + TILE_ROWS <= self.m {
            self.band::<S, TILE_ROWS>(simd, row);
            row += TILE_ROWS;
        }
        while row < self.m {
            self.band::<S, 1>(simd, row);
            row += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Product, align};
    use crate::{
        Write,
        cpu::{
            check::{close, numbers, wide},
            matrix::Matrix,
        },
    };
    use pulp::Arch;

    #[test]
    fn tiles_agree_with_plain_loops() {
        for (m, n, k) in [(1, 16, 1), (4, 32, 9), (7, 48, 33), (18, 16, 5)] {
            let (stride, b_stride) = (n + 16, n + 32);
            let (a, b, c) = (numbers(m * k, 1), numbers(k * b_stride, 2), numbers(m * stride, 3));
            for (write, a_matrix) in [
                (Write::Set, Matrix::rows(&a, k)),
                (Write::Add, Matrix { data: &a, row_stride: 1, column_stride: m }),
            ] {
                let mut expected = wide(&c);
                for (r, column) in (0..m * n).map(|i| (i / n, i % n)) {
                    let factor = |i: usize| a[r * a_matrix.row_stride + i * a_matrix.column_stride];
                    let term = |i: usize| f64::from(factor(i)) * f64::from(b[i * b_stride + column]);
                    let kept = if write == Write::Add { expected[r * stride + column] } else { 0.0 };
                    expected[r * stride + column] = kept + (0..k).map(term).sum::<f64>();
                }
                let mut got = c.clone();
                let product =
                    Product { c: &mut got, c_stride: stride, a: a_matrix, b: &b, b_stride, m, n, k, write };
                product.run(Arch::new());
                close(&got, &expected, 2e-6);
            }
        }
    }

    #[test]
    fn instruction_sets_agree_bit_for_bit() {
        let (m, n, k) = (9, 48, 40);
        let (a, b) = (numbers(m * k, 1), numbers(k * n, 2));
        let [mut best, mut plain] = [vec![0.0; m * n], vec![0.0; m * n]];
        for (c, arch) in [(&mut best, Arch::new()), (&mut plain, Arch::Scalar)] {
            let a = Matrix::rows(&a, k);
            Product { c, c_stride: n, a, b: &b, b_stride: n, m, n, k, write: Write::Set }.run(arch);
        }
        assert_eq!(best, plain);
        assert_eq!(align(1), 16);
    }
}
