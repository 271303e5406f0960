//! Each operation of a backend over several shapes, compared with the CPU backend.
//!
//! The tolerance stands beside each case; [`BITS`] demands equal bits.

use half::bf16;
use std::{collections::BTreeMap, fmt::Debug};
use swarmline_kernels::{
    AdamStep, AttentionShape, Backend, Cpu, CpuTensor, LinearShape, PackedFormat, RoundingKey, Write,
    random::{fill_normal, orthonormal_rows, uniform_u64},
};

/// Tolerance that demands equal bits.
pub(crate) const BITS: f64 = 0.0;

/// Numbers of a buffer behind those an operation works on, which it must not change.
const SPARE: usize = 3;

/// Largest differences, relative to `1 + |want|`, of operations in which a backend sums in an order of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    /// Products of factors that bf16 represents exactly, so that only the order of the sums differs.
    pub(crate) product: f64,
    /// The forward pass of attention.
    pub(crate) attention: f64,
    /// Both passes of attention for the head widths that tensor cores take.
    pub(crate) bf16_attention: f64,
}

impl Tolerance {
    /// No difference anywhere.
    pub(crate) const NONE: Self = Self { product: BITS, attention: BITS, bf16_attention: BITS };
}

/// The backend under test, the CPU backend beside it, and the largest difference per operation.
pub(crate) struct Conformance<'b, B> {
    backend: &'b mut B,
    cpu: Cpu,
    pub(crate) worst: BTreeMap<&'static str, f64>,
}

/// A tensor on both backends, with equal numbers.
struct Pair<T> {
    name: &'static str,
    len: usize,
    cpu: CpuTensor,
    other: T,
}

/// Near-normal numbers, different for every `stream`.
fn numbers(len: usize, stream: u64) -> Vec<f32> {
    let mut x = vec![0.0; len];
    fill_normal(&mut x, 0x7E57, stream, 1.0);
    x
}

/// The same, each rounded to bf16.
fn bf16_numbers(len: usize, stream: u64) -> Vec<f32> {
    numbers(len, stream).into_iter().map(|x| bf16::from_f32(x).to_f32()).collect()
}

/// Checks `got` against `want` and returns the largest difference.
#[track_caller]
fn compare(what: &str, case: &dyn Debug, got: &[f32], want: &[f32], tolerance: f64) -> f64 {
    assert_eq!(got.len(), want.len());
    let mut worst = 0.0_f64;
    for (i, (&got, &want)) in got.iter().zip(want).enumerate() {
        if got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan() {
            continue;
        }
        let error = (f64::from(got) - f64::from(want)).abs() / (1.0 + f64::from(want).abs());
        assert!(
            error <= tolerance && error > 0.0,
            "{what} {case:?}: number {i} is {got:e} instead of {want:e}"
        );
        worst = worst.max(error);
    }
    worst
}

impl<'b, B: Backend> Conformance<'b, B> {
    pub(crate) fn new(backend: &'b mut B) -> Self {
        Self { backend, cpu: Cpu::new(1).unwrap(), worst: BTreeMap::new() }
    }

    /// Every operation.
    pub(crate) fn run(&mut self, tolerance: Tolerance) {
        self.elementwise();
        self.sum_squares();
        self.products(tolerance.product);
        self.rmsnorm();
        self.attention(tolerance);
        self.swiglu();
        self.embedding();
        self.cross_entropy();
        self.anchor();
        self.boundary();
        self.packing();
        self.projected_packing();
        self.refusals();
        self.adam();
    }

    fn pair(&mut self, name: &'static str, numbers: Vec<f32>) -> Pair<B::Tensor> {
        let len = numbers.len();
        let mut numbers = numbers;
        numbers.extend([f32::from(7_u8); SPARE]);
        let mut other = self.backend.zeros(numbers.len()).unwrap();
        self.backend.upload(&mut other, &numbers).unwrap();
        Pair { name, len, cpu: numbers.into(), other }
    }

    fn bf16(&mut self, name: &'static str, len: usize, stream: u64) -> Pair<B::Tensor> {
        self.pair(name, bf16_numbers(len, stream))
    }

    fn random(&mut self, name: &'static str, len: usize, stream: u64) -> Pair<B::Tensor> {
        self.pair(name, numbers(len, stream))
    }

    fn ids(&mut self, ids: &[u32], vocab: usize) -> (swarmline_kernels::CpuIds, B::Ids) {
        (self.cpu.ids(ids, vocab).unwrap(), self.backend.ids(ids, vocab).unwrap())
    }

    #[track_caller]
    fn check(
        &mut self,
        operation: &'static str,
        case: &dyn Debug,
        outputs: &[&Pair<B::Tensor>],
        tolerance: f64,
    ) {
        for pair in outputs {
            let mut got = vec![0.0; pair.len + SPARE];
            self.backend.download(&mut got, &pair.other).unwrap();
            let what = format!("{operation}, {}", pair.name);
            let (got, spare) = got.split_at(pair.len);
            let error = compare(&what, case, got, &pair.cpu.as_slice()[..pair.len], tolerance);
            compare(&what, case, spare, &pair.cpu.as_slice()[pair.len..], BITS);
            let worst = self.worst.entry(operation).or_default();
            *worst = worst.max(error);
        }
    }

    fn elementwise(&mut self) {
        for len in [1, 255, 256, 1003] {
            let (mut x, mut y) = (self.random("x", len, 1), self.random("y", len, 2));
            self.cpu.add_scaled(&mut y.cpu, &x.cpu, -0.3, len).unwrap();
            self.backend.add_scaled(&mut y.other, &x.other, -0.3, len).unwrap();
            self.check("add_scaled", &len, &[&y], BITS);
            self.cpu.copy(&mut x.cpu, &y.cpu, len).unwrap();
            self.backend.copy(&mut x.other, &y.other, len).unwrap();
            self.check("copy", &len, &[&x], BITS);
            self.cpu.fill(&mut y.cpu, 1.5, len).unwrap();
            self.backend.fill(&mut y.other, 1.5, len).unwrap();
            self.check("fill", &len, &[&y], BITS);
        }
    }

    fn sum_squares(&mut self) {
        for len in [1, 15, 16, 1003, 16384, 16385, 300_001] {
            let x = self.random("x", len, 1);
            let want = self.cpu.sum_squares(&x.cpu, len).unwrap();
            let got = self.backend.sum_squares(&x.other, len).unwrap();
            assert_eq!(got.to_bits(), want.to_bits(), "sum_squares {len}: {got} instead of {want}");
        }
        let bad = self.pair("x", vec![1.0, f32::NAN, 1.0]);
        assert!(!self.backend.sum_squares(&bad.other, 3).unwrap().is_finite());
        self.worst.insert("sum_squares", 0.0);
    }

    fn products(&mut self, tolerance: f64) {
        let shapes =
            [(1, 1, 1), (1, 17, 5), (7, 33, 3), (65, 64, 63), (37, 300, 41), (3, 1, 90), (300, 19, 70)];
        for (rows, inputs, outputs) in shapes {
            for write in [Write::Set, Write::Add] {
                let shape = LinearShape { rows, inputs, outputs };
                let case = (shape, write);
                let (x, w) = (self.bf16("x", rows * inputs, 1), self.bf16("w", outputs * inputs, 2));
                let dy = self.bf16("dy", rows * outputs, 3);
                let mut y = self.random("y", rows * outputs, 4);
                self.cpu.linear(&mut y.cpu, &x.cpu, &w.cpu, shape, write).unwrap();
                self.backend.linear(&mut y.other, &x.other, &w.other, shape, write).unwrap();
                self.check("linear", &case, &[&y], tolerance);
                let mut dx = self.random("dx", rows * inputs, 5);
                self.cpu.linear_backward_input(&mut dx.cpu, &dy.cpu, &w.cpu, shape, write).unwrap();
                self.backend.linear_backward_input(&mut dx.other, &dy.other, &w.other, shape, write).unwrap();
                self.check("linear_backward_input", &case, &[&dx], tolerance);
                let mut dw = self.random("dw", outputs * inputs, 6);
                self.cpu.linear_backward_weight(&mut dw.cpu, &dy.cpu, &x.cpu, shape, write).unwrap();
                self.backend
                    .linear_backward_weight(&mut dw.other, &dy.other, &x.other, shape, write)
                    .unwrap();
                self.check("linear_backward_weight", &case, &[&dw], tolerance);
            }
        }
    }

    /// Products of single terms show how factors are rounded: to the nearest bf16, ties to even.
    pub(crate) fn factors_are_rounded(&mut self) {
        let rounded = |pair: &CpuTensor, len: usize| -> CpuTensor {
            let numbers = pair.as_slice()[..len].iter().map(|&x| bf16::from_f32(x).to_f32());
            numbers.collect::<Vec<_>>().into()
        };
        let (rows, outputs) = (37, 41);
        let shape = LinearShape { rows, inputs: 1, outputs };
        // Ties, to the lower and to the upper neighbour.
        let between = [0x3F80_8000, 0x3F81_8000, 0xBF80_8000].map(f32::from_bits);
        let special = [f32::MAX, 0.0, -0.0];
        let mut start = numbers(rows, 1);
        start[..3].copy_from_slice(&between);
        start[3..6].copy_from_slice(&special);
        let (x, w) = (self.pair("x", start), self.random("w", outputs, 2));
        let mut y = self.random("y", rows * outputs, 3);
        let (x_, w_) = (rounded(&x.cpu, rows), rounded(&w.cpu, outputs));
        self.cpu.linear(&mut y.cpu, &x_, &w_, shape, Write::Set).unwrap();
        self.backend.linear(&mut y.other, &x.other, &w.other, shape, Write::Set).unwrap();
        self.check("rounded factors", &shape, &[&y], BITS);
        // The same factors by way of their transposes.
        let shape = LinearShape { rows: 1, inputs: rows, outputs };
        self.cpu.linear_backward_weight(&mut y.cpu, &w_, &x_, shape, Write::Set).unwrap();
        self.backend.linear_backward_weight(&mut y.other, &w.other, &x.other, shape, Write::Set).unwrap();
        self.check("rounded factors, transposed", &shape, &[&y], BITS);
    }

    fn rmsnorm(&mut self) {
        for (rows, width) in [(1, 1), (3, 7), (9, 16), (8, 33), (65, 130), (130, 24)] {
            let case = (rows, width);
            let (x, gain) = (self.random("x", rows * width, 1), self.random("gain", width, 2));
            let dy = self.random("dy", rows * width, 3);
            let (mut y, mut rstd) = (self.random("y", rows * width, 4), self.random("rstd", rows, 5));
            self.cpu.rmsnorm(&mut y.cpu, &mut rstd.cpu, &x.cpu, &gain.cpu, rows, width, 1e-5).unwrap();
            self.backend
                .rmsnorm(&mut y.other, &mut rstd.other, &x.other, &gain.other, rows, width, 1e-5)
                .unwrap();
            self.check("rmsnorm", &case, &[&y, &rstd], BITS);
            self.cpu.rmsnorm_apply(&mut y.cpu, &dy.cpu, &gain.cpu, &rstd.cpu, rows, width).unwrap();
            self.backend
                .rmsnorm_apply(&mut y.other, &dy.other, &gain.other, &rstd.other, rows, width)
                .unwrap();
            self.check("rmsnorm_apply", &case, &[&y], BITS);
            let (mut dx, mut dgain) = (self.random("dx", rows * width, 6), self.random("dgain", width, 7));
            for write in [Write::Set, Write::Add] {
                let (dx_, dgain_) = (&mut dx.cpu, &mut dgain.cpu);
                self.cpu
                    .rmsnorm_backward(dx_, dgain_, &dy.cpu, &x.cpu, &gain.cpu, &rstd.cpu, rows, width, write)
                    .unwrap();
                let (dx_, dgain_) = (&mut dx.other, &mut dgain.other);
                let (dy, x, gain, rstd) = (&dy.other, &x.other, &gain.other, &rstd.other);
                self.backend.rmsnorm_backward(dx_, dgain_, dy, x, gain, rstd, rows, width, write).unwrap();
                self.check("rmsnorm_backward", &(case, write), &[&dx, &dgain], BITS);
            }
        }
    }

    fn attention(&mut self, tolerance: Tolerance) {
        let shapes = [
            (1, 1, 1, 1, 2, 1e4),
            (2, 7, 4, 2, 6, 1e4),
            (2, 7, 4, 2, 6, 5e5),
            (1, 16, 2, 2, 16, 1e4),
            (2, 17, 3, 1, 10, 5e5),
            (1, 43, 4, 2, 32, 1e4),
            (1, 33, 2, 1, 130, 1e4),
            (1, 1, 1, 1, 64, 1e4),
            (2, 67, 2, 1, 64, 1e4),
            (1, 130, 1, 1, 64, 5e5),
            (1, 65, 4, 2, 128, 1e4),
        ];
        for (batch, tokens, heads, kv_heads, head_width, theta) in shapes {
            let shape = AttentionShape { batch, tokens, heads, kv_heads, head_width, theta };
            let (forward, backward) = match head_width {
                64 | 128 => (tolerance.bf16_attention, tolerance.bf16_attention),
                _ => (tolerance.attention, BITS),
            };
            let [queries, keys, sums] = shape.lens();
            let q = self.random("q", queries, 1);
            let [k, v] = [("k", 2), ("v", 3)].map(|(name, stream)| self.random(name, keys, stream));
            let (mut out, mut lse) = (self.random("out", queries, 4), self.random("lse", sums, 5));
            self.cpu.attention(&mut out.cpu, &mut lse.cpu, &q.cpu, &k.cpu, &v.cpu, shape).unwrap();
            self.backend
                .attention(&mut out.other, &mut lse.other, &q.other, &k.other, &v.other, shape)
                .unwrap();
            self.check("attention", &shape, &[&out, &lse], forward);

            // From equal results of the forward pass, so that backward is judged alone.
            self.backend.upload(&mut out.other, out.cpu.as_slice()).unwrap();
            self.backend.upload(&mut lse.other, lse.cpu.as_slice()).unwrap();
            let dout = self.random("dout", queries, 6);
            let mut dq = self.random("dq", queries, 7);
            let [mut dk, mut dv] =
                [("dk", 8), ("dv", 9)].map(|(name, stream)| self.random(name, keys, stream));
            let (dq_, dk_, dv_) = (&mut dq.cpu, &mut dk.cpu, &mut dv.cpu);
            self.cpu
                .attention_backward(
                    dq_, dk_, dv_, &dout.cpu, &q.cpu, &k.cpu, &v.cpu, &out.cpu, &lse.cpu, shape,
                )
                .unwrap();
            let (dq_, dk_, dv_) = (&mut dq.other, &mut dk.other, &mut dv.other);
            let (q, k, v) = (&q.other, &k.other, &v.other);
            self.backend
                .attention_backward(dq_, dk_, dv_, &dout.other, q, k, v, &out.other, &lse.other, shape)
                .unwrap();
            self.check("attention_backward", &shape, &[&dq, &dk, &dv], backward);
        }
    }

    fn swiglu(&mut self) {
        for len in [1, 256, 1003] {
            let mut gates = numbers(len, 1);
            gates.iter_mut().zip([-200.0, -88.0, 88.0, 200.0]).for_each(|(x, y)| *x = y);
            let (gate, up) = (self.pair("gate", gates), self.random("up", len, 2));
            let (dh, mut h) = (self.random("dh", len, 3), self.random("h", len, 4));
            let (mut dgate, mut dup) = (self.random("dgate", len, 5), self.random("dup", len, 6));
            self.cpu.swiglu(&mut h.cpu, &gate.cpu, &up.cpu, len).unwrap();
            self.backend.swiglu(&mut h.other, &gate.other, &up.other, len).unwrap();
            self.check("swiglu", &len, &[&h], BITS);
            self.cpu.swiglu_backward(&mut dgate.cpu, &mut dup.cpu, &dh.cpu, &gate.cpu, &up.cpu, len).unwrap();
            self.backend
                .swiglu_backward(&mut dgate.other, &mut dup.other, &dh.other, &gate.other, &up.other, len)
                .unwrap();
            self.check("swiglu_backward", &len, &[&dgate, &dup], BITS);
        }
    }

    fn embedding(&mut self) {
        let vocab = 11;
        for (rows, width) in [(1, 1), (7, 5), (33, 16), (100, 130)] {
            let ids: Vec<u32> =
                (0..rows).map(|i| (uniform_u64(1, 0, i as u64) % vocab as u64) as u32).collect();
            let (cpu_ids, ids) = self.ids(&ids, vocab);
            let mut table = self.random("table", vocab * width, 1);
            let mut x = self.random("x", rows * width, 2);
            for write in [Write::Set, Write::Add] {
                // The spare numbers are no part of a table.
                self.cpu.embedding(&mut x.cpu, &cpu_ids, &table.cpu, width, write).unwrap();
                self.backend.embedding(&mut x.other, &ids, &table.other, width, write).unwrap();
                self.check("embedding", &(rows, width, write), &[&x], BITS);
            }
            self.cpu.embedding_backward(&mut table.cpu, &x.cpu, &cpu_ids, width).unwrap();
            self.backend.embedding_backward(&mut table.other, &x.other, &ids, width).unwrap();
            self.check("embedding_backward", &(rows, width), &[&table], BITS);
        }
    }

    fn cross_entropy(&mut self) {
        for (rows, vocab) in [(1, 1), (3, 7), (5, 16), (2, 255), (3, 1000)] {
            let targets: Vec<u32> = (0..rows).map(|i| ((i * 7919) % vocab) as u32).collect();
            let (cpu_ids, ids) = self.ids(&targets, vocab);
            let mut start = numbers(rows * vocab, 1);
            start[0] *= 1e3;
            let (mut logits, mut losses) = (self.pair("logits", start), self.random("losses", rows, 2));
            self.cpu.cross_entropy(&mut losses.cpu, &mut logits.cpu, &cpu_ids, vocab, 0.25).unwrap();
            self.backend.cross_entropy(&mut losses.other, &mut logits.other, &ids, vocab, 0.25).unwrap();
            self.check("cross_entropy", &(rows, vocab), &[&losses, &logits], BITS);
        }
    }

    fn anchor(&mut self) {
        for width in [1, 5, 31, 32, 130, 300] {
            let (cpu_ids, ids) = self.ids(&[3, 0, 3, 70_000], 70_001);
            let mut x = self.random("x", 4 * width, 1);
            self.cpu.anchor(&mut x.cpu, &cpu_ids, 1 << 40 | 5, width, 3.0).unwrap();
            self.backend.anchor(&mut x.other, &ids, 1 << 40 | 5, width, 3.0).unwrap();
            self.check("anchor", &width, &[&x], BITS);
        }
    }

    fn boundary(&mut self) {
        for (rows, width, code) in [(1, 1, 1), (9, 24, 5), (70, 300, 66)] {
            let case = (rows, width, code);
            let basis = self.pair("basis", orthonormal_rows(1, code, width));
            let (mut z, mut x) = (self.random("z", rows * code, 1), self.random("x", rows * width, 2));
            let anchor = self.random("anchor", rows * width, 3);
            self.cpu.reconstruct(&mut x.cpu, &z.cpu, &basis.cpu, &anchor.cpu, rows, width, code).unwrap();
            self.backend
                .reconstruct(&mut x.other, &z.other, &basis.other, &anchor.other, rows, width, code)
                .unwrap();
            self.check("reconstruct", &case, &[&x], BITS);
            for write in [Write::Set, Write::Add] {
                self.cpu.project(&mut z.cpu, &anchor.cpu, &basis.cpu, rows, width, code, write).unwrap();
                self.backend
                    .project(&mut z.other, &anchor.other, &basis.other, rows, width, code, write)
                    .unwrap();
                self.check("project", &(case, write), &[&z], BITS);
            }
        }
    }

    fn packing(&mut self) {
        for (rows, width) in [(1, 1), (4, 3), (3, 7), (5, 64), (2, 96), (3, 688), (2, 1024)] {
            for format in FORMATS {
                let mut start = numbers(rows * width, 1);
                // A row of zeros, where there is more than one.
                start[width..].iter_mut().take(width).for_each(|x| *x = 0.0);
                let x = self.pair("x", start);
                let (mut want, mut got) = (Vec::new(), Vec::new());
                self.cpu.pack(&mut want, &x.cpu, rows, width, format, KEY).unwrap();
                // Either of the two may be the first that needs room.
                let mut back = self.random("x", rows * width, 2);
                self.cpu.unpack(&mut back.cpu, &want, rows, width, format, KEY).unwrap();
                self.backend.unpack(&mut back.other, &want, rows, width, format, KEY).unwrap();
                self.check("unpack", &(rows, width, format), &[&back], BITS);
                self.backend.pack(&mut got, &x.other, rows, width, format, KEY).unwrap();
                assert_eq!(got, want, "pack {rows}x{width} {format:?}");
            }
        }
        self.worst.insert("pack", 0.0);
    }

    /// Against projection and packing one after the other.
    fn projected_packing(&mut self) {
        for (rows, width, code) in [(1, 1, 1), (3, 24, 5), (5, 300, 96), (2, 520, 260)] {
            let basis = self.pair("basis", orthonormal_rows(1, code, width));
            let (x, anchor) = (self.random("x", rows * width, 1), self.random("anchor", rows * width, 2));
            for format in FORMATS {
                let case = (rows, width, code, format);
                let (mut z, mut want, mut got) =
                    (CpuTensor::from(vec![0.0; rows * code]), Vec::new(), vec![7; 3]);
                self.cpu.project(&mut z, &x.cpu, &basis.cpu, rows, width, code, Write::Set).unwrap();
                self.cpu.pack(&mut want, &z, rows, code, format, KEY).unwrap();
                self.backend
                    .project_pack(&mut got, &x.other, &basis.other, rows, width, code, format, KEY)
                    .unwrap();
                assert_eq!(got, want, "project_pack {case:?}");
                let mut back = self.random("x", rows * width, 3);
                self.cpu.unpack(&mut z, &want, rows, code, format, KEY).unwrap();
                self.cpu.reconstruct(&mut back.cpu, &z, &basis.cpu, &anchor.cpu, rows, width, code).unwrap();
                let (back_, basis, anchor) = (&mut back.other, &basis.other, &anchor.other);
                self.backend
                    .unpack_reconstruct(back_, &want, basis, anchor, rows, width, code, format, KEY)
                    .unwrap();
                self.check("unpack_reconstruct", &case, &[&back], BITS);
            }
        }
        self.worst.insert("project_pack", 0.0);
    }

    /// A tensor that cannot be packed or unpacked is refused for the same reason, with the same row.
    fn refusals(&mut self) {
        let (rows, width) = (4, 10);
        let bads = [(29, f32::NAN), (0, f32::INFINITY), (15, f32::MAX)];
        let basis = self.pair("basis", orthonormal_rows(1, 4, width));
        for chosen in [&bads[..1], &bads[..2], &bads[2..], &bads[..]] {
            let mut start = numbers(rows * width, 1);
            chosen.iter().for_each(|&(i, bad)| start[i] = bad);
            let x = self.pair("x", start);
            for format in FORMATS {
                let (mut want, mut got) = (Vec::new(), Vec::new());
                let wanted = self.cpu.pack(&mut want, &x.cpu, rows, width, format, KEY);
                let refused = self.backend.pack(&mut got, &x.other, rows, width, format, KEY);
                assert_eq!(format!("{wanted:?}"), format!("{refused:?}"), "{chosen:?} {format:?}");
                let wanted =
                    self.cpu.project_pack(&mut want, &x.cpu, &basis.cpu, rows, width, 4, format, KEY);
                let refused =
                    self.backend.project_pack(&mut got, &x.other, &basis.other, rows, width, 4, format, KEY);
                assert_eq!(format!("{wanted:?}"), format!("{refused:?}"), "{chosen:?} {format:?}");
            }
        }
        for format in FORMATS {
            let bytes = vec![0xFF; format.packed_len(rows, width).unwrap()];
            for len in [bytes.len(), bytes.len() - 1] {
                let mut x = self.random("x", rows * width, 1);
                let wanted = self.cpu.unpack(&mut x.cpu, &bytes[..len], rows, width, format, KEY);
                let refused = self.backend.unpack(&mut x.other, &bytes[..len], rows, width, format, KEY);
                assert_eq!(format!("{wanted:?}"), format!("{refused:?}"), "{format:?} {len}");
            }
            let bytes = vec![0xFF; format.packed_len(rows, 4).unwrap()];
            for len in [bytes.len(), bytes.len() - 1] {
                let (bytes, mut x) = (&bytes[..len], self.random("x", rows * width, 1));
                let anchor = self.random("anchor", rows * width, 2);
                let (x_, basis_, anchor_) = (&mut x.cpu, &basis.cpu, &anchor.cpu);
                let wanted =
                    self.cpu.unpack_reconstruct(x_, bytes, basis_, anchor_, rows, width, 4, format, KEY);
                let (x_, basis_, anchor_) = (&mut x.other, &basis.other, &anchor.other);
                let refused =
                    self.backend.unpack_reconstruct(x_, bytes, basis_, anchor_, rows, width, 4, format, KEY);
                assert_eq!(format!("{wanted:?}"), format!("{refused:?}"), "{format:?} {len}");
            }
        }
    }

    fn adam(&mut self) {
        let step = AdamStep {
            beta1: 0.9,
            beta2: 0.999,
            bias_correction2: 0.002,
            epsilon: 1e-8,
            gradient_scale: 0.5,
            decay: 1e-3,
            gradient_rate: 2e-3,
            momentum_rate: 1e-2,
        };
        for len in [1, 256, 1003] {
            let (mut w, mut m) = (self.random("w", len, 1), self.random("m", len, 2));
            let mut v = self.pair("v", numbers(len, 3).iter().map(|x| x * x).collect());
            let g = self.random("g", len, 4);
            self.cpu.adam_update(&mut w.cpu, &mut m.cpu, &mut v.cpu, &g.cpu, len, step).unwrap();
            self.backend.adam_update(&mut w.other, &mut m.other, &mut v.other, &g.other, len, step).unwrap();
            self.check("adam_update", &len, &[&w, &m, &v], BITS);
        }
    }
}

const KEY: RoundingKey = RoundingKey { run: 3, tensor: 1 << 40 | 9 };
const FORMATS: [PackedFormat; 4] =
    [PackedFormat::F32, PackedFormat::Bf16, PackedFormat::Q8, PackedFormat::Q4];
