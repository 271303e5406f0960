//! The products of a linear layer.

use super::{product::Products, threads::Threads, view::MatrixView};
use crate::{LinearShape, Write};

/// `y[N,O] (= | +=) x[N,I] w[O,I]^T`
pub(super) fn forward(
    products: &mut Products,
    threads: &Threads,
    y: &mut [f32],
    x: &[f32],
    w: &[f32],
    shape: LinearShape,
    write: Write,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let (x, w) = (MatrixView::rows(x, inputs), MatrixView::rows(w, inputs).transposed());
    products.run(threads, y, x, w, [rows, outputs, inputs], write);
}

/// `dx[N,I] (= | +=) dy[N,O] w[O,I]`
pub(super) fn backward_input(
    products: &mut Products,
    threads: &Threads,
    dx: &mut [f32],
    dy: &[f32],
    w: &[f32],
    shape: LinearShape,
    write: Write,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let (dy, w) = (MatrixView::rows(dy, outputs), MatrixView::rows(w, inputs));
    products.run(threads, dx, dy, w, [rows, inputs, outputs], write);
}

/// `dw[O,I] (= | +=) dy[N,O]^T x[N,I]`
pub(super) fn backward_weight(
    products: &mut Products,
    threads: &Threads,
    dw: &mut [f32],
    dy: &[f32],
    x: &[f32],
    shape: LinearShape,
    write: Write,
) {
    let LinearShape { rows, inputs, outputs } = shape;
    let (dy, x) = (MatrixView::rows(dy, outputs).transposed(), MatrixView::rows(x, inputs));
    products.run(threads, dw, dy, x, [outputs, inputs, rows], write);
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend, LinearShape,
        Write::{self, Add, Set},
        cpu::{
            Cpu, CpuTensor,
            check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
        },
    };

    const SHAPES: [(usize, usize, usize); 6] =
        [(1, 1, 1), (1, 17, 5), (7, 33, 3), (64, 64, 64), (37, 300, 41), (3, 1, 9)];

    fn naive(
        rows: usize,
        columns: usize,
        inner: usize,
        term: impl Fn(usize, usize, usize) -> f64,
    ) -> Vec<f64> {
        let at = |i: usize| (0..inner).map(|k| term(i / columns, i % columns, k)).sum();
        (0..rows * columns).map(at).collect()
    }

    /// The outcome of `run` for both kinds of write against `product`, the plain sums.
    fn check(len: usize, product: &[f64], run: impl Fn(&mut Cpu, &mut CpuTensor, Write)) {
        let before = tensor(len, 9);
        for write in [Set, Add] {
            let mut out = before.clone();
            run(&mut cpu(), &mut out, write);
            let expected: Vec<f64> = match write {
                Set => product.to_vec(),
                Add => product.iter().zip(before.as_slice()).map(|(p, &b)| p + f64::from(b)).collect(),
            };
            // Sums of up to 300 products of unit size.
            close(out.as_slice(), &expected, 2e-5);
        }
    }

    #[test]
    fn products_agree_with_plain_loops() {
        for (rows, inputs, outputs) in SHAPES {
            let shape = LinearShape { rows, inputs, outputs };
            let (x, w, dy) =
                (tensor(rows * inputs, 1), tensor(outputs * inputs, 2), tensor(rows * outputs, 3));
            let [fx, fw, fdy] = [&x, &w, &dy].map(|t| wide(t.as_slice()));
            let y = naive(rows, outputs, inputs, |r, c, k| fx[r * inputs + k] * fw[c * inputs + k]);
            check(y.len(), &y, |cpu, out, write| cpu.linear(out, &x, &w, shape, write).unwrap());
            let dx = naive(rows, inputs, outputs, |r, c, k| fdy[r * outputs + k] * fw[k * inputs + c]);
            check(dx.len(), &dx, |cpu, out, write| {
                cpu.linear_backward_input(out, &dy, &w, shape, write).unwrap();
            });
            let dw = naive(outputs, inputs, rows, |r, c, k| fdy[k * outputs + r] * fx[k * inputs + c]);
            check(dw.len(), &dw, |cpu, out, write| {
                cpu.linear_backward_weight(out, &dy, &x, shape, write).unwrap();
            });
        }
    }

    #[test]
    fn backward_agrees_with_central_differences() {
        for (rows, inputs, outputs) in [(1, 1, 1), (4, 7, 3), (3, 16, 9)] {
            let shape = LinearShape { rows, inputs, outputs };
            let (x, w, dy) =
                (tensor(rows * inputs, 1), tensor(outputs * inputs, 2), tensor(rows * outputs, 3));
            let forward = |xw: &[Vec<f64>]| {
                naive(rows, outputs, inputs, |r, c, k| xw[0][r * inputs + k] * xw[1][c * inputs + k])
            };
            let slopes = gradients(forward, &[x.as_slice(), w.as_slice()], dy.as_slice());
            let (mut dx, mut dw) = (tensor(rows * inputs, 4), tensor(outputs * inputs, 5));
            cpu().linear_backward_input(&mut dx, &dy, &w, shape, Set).unwrap();
            cpu().linear_backward_weight(&mut dw, &dy, &x, shape, Set).unwrap();
            close(dx.as_slice(), &slopes[0], 2e-6);
            close(dw.as_slice(), &slopes[1], 2e-6);
        }
    }

    #[test]
    fn threads_share_out_rows_and_columns_only() {
        for (rows, inputs, outputs) in [(257, 700, 130), (1024, 256, 688), (33, 2048, 31)] {
            let shape = LinearShape { rows, inputs, outputs };
            let (x, w, dy) =
                (tensor(rows * inputs, 1), tensor(outputs * inputs, 2), tensor(rows * outputs, 3));
            same_on_any_threads(|cpu| {
                let mut out = [rows * outputs, rows * inputs, outputs * inputs].map(|len| tensor(len, 4));
                cpu.linear(&mut out[0], &x, &w, shape, Add).unwrap();
                cpu.linear_backward_input(&mut out[1], &dy, &w, shape, Set).unwrap();
                cpu.linear_backward_weight(&mut out[2], &dy, &x, shape, Add).unwrap();
                out.to_vec()
            });
        }
    }

    #[test]
    fn a_tensor_may_be_longer_than_needed() {
        let shape = LinearShape { rows: 2, inputs: 3, outputs: 2 };
        let mut y = tensor(9, 1);
        let before = y.clone();
        cpu().linear(&mut y, &tensor(20, 2), &tensor(30, 3), shape, Set).unwrap();
        assert_eq!(y.as_slice()[4..], before.as_slice()[4..]);
    }

    #[test]
    #[should_panic(expected = "leaves its buffer")]
    fn a_tensor_that_is_too_short_panics() {
        let shape = LinearShape { rows: 2, inputs: 3, outputs: 2 };
        let _ = cpu().linear(&mut tensor(4, 1), &tensor(5, 2), &tensor(6, 3), shape, Set);
    }
}
