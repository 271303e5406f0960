//! Small dense products inside other operations, in register tiles.
//!
//! Every number of the result is one chain of fused multiply-adds in the order of `k`: the same bits on every
//! instruction set.

use super::view::MatrixView;
use crate::Write;
use pulp::{Arch, Simd, WithSimd};

/// Widths and strides of the right factor and of the result are multiples of this.
pub(super) const ALIGN: usize = 16;
/// Vectors of a row of a register tile.
const TILE_VECTORS: usize = 2;

/// `x` rounded up to a multiple of [`ALIGN`].
pub(super) fn align(x: usize) -> usize {
    x.next_multiple_of(ALIGN)
}

/// `c[m,n] (= | +=) a[m,k] b[k,n]`; rows of `b` and `c` are `b_stride` and `c_stride` apart, `n` is a multiple
/// of [`ALIGN`].
#[derive(Debug)]
pub(super) struct SmallProduct<'a> {
    pub(super) c: &'a mut [f32],
    pub(super) c_stride: usize,
    pub(super) a: MatrixView<'a>,
    pub(super) b: &'a [f32],
    pub(super) b_stride: usize,
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) write: Write,
}

impl SmallProduct<'_> {
    /// Computes it with the instructions of `arch`.
    pub(super) fn run(self, arch: Arch) {
        let Self { c_stride, b_stride, m, n, k, .. } = self;
        assert!(n.is_multiple_of(ALIGN) && n <= b_stride && n <= c_stride);
        self.a.check(m, k);
        MatrixView::rows(self.b, b_stride).check(k, n);
        MatrixView::rows(self.c, c_stride).check(m, n);
        arch.dispatch(self);
    }

    /// Rows `row..row + R`, columns `column..column + V` vectors.
    ///
    /// # Safety
    ///
    /// They lie within `m` and `n`, and [`SmallProduct::run`] has checked the operands.
    #[inline(always)]
    unsafe fn tile<S: Simd, const R: usize, const V: usize>(&mut self, simd: S, row: usize, column: usize) {
        let c = self.c.as_mut_ptr().wrapping_add(row * self.c_stride + column);
        let c = |r: usize, v: usize| c.wrapping_add(r * self.c_stride + v * S::F32_LANES).cast::<S::f32s>();
        let mut a = self.a.data.as_ptr().wrapping_add(row * self.a.row_stride);
        let mut b = self.b.as_ptr().wrapping_add(column);
        let mut sums = [[simd.splat_f32s(0.0); V]; R];
        // SAFETY: passed on to the caller: every vector of `b` and `c` and every number of `a` lies inside.
        unsafe {
            if self.write == Write::Add {
                for r in 0..R {
                    for v in 0..V {
                        sums[r][v] = c(r, v).read_unaligned();
                    }
                }
            }
            for _ in 0..self.k {
                let mut columns = [simd.splat_f32s(0.0); V];
                for v in 0..V {
                    columns[v] = b.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                }
                for r in 0..R {
                    let factor = simd.splat_f32s(*a.add(r * self.a.row_stride));
                    for v in 0..V {
                        sums[r][v] = simd.mul_add_f32s(factor, columns[v], sums[r][v]);
                    }
                }
                a = a.wrapping_add(self.a.column_stride);
                b = b.wrapping_add(self.b_stride);
            }
            for r in 0..R {
                for v in 0..V {
                    c(r, v).write_unaligned(sums[r][v]);
                }
            }
        }
    }

    /// `V` vectors of columns from `column` on.
    ///
    /// # Safety
    ///
    /// They lie within `n`, and [`SmallProduct::run`] has checked the operands.
    #[inline(always)]
    unsafe fn columns<S: Simd, const V: usize>(&mut self, simd: S, column: usize) {
        let mut row = 0;
        // SAFETY: the conditions of the loops; the rest is passed on to the caller.
        unsafe {
            // Sums, a row of `b` and a factor share the registers.
            if S::REGISTER_COUNT >= 32 {
                while row + 8 <= self.m {
                    self.tile::<S, 8, V>(simd, row, column);
                    row += 8;
                }
            } else {
                while row + 6 <= self.m {
                    self.tile::<S, 6, V>(simd, row, column);
                    row += 6;
                }
            }
            while row + 4 <= self.m {
                self.tile::<S, 4, V>(simd, row, column);
                row += 4;
            }
            while row < self.m {
                self.tile::<S, 1, V>(simd, row, column);
                row += 1;
            }
        }
    }
}

impl WithSimd for SmallProduct<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(mut self, simd: S) {
        const { assert!(ALIGN.is_multiple_of(S::F32_LANES)) }
        let mut column = 0;
        // SAFETY: `run`, the only caller of `dispatch`, has checked the operands; `n` is a multiple of the vector.
        unsafe {
            while column + TILE_VECTORS * S::F32_LANES <= self.n {
                self.columns::<S, TILE_VECTORS>(simd, column);
                column += TILE_VECTORS * S::F32_LANES;
            }
            if column < self.n {
                self.columns::<S, 1>(simd, column);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{SmallProduct, align};
    use crate::{
        Write,
        cpu::{
            check::{close, numbers, wide},
            view::MatrixView,
        },
    };
    use pulp::Arch;

    #[test]
    fn tiles_agree_with_plain_loops() {
        for (m, n, k) in [(1, 16, 1), (4, 32, 9), (7, 48, 33), (18, 16, 5)] {
            let (stride, b_stride) = (n + 16, n + 32);
            let (a, b, c) = (numbers(m * k, 1), numbers(k * b_stride, 2), numbers(m * stride, 3));
            for (write, a_matrix) in [
                (Write::Set, MatrixView::rows(&a, k)),
                (Write::Add, MatrixView { data: &a, row_stride: 1, column_stride: m }),
            ] {
                let mut expected = wide(&c);
                for (r, column) in (0..m * n).map(|i| (i / n, i % n)) {
                    let factor = |i: usize| a[r * a_matrix.row_stride + i * a_matrix.column_stride];
                    let term = |i: usize| f64::from(factor(i)) * f64::from(b[i * b_stride + column]);
                    let kept = if write == Write::Add { expected[r * stride + column] } else { 0.0 };
                    expected[r * stride + column] = kept + (0..k).map(term).sum::<f64>();
                }
                let mut got = c.clone();
                let product = SmallProduct {
                    c: &mut got,
                    c_stride: stride,
                    a: a_matrix,
                    b: &b,
                    b_stride,
                    m,
                    n,
                    k,
                    write,
                };
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
            let a = MatrixView::rows(&a, k);
            SmallProduct { c, c_stride: n, a, b: &b, b_stride: n, m, n, k, write: Write::Set }.run(arch);
        }
        assert_eq!(best, plain);
        assert_eq!(align(1), 16);
    }
}
