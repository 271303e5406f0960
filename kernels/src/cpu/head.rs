//! The head: logits, cross-entropy and their gradients, some rows at a time, so that the logits of all rows never
//! exist together.

use super::{cross_entropy, linear, product::Products, threads::Threads};
use crate::{LinearShape, Write};

/// Rows of a block of logits: as many terms as a product sums before it adds them to its result, so that the gradient
/// of the weights has the bits of one product over all rows.
pub(super) const BLOCK_ROWS: usize = 256;

/// Numbers of `logits` that [`forward_backward`] needs.
pub(super) fn logits_len(shape: LinearShape) -> usize {
    shape.rows.min(BLOCK_ROWS) * shape.outputs
}

/// Gradients of `scale * sum(losses)`.
#[derive(Debug)]
pub(super) struct Gradients<'a> {
    /// `[N,d]`, `=`
    pub(super) dx: &'a mut [f32],
    /// `[V,d]`, `+=`
    pub(super) dw: &'a mut [f32],
    pub(super) scale: f32,
}

/// `losses[N] = -ln softmax(x[N,d] w[V,d]^T)[target]`, and the `gradients`, if any; `logits` is scratch of
/// [`logits_len`] numbers.
pub(super) fn forward_backward(
    products: &mut Products,
    threads: &Threads,
    losses: &mut [f32],
    mut gradients: Option<Gradients<'_>>,
    logits: &mut [f32],
    x: &[f32],
    w: &[f32],
    targets: &[u32],
    shape: LinearShape,
) {
    let LinearShape { inputs, outputs, .. } = shape;
    let blocks = losses.chunks_mut(BLOCK_ROWS).zip(targets.chunks(BLOCK_ROWS));
    for (block, (losses, targets)) in blocks.enumerate() {
        let shape = LinearShape { rows: targets.len(), ..shape };
        let from = block * BLOCK_ROWS * inputs;
        let x = &x[from..][..shape.rows * inputs];
        let logits = &mut logits[..shape.rows * outputs];
        linear::forward(products, threads, logits, x, w, shape, Write::Set);
        let scale = gradients.as_ref().map_or(1.0, |gradients| gradients.scale);
        cross_entropy::forward_backward(threads, losses, logits, targets, outputs, scale);
        if let Some(Gradients { dx, dw, .. }) = &mut gradients {
            let dx = &mut dx[from..][..shape.rows * inputs];
            linear::backward_input(products, threads, dx, logits, w, shape, Write::Set);
            linear::backward_weight(products, threads, dw, logits, x, shape, Write::Add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BLOCK_ROWS;
    use crate::{
        Backend, HeadGradients, LinearShape, Write,
        cpu::{
            Cpu, CpuTensor,
            check::{cpu, same_on_any_threads, tensor},
        },
        random::uniform_u64,
    };

    const SCALE: f32 = 0.01;

    /// `losses`, `dx` and `dw` of the operation, or of its parts over all rows at once.
    fn run(cpu: &mut Cpu, shape: LinearShape, whole: bool) -> Vec<CpuTensor> {
        let LinearShape { rows, inputs, outputs } = shape;
        let targets: Vec<u32> =
            (0..rows as u64).map(|i| (uniform_u64(1, 2, i) % outputs as u64) as u32).collect();
        let targets = cpu.ids(&targets, outputs).unwrap();
        let (x, w) = (tensor(rows * inputs, 1), tensor(outputs * inputs, 2));
        let [mut losses, mut dx, mut dw] =
            [(rows, 3), (rows * inputs, 4), (outputs * inputs, 5)].map(|(len, stream)| tensor(len, stream));
        if whole {
            let mut logits = tensor(rows * outputs, 6);
            cpu.linear(&mut logits, &x, &w, shape, Write::Set).unwrap();
            cpu.cross_entropy(&mut losses, &mut logits, &targets, outputs, SCALE).unwrap();
            cpu.linear_backward_input(&mut dx, &logits, &w, shape, Write::Set).unwrap();
            cpu.linear_backward_weight(&mut dw, &logits, &x, shape, Write::Add).unwrap();
        } else {
            let mut logits = tensor(cpu.head_logits(shape), 6);
            let gradients = HeadGradients { dx: &mut dx, dw: &mut dw, scale: SCALE };
            cpu.head(&mut losses, Some(gradients), &mut logits, &x, &w, &targets, shape).unwrap();
        }
        vec![losses, dx, dw]
    }

    #[test]
    fn blocks_have_the_bits_of_the_whole() {
        for (rows, inputs, outputs) in [(1, 3, 2), (10, 16, 11), (BLOCK_ROWS, 64, 50), (700, 32, 90)] {
            let shape = LinearShape { rows, inputs, outputs };
            let [blocks, whole] = [false, true].map(|whole| run(&mut cpu(), shape, whole));
            assert!(blocks == whole, "{shape:?}");
            assert!(cpu().head_logits(shape) <= BLOCK_ROWS * outputs);
        }
    }

    #[test]
    fn losses_alone_are_the_same_losses() {
        let shape = LinearShape { rows: 300, inputs: 24, outputs: 40 };
        let expected = &run(&mut cpu(), shape, false)[0];
        let targets: Vec<u32> = (0..300).map(|i| (uniform_u64(1, 2, i) % 40) as u32).collect();
        let targets = cpu().ids(&targets, 40).unwrap();
        let (x, w, mut losses) = (tensor(300 * 24, 1), tensor(40 * 24, 2), tensor(300, 3));
        let mut logits = tensor(cpu().head_logits(shape), 6);
        cpu().head(&mut losses, None, &mut logits, &x, &w, &targets, shape).unwrap();
        assert_eq!(&losses, expected);
    }

    #[test]
    fn threads_do_not_show() {
        let shape = LinearShape { rows: 300, inputs: 40, outputs: 70 };
        same_on_any_threads(|cpu| run(cpu, shape, false));
    }
}
