//! Every operation on a device against the CPU, where there is a device.

use super::*;
use crate::random::{Domain, key as domain_key, philox4x32};
use crate::{Cpu, Error, PackingError, device};

/// Numbers an operation wrote, under its name.
type Outcome = Vec<(&'static str, Vec<f32>)>;

/// `len` numbers in -1..1, the same everywhere.
fn numbers(seed: u32, len: usize) -> Vec<f32> {
    let key = domain_key(7, Domain::Signs);
    let words = (0..).flat_map(|index| philox4x32([index, seed, 0, 0], key));
    words.take(len).map(|word| word as f32 / 2_147_483_648.0 - 1.0).collect()
}

/// A backend and what it was seen to compute.
struct Bench<B: Backend> {
    backend: B,
    outcome: Outcome,
}

impl<B: Backend> Bench<B> {
    fn tensor(&mut self, seed: u32, len: usize) -> B::Tensor {
        let mut tensor = self.backend.zeros(len).unwrap();
        self.backend.upload(&mut tensor, &numbers(seed, len)).unwrap();
        tensor
    }

    fn saw(&mut self, name: &'static str, tensor: &B::Tensor) {
        let mut seen = vec![0.0; self.backend.len(tensor)];
        self.backend.download(&mut seen, tensor).unwrap();
        self.outcome.push((name, seen));
    }

    fn elementwise(&mut self) {
        let len = 40_000;
        let (mut x, y) = (self.tensor(1, len), self.tensor(2, len));
        self.backend.add_scaled(&mut x, &y, 0.3, len - 1).unwrap();
        self.saw("add_scaled", &x);
        let sum = self.backend.sum_squares(&x, len).unwrap();
        self.outcome.push(("sum_squares", vec![sum as f32, (sum - f64::from(sum as f32)) as f32]));
        self.backend.copy(&mut x, &y, 7).unwrap();
        self.backend.fill(&mut x, 2.5, 3).unwrap();
        self.saw("copy and fill", &x);
        let (mut m, mut v) = (self.tensor(3, len), self.tensor(4, len));
        let square = |x: &f32| x * x;
        let squares: Vec<f32> = numbers(4, len).iter().map(square).collect();
        self.backend.upload(&mut v, &squares).unwrap();
        let step = AdamStep {
            beta1: 0.9,
            beta2: 0.99,
            bias_correction2: 0.3,
            epsilon: 1e-8,
            gradient_scale: 0.5,
            decay: 1e-3,
            gradient_rate: 1e-3,
            momentum_rate: 2e-3,
        };
        self.backend.adam_update(&mut x, &mut m, &mut v, &y, len, step).unwrap();
        for (name, tensor) in [("adam weight", &x), ("adam mean", &m), ("adam variance", &v)] {
            self.saw(name, tensor);
        }
    }

    fn products(&mut self) {
        for (rows, inputs, outputs) in [(1, 1, 1), (33, 70, 65), (128, 600, 96)] {
            let shape = LinearShape { rows, inputs, outputs };
            let (x, w) = (self.tensor(5, rows * inputs), self.tensor(6, outputs * inputs));
            let mut y = self.tensor(7, rows * outputs);
            for write in [Write::Set, Write::Add] {
                self.backend.linear(&mut y, &x, &w, shape, write).unwrap();
            }
            self.saw("linear", &y);
            let dy = self.tensor(8, rows * outputs);
            let (mut dx, mut dw) = (self.tensor(9, rows * inputs), self.tensor(10, outputs * inputs));
            self.backend.linear_backward_input(&mut dx, &dy, &w, shape, Write::Add).unwrap();
            self.backend.linear_backward_weight(&mut dw, &dy, &x, shape, Write::Add).unwrap();
            self.saw("linear_backward_input", &dx);
            self.saw("linear_backward_weight", &dw);
        }
    }

    fn layers(&mut self) {
        let (rows, width) = (70, 48);
        let len = rows * width;
        let (x, gain, dy) = (self.tensor(11, len), self.tensor(12, width), self.tensor(13, len));
        let (mut y, mut rstd) = (self.tensor(14, len), self.tensor(14, rows));
        self.backend.rmsnorm(&mut y, &mut rstd, &x, &gain, rows, width, 1e-5).unwrap();
        self.saw("rmsnorm", &y);
        self.backend.rmsnorm_apply(&mut y, &x, &gain, &rstd, rows, width).unwrap();
        self.saw("rmsnorm_apply", &y);
        let (mut dx, mut dgain) = (self.tensor(15, len), self.tensor(16, width));
        self.backend
            .rmsnorm_backward(&mut dx, &mut dgain, &dy, &x, &gain, &rstd, rows, width, Write::Add)
            .unwrap();
        self.saw("rmsnorm dx", &dx);
        self.saw("rmsnorm dgain", &dgain);
        self.backend.swiglu(&mut y, &x, &dy, len).unwrap();
        self.saw("swiglu", &y);
        let mut dup = self.tensor(17, len);
        self.backend.swiglu_backward(&mut dx, &mut dup, &dy, &x, &y, len).unwrap();
        self.saw("swiglu dgate", &dx);
        self.saw("swiglu dup", &dup);
    }

    fn attention(&mut self) {
        for (head_width, theta) in [(24, 1e4), (24, 5e5), (64, 1e4), (128, 1e4)] {
            let shape = AttentionShape { batch: 2, tokens: 37, heads: 4, kv_heads: 2, head_width, theta };
            self.attention_over(shape);
        }
    }

    fn attention_over(&mut self, shape: AttentionShape) {
        let [queries, keys, sums] = shape.lens();
        let (q, k, v) = (self.tensor(18, queries), self.tensor(19, keys), self.tensor(20, keys));
        let (mut out, mut lse) = (self.tensor(21, queries), self.tensor(21, sums));
        self.backend.attention(&mut out, &mut lse, &q, &k, &v, shape).unwrap();
        self.saw("attention", &out);
        self.saw("attention lse", &lse);
        let dout = self.tensor(22, queries);
        let (mut dq, mut dk, mut dv) =
            (self.tensor(23, queries), self.tensor(24, keys), self.tensor(25, keys));
        self.backend
            .attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape)
            .unwrap();
        for (name, tensor) in [("attention dq", &dq), ("attention dk", &dk), ("attention dv", &dv)] {
            self.saw(name, tensor);
        }
    }

    fn tokens(&mut self) {
        let (vocab, width) = (50, 20);
        let ids: Vec<u32> = (0..67).map(|i| i * i % 50).collect();
        assert!(matches!(self.backend.ids(&[50], vocab), Err(Error::TokenOutOfRange { id: 50, vocab: 50 })));
        let ids = self.backend.ids(&ids, vocab).unwrap();
        let table = self.tensor(26, vocab * width);
        let (mut x, mut dtable) = (self.tensor(27, 67 * width), self.tensor(28, vocab * width));
        self.backend.embedding(&mut x, &ids, &table, width, Write::Add).unwrap();
        self.saw("embedding", &x);
        self.backend.embedding_backward(&mut dtable, &x, &ids, width).unwrap();
        self.saw("embedding_backward", &dtable);
        self.backend.anchor(&mut x, &ids, 99, width, 0.25).unwrap();
        self.saw("anchor", &x);
        let (mut logits, mut losses) = (self.tensor(29, 67 * vocab), self.tensor(30, 67));
        self.backend.cross_entropy(&mut losses, &mut logits, &ids, vocab, 0.1).unwrap();
        self.saw("cross_entropy", &losses);
        self.saw("cross_entropy dlogits", &logits);
    }

    fn boundary(&mut self) {
        let (rows, width, code) = (33, 96, 24);
        let (x, basis) = (self.tensor(31, rows * width), self.tensor(32, code * width));
        let (mut z, mut back) = (self.tensor(33, rows * code), self.tensor(34, rows * width));
        self.backend.project(&mut z, &x, &basis, rows, width, code, Write::Set).unwrap();
        self.saw("project", &z);
        self.backend.reconstruct(&mut back, &z, &basis, &x, rows, width, code).unwrap();
        self.saw("reconstruct", &back);
        let key = RoundingKey { run: 5, tensor: 1 << 40 };
        for format in [PackedFormat::F32, PackedFormat::Bf16, PackedFormat::Q8, PackedFormat::Q4] {
            let mut bytes = vec![1, 2, 3];
            self.backend.pack(&mut bytes, &x, rows, width, format, key).unwrap();
            self.outcome.push(("pack", bytes.iter().map(|&byte| f32::from(byte)).collect()));
            self.backend.unpack(&mut back, &bytes, rows, width, format, key).unwrap();
            self.saw("unpack", &back);
            self.backend.project_pack(&mut bytes, &x, &basis, rows, width, code, format, key).unwrap();
            self.outcome.push(("project_pack", bytes.iter().map(|&byte| f32::from(byte)).collect()));
            self.backend
                .unpack_reconstruct(&mut back, &bytes, &basis, &x, rows, width, code, format, key)
                .unwrap();
            self.saw("unpack_reconstruct", &back);
            self.backend.pack(&mut bytes, &x, rows, width, format, key).unwrap();
            let short = self.backend.unpack(&mut back, &bytes[1..], rows, width, format, key);
            assert!(matches!(short, Err(Error::Packing(PackingError::Length { .. }))));
            let mut broken = numbers(31, rows * width);
            broken[5 * width + 3] = f32::NAN;
            self.backend.upload(&mut back, &broken).unwrap();
            let refused = self.backend.pack(&mut bytes, &back, rows, width, format, key);
            assert!(
                matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 5 }))),
                "{refused:?}"
            );
        }
    }
}

/// What a backend makes of all operations.
fn outcome<B: Backend>(backend: B) -> Outcome {
    let mut bench = Bench { backend, outcome: Vec::new() };
    bench.elementwise();
    bench.layers();
    bench.tokens();
    bench.boundary();
    bench.products();
    bench.attention();
    bench.outcome
}

/// Largest deviation, relative to the largest number.
fn deviation(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let largest = expected.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let apart = |(found, expected): (&f32, &f32)| (found - expected).abs();
    found.iter().zip(expected).map(apart).fold(0.0, f32::max) / largest.max(f32::MIN_POSITIVE)
}

fn check(profile: Profile, tolerance: impl Fn(&str) -> f32) {
    if let Err(reason) = device::cuda_report().usable(0) {
        println!("skipped: {reason}");
        return;
    }
    let found = outcome(Cuda::with_profile(0, profile).unwrap());
    for ((name, found), (_, expected)) in found.iter().zip(outcome(Cpu::new(1).unwrap())) {
        let (apart, most) = (deviation(found, &expected), tolerance(name));
        assert!(apart <= most, "{name}: {apart} from the CPU, {most} allowed");
    }
}

#[test]
fn the_reproducible_profile_has_the_bits_of_the_cpu() {
    check(Profile::Repro, |_| 0.0);
}

#[test]
fn the_fast_profile_is_as_close_as_bf16_lets_it_be() {
    check(Profile::Fast, |name| match name {
        // Each factor is off by up to 2^-9 of itself.
        name if name.starts_with("linear") => 1e-2,
        name if name.starts_with("attention") => 1e-2,
        _ => 0.0,
    });
}

#[test]
fn the_bench_itself_runs() {
    assert_eq!(outcome(Cpu::new(1).unwrap()), outcome(Cpu::new(2).unwrap()));
}
