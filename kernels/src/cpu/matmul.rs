//! Matrix products, through the `gemm` crate.

use super::threads::Threads;
use crate::{LinearShape, Write};
use gemm::Parallelism;

/// A matrix inside a slice: number `(r, c)` sits at `r * row_stride + c * column_stride`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Matrix<'a> {
    pub(super) data: &'a [f32],
    pub(super) row_stride: usize,
    pub(super) column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows of `width` numbers, one after the other.
    pub(super) fn rows(data: &'a [f32], width: usize) -> Self {
        Self { data, row_stride: width, column_stride: 1 }
    }

    /// The same numbers read as columns.
    pub(super) fn transposed(self) -> Self {
        Self { row_stride: self.column_stride, column_stride: self.row_stride, ..self }
    }

    /// Panics unless `rows x columns` numbers lie inside the slice.
    fn check(self, rows: usize, columns: usize) {
        if rows > 0 && columns > 0 {
            let last = (rows - 1) * self.row_stride + (columns - 1) * self.column_stride;
            assert!(last < self.data.len(), "matrix {rows}x{columns} leaves its buffer");
        }
    }
}

/// `c[m,n] (= | +=) a[m,k] b[k,n]`, `c` in rows of `n`.
///
/// The order of the sum over `k` depends on the shape alone: `gemm` shares out `m` and `n` among threads.
pub(super) fn product(
    c: &mut [f32],
    a: Matrix<'_>,
    b: Matrix<'_>,
    m: usize,
    n: usize,
    k: usize,
    write: Write,
    parallelism: Parallelism,
) {
    a.check(m, k);
    b.check(k, n);
    assert!(c.len() >= m * n, "product {m}x{n} leaves its buffer");
    // SAFETY: the three asserts above keep every index inside its slice; `c` is exclusive, so no operand
    // aliases it; strides fit isize because they index slices.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.as_mut_ptr(),
            1,
            n as isize,
            write == Write::Add,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

/// `y[N,O] (= | +=) x[N,I] w[O,I]^T`
pub(super) fn linear(
    threads: &Threads,
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    shape: LinearShape,
    write: Write,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let (x, w) = (Matrix::rows(x, inputs), Matrix::rows(w, inputs).transposed());
    threads.product(|parallelism| product(y, x, w, rows, outputs, inputs, write, parallelism));
}

/// `dx[N,I] (= | +=) dy[N,O] w[O,I]`
pub(super) fn linear_backward_input(
    threads: &Threads,
    dx: &mut [f32],
    dy: &[f32],
    w: &[f32],
    shape: LinearShape,
    write: Write,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let (dy, w) = (Matrix::rows(dy, outputs), Matrix::rows(w, inputs));
    threads.product(|parallelism| product(dx, dy, w, rows, inputs, outputs, write, parallelism));
}

/// `dw[O,I] (= | +=) dy[N,O]^T x[N,I]`
pub(super) fn linear_backward_weight(
    threads: &Threads,
    dw: &mut [f32],
    dy: &[f32],
    x: &[f32],
    shape: LinearShape,
    write: Write,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let (dy, x) = (Matrix::rows(dy, outputs).transposed(), Matrix::rows(x, inputs));
    threads.product(|parallelism| product(dw, dy, x, outputs, inputs, rows, write, parallelism));
}
