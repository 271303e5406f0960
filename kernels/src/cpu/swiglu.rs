//! The gated unit of the feed-forward layer (Shazeer: arXiv 2002.05202): `silu(gate) * up`.

use super::{math::sigmoid, threads::Threads};

/// Numbers of one job.
const BLOCK: usize = 1 << 14;

/// `h = silu(gate) * up`
pub(super) fn forward(threads: &Threads, h: &mut [f32], gate: &[f32], up: &[f32]) {
    let jobs = h.chunks_mut(BLOCK).zip(gate.chunks(BLOCK)).zip(up.chunks(BLOCK));
    threads.each(
        jobs,
        #[inline(always)]
        |((h, gate), up)| {
            for ((h, &gate), &up) in h.iter_mut().zip(gate).zip(up) {
                *h = gate * sigmoid(gate) * up;
            }
        },
    );
}

/// With `s = sigmoid(gate)`: `dup = dh gate s`, `dgate = dh up s (1 + gate (1 - s))`.
pub(super) fn backward(
    threads: &Threads,
    dgate: &mut [f32],
    dup: &mut [f32],
    dh: &[f32],
    gate: &[f32],
    up: &[f32],
) {
    let outputs = dgate.chunks_mut(BLOCK).zip(dup.chunks_mut(BLOCK));
    let jobs = outputs.zip(dh.chunks(BLOCK)).zip(gate.chunks(BLOCK)).zip(up.chunks(BLOCK));
    threads.each(
        jobs,
        #[inline(always)]
        |((((dgate, dup), dh), gate), up)| {
            let outputs = dgate.iter_mut().zip(dup);
            for ((((dgate, dup), &dh), &gate), &up) in outputs.zip(dh).zip(gate).zip(up) {
                let s = sigmoid(gate);
                *dup = dh * gate * s;
                *dgate = dh * up * s * (1.0 + gate * (1.0 - s));
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend,
        cpu::check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
    };

    /// `inputs` are `gate` and `up`.
    fn naive(inputs: &[Vec<f64>]) -> Vec<f64> {
        inputs[0].iter().zip(&inputs[1]).map(|(gate, up)| gate / (1.0 + (-gate).exp()) * up).collect()
    }

    #[test]
    fn forward_and_backward_agree_with_f64() {
        for len in [1, 16, 77] {
            let (gate, up, dh) = (tensor(len, 1), tensor(len, 2), tensor(len, 3));
            let [mut h, mut dgate, mut dup] = [4, 5, 6].map(|stream| tensor(len, stream));
            cpu().swiglu(&mut h, &gate, &up, len).unwrap();
            close(h.as_slice(), &naive(&[wide(gate.as_slice()), wide(up.as_slice())]), 1e-6);
            cpu().swiglu_backward(&mut dgate, &mut dup, &dh, &gate, &up, len).unwrap();
            let slopes = gradients(naive, &[gate.as_slice(), up.as_slice()], dh.as_slice());
            close(dgate.as_slice(), &slopes[0], 2e-6);
            close(dup.as_slice(), &slopes[1], 2e-6);
        }
    }

    #[test]
    fn far_from_zero_it_is_a_ramp() {
        let gate = vec![-200.0, -88.0, 88.0, 200.0].into();
        let up = vec![1.0; 4].into();
        let mut h = tensor(4, 1);
        cpu().swiglu(&mut h, &gate, &up, 4).unwrap();
        close(h.as_slice(), &[0.0, 0.0, 88.0, 200.0], 1e-6);
    }

    #[test]
    fn threads_do_not_show() {
        let len = 50_001;
        let (gate, up, dh) = (tensor(len, 1), tensor(len, 2), tensor(len, 3));
        same_on_any_threads(|cpu| {
            let [mut h, mut dgate, mut dup] = [4, 5, 6].map(|stream| tensor(len, stream));
            cpu.swiglu(&mut h, &gate, &up, len).unwrap();
            cpu.swiglu_backward(&mut dgate, &mut dup, &dh, &gate, &up, len).unwrap();
            vec![h, dgate, dup]
        });
    }
}
