//! Comparisons for the tests of operations: with f64 loops, central differences and other thread counts.

use super::{Cpu, CpuTensor, Profile, isa::Isa};
use crate::{AttentionShape, random::fill_normal};

/// Near-normal numbers, different for every `stream`.
pub(super) fn numbers(len: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    fill_normal(&mut x, 0x7E57, stream, 1.0);
    x
}

/// [`numbers`] as a tensor.
pub(super) fn tensor(len: usize, stream: u64) -> CpuTensor {
    numbers(len, stream).into()
}

/// A backend on the calling thread.
pub(super) fn cpu() -> Cpu {
    Cpu::new(1).unwrap()
}

/// The same numbers in f64.
pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// `x[N, heads*e]`, every head rotated by its position.
pub(super) fn rotated(x: &[f64], heads: usize, shape: AttentionShape) -> Vec<f64> {
    let AttentionShape { tokens, head_width: e, theta, .. } = shape;
    let rotated = |i: usize| {
        let (position, column) = ((i / (heads * e) % tokens) as f64, i % e);
        let angle = position * f64::from(theta).powf(-2.0 * (column % (e / 2)) as f64 / e as f64);
        let partner = if column < e / 2 { -x[i + e / 2] } else { x[i - e / 2] };
        x[i] * angle.cos() + partner * angle.sin()
    };
    (0..x.len()).map(rotated).collect()
}

/// Every number of `got` within `tolerance * (1 + |want|)`.
#[track_caller]
pub(super) fn close(got: &[f32], want: &[f64], tolerance: f64) {
    assert_eq!(got.len(), want.len());
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        let error = (f64::from(got) - want).abs() / (1.0 + want.abs());
        assert!(error <= tolerance, "number {i}: {got} instead of {want}, error {error:e}");
    }
}

/// Central differences, in f64, of `sum(weights * forward(inputs))` by every number of every input.
pub(super) fn gradients(
    forward: impl Fn(&[Vec<f64>]) -> Vec<f64>,
    inputs: &[&[f32]],
    weights: &[f32],
) -> Vec<Vec<f64>> {
    const STEP: f64 = 1e-5;
    let mut inputs: Vec<Vec<f64>> = inputs.iter().map(|x| wide(x)).collect();
    let objective = |inputs: &[Vec<f64>]| -> f64 {
        forward(inputs).iter().zip(weights).map(|(y, &w)| y * f64::from(w)).sum()
    };
    let mut all = Vec::new();
    for which in 0..inputs.len() {
        let mut slopes = Vec::new();
        for i in 0..inputs[which].len() {
            let x = inputs[which][i];
            let mut at = |value| {
                inputs[which][i] = value;
                objective(&inputs)
            };
            let slope = (at(x + STEP) - at(x - STEP)) / (2.0 * STEP);
            at(x);
            slopes.push(slope);
        }
        all.push(slopes);
    }
    all
}

/// Demands equal bits from one, two and three threads on every instruction set, and from a second call.
#[track_caller]
pub(super) fn same_on_any_threads(run: impl Fn(&mut Cpu) -> Vec<CpuTensor>) {
    let bits = |cpu: &mut Cpu| -> Vec<Vec<u32>> {
        run(cpu).iter().map(|x| x.as_slice().iter().map(|x| x.to_bits()).collect()).collect()
    };
    let expected = bits(&mut cpu());
    for (threads, isa) in configurations() {
        let mut cpu = Cpu::on(threads, isa, Profile::Repro).unwrap();
        for call in 0..2 {
            assert!(bits(&mut cpu) == expected, "call {call} on {threads} threads, {isa:?} differs");
        }
    }
}

/// Thread counts and instruction sets, on all of which an operation must have the same bits.
pub(super) fn configurations() -> impl Iterator<Item = (usize, Isa)> {
    Isa::available().flat_map(|isa| [1, 2, 3].map(|threads| (threads, isa)))
}
