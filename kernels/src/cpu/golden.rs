//! A hash of the bits of every operation: a change that is not meant to change results must keep it.
//!
//! Each case is one operation on seeded numbers, at sizes that fill blocks and leave remainders. The tables lie
//! beside this file; products have one of their own. After a change that is meant to change results,
//! `SWARMLINE_WRITE_GOLDEN=1 cargo test -p swarmline-kernels golden` writes them again.

use super::{
    Cpu, CpuIds, CpuTensor, Profile,
    check::{configurations, numbers, tensor},
};
use crate::{AdamStep, AttentionShape, Backend, LinearShape, PackedFormat, RoundingKey, Write, random};
use std::{env, fmt::Write as _, fs, path::Path, process::Command};

/// Environment variable that makes the tests write the tables before they compare.
const REWRITE: &str = "SWARMLINE_WRITE_GOLDEN";

/// Runs an operation and returns the tensors it wrote.
type Run = fn(&mut Cpu) -> Vec<CpuTensor>;

const ROWS: usize = 150;
const WIDTH: usize = 75;
const LEN: usize = 2 * (1 << 14) + 77;
const VOCAB: usize = 90;

const OPERATIONS: &[(&str, Run)] = &[
    ("numbers", |_| vec![tensor(LEN, 1)]),
    ("orthonormal_rows", |_| vec![random::orthonormal_rows(3, 20, WIDTH).into()]),
    ("fill", |cpu| with(tensor(LEN, 1), |x| cpu.fill(x, 0.3, LEN - 1))),
    ("copy", |cpu| with(tensor(LEN, 1), |y| cpu.copy(y, &tensor(LEN, 2), LEN - 1))),
    ("add_scaled", |cpu| with(tensor(LEN, 1), |y| cpu.add_scaled(y, &tensor(LEN, 2), 0.3, LEN))),
    ("sum_squares", sum_squares),
    ("rmsnorm", rmsnorm),
    ("rmsnorm_backward", |cpu| rmsnorm_backward(cpu, Write::Set)),
    ("rmsnorm_backward/add", |cpu| rmsnorm_backward(cpu, Write::Add)),
    ("swiglu", |cpu| with(tensor(LEN, 1), |h| cpu.swiglu(h, &wide_gate(), &tensor(LEN, 3), LEN))),
    ("swiglu_backward", swiglu_backward),
    ("embedding", |cpu| embedding(cpu, Write::Set)),
    ("embedding/add", |cpu| embedding(cpu, Write::Add)),
    ("embedding_backward", embedding_backward),
    ("cross_entropy", cross_entropy),
    ("anchor", anchor),
    ("pack/f32", |cpu| pack(cpu, PackedFormat::F32)),
    ("pack/bf16", |cpu| pack(cpu, PackedFormat::Bf16)),
    ("pack/q8", |cpu| pack(cpu, PackedFormat::Q8)),
    ("pack/q4", |cpu| pack(cpu, PackedFormat::Q4)),
    ("adam_update/adamw", |cpu| adam_update(cpu, 0.0)),
    ("adam_update/nadamw", |cpu| adam_update(cpu, 3e-4)),
];

const PRODUCTS: &[(&str, Run)] = &[
    ("linear", |cpu| linear(cpu, Write::Set)),
    ("linear/add", |cpu| linear(cpu, Write::Add)),
    ("project", |cpu| project(cpu, Write::Set)),
    ("project/add", |cpu| project(cpu, Write::Add)),
    ("reconstruct", reconstruct),
    ("project_pack/f32", |cpu| project_pack(cpu, PackedFormat::F32)),
    ("project_pack/bf16", |cpu| project_pack(cpu, PackedFormat::Bf16)),
    ("project_pack/q8", |cpu| project_pack(cpu, PackedFormat::Q8)),
    ("project_pack/q4", |cpu| project_pack(cpu, PackedFormat::Q4)),
    ("attention", attention),
];

#[test]
fn operations_keep_their_bits() {
    check("operations.txt", OPERATIONS);
}

#[test]
fn products_keep_their_bits() {
    check("products.txt", PRODUCTS);
}

#[test]
fn the_environment_does_not_show() {
    if env::var_os("SWARMLINE_ISA").is_some() || env::var_os(REWRITE).is_some() {
        return;
    }
    for isa in ["scalar", "avx2"] {
        let outcome = Command::new(env::current_exe().unwrap())
            .args(["keep_their_bits", "the_environment_is_obeyed"])
            .env("SWARMLINE_ISA", isa)
            .output()
            .unwrap();
        assert!(outcome.status.success(), "{isa}: {}", String::from_utf8_lossy(&outcome.stdout));
    }
}

/// Every case has the bits of its line, on any number of threads and any instruction set.
fn check(file: &str, cases: &[(&str, Run)]) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/cpu/golden").join(file);
    if env::var_os(REWRITE).is_some() {
        let mut table = String::new();
        for (name, run) in cases {
            writeln!(table, "{name} {:016x}", digest(&run(&mut Cpu::new(1).unwrap()))).unwrap();
        }
        fs::write(&path, table).unwrap();
    }
    let table = fs::read_to_string(&path).unwrap();
    let expected: Vec<(&str, &str)> = table.lines().filter_map(|line| line.split_once(' ')).collect();
    let names = |pairs: &[(&str, &str)]| -> Vec<String> { pairs.iter().map(|pair| pair.0.into()).collect() };
    assert_eq!(names(&expected), cases.iter().map(|case| case.0).collect::<Vec<_>>());
    for (threads, isa) in configurations() {
        let mut cpu = Cpu::on(threads, isa, Profile::Repro).unwrap();
        for ((name, expected), (_, run)) in expected.iter().zip(cases) {
            let found = format!("{:016x}", digest(&run(&mut cpu)));
            assert_eq!(&found, expected, "{name} on {threads} threads, {isa:?}");
        }
    }
}

/// FNV-1a over the bits of all tensors.
fn digest(tensors: &[CpuTensor]) -> u64 {
    let bytes = tensors.iter().flat_map(|x| x.as_slice()).flat_map(|x| x.to_bits().to_le_bytes());
    bytes.fold(0xCBF2_9CE4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

fn with(mut x: CpuTensor, write: impl FnOnce(&mut CpuTensor) -> crate::Result<()>) -> Vec<CpuTensor> {
    write(&mut x).unwrap();
    vec![x]
}

/// Gates from where the sigmoid is 0 to where it is 1.
fn wide_gate() -> CpuTensor {
    numbers(LEN, 2).iter().map(|x| 25.0 * x).collect::<Vec<_>>().into()
}

/// Token ids with repetitions.
fn ids(cpu: &mut Cpu) -> CpuIds {
    let ids: Vec<u32> =
        (0..ROWS as u64).map(|i| (random::uniform_u64(1, 1, i) % VOCAB as u64) as u32).collect();
    cpu.ids(&ids, VOCAB).unwrap()
}

fn sum_squares(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let bits = cpu.sum_squares(&tensor(LEN, 1), LEN).unwrap().to_bits();
    vec![vec![f32::from_bits(bits as u32), f32::from_bits((bits >> 32) as u32)].into()]
}

fn rmsnorm(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let (x, gain) = (tensor(ROWS * WIDTH, 1), tensor(WIDTH, 2));
    let [mut y, mut again] = [3, 4].map(|stream| tensor(ROWS * WIDTH, stream));
    let mut rstd = tensor(ROWS, 5);
    cpu.rmsnorm(&mut y, &mut rstd, &x, &gain, ROWS, WIDTH, 1e-5).unwrap();
    cpu.rmsnorm_apply(&mut again, &x, &gain, &rstd, ROWS, WIDTH).unwrap();
    assert_eq!(y, again);
    vec![y, rstd]
}

fn rmsnorm_backward(cpu: &mut Cpu, write: Write) -> Vec<CpuTensor> {
    let [dy, x, mut dx] = [1, 2, 3].map(|stream| tensor(ROWS * WIDTH, stream));
    let (gain, mut dgain, rstd) = (tensor(WIDTH, 4), tensor(WIDTH, 5), tensor(ROWS, 6));
    cpu.rmsnorm_backward(&mut dx, &mut dgain, &dy, &x, &gain, &rstd, ROWS, WIDTH, write).unwrap();
    vec![dx, dgain]
}

fn swiglu_backward(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let [mut dgate, mut dup, dh, up] = [1, 3, 4, 5].map(|stream| tensor(LEN, stream));
    cpu.swiglu_backward(&mut dgate, &mut dup, &dh, &wide_gate(), &up, LEN).unwrap();
    vec![dgate, dup]
}

fn embedding(cpu: &mut Cpu, write: Write) -> Vec<CpuTensor> {
    let (ids, table) = (ids(cpu), tensor(VOCAB * WIDTH, 1));
    with(tensor(ROWS * WIDTH, 2), |x| cpu.embedding(x, &ids, &table, WIDTH, write))
}

fn embedding_backward(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let (ids, dx) = (ids(cpu), tensor(ROWS * WIDTH, 1));
    with(tensor(VOCAB * WIDTH, 2), |dtable| cpu.embedding_backward(dtable, &dx, &ids, WIDTH))
}

fn cross_entropy(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let (targets, mut losses, mut logits) = (ids(cpu), tensor(ROWS, 1), tensor(ROWS * VOCAB, 2));
    logits.as_mut_slice().iter_mut().for_each(|x| *x *= 5.0);
    cpu.cross_entropy(&mut losses, &mut logits, &targets, VOCAB, 0.01).unwrap();
    vec![losses, logits]
}

fn anchor(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let ids = ids(cpu);
    with(tensor(ROWS * WIDTH, 1), |x| cpu.anchor(x, &ids, 1 << 40, WIDTH, 0.02))
}

/// The packed bytes, and the unpacked numbers.
fn pack(cpu: &mut Cpu, format: PackedFormat) -> Vec<CpuTensor> {
    const EVEN: usize = 48;
    let key = RoundingKey { run: 7, tensor: 1 << 33 };
    let mut all = Vec::new();
    for width in [EVEN, WIDTH] {
        let (mut bytes, mut back) = (Vec::new(), tensor(ROWS * width, 1));
        cpu.pack(&mut bytes, &tensor(ROWS * width, 2), ROWS, width, format, key).unwrap();
        cpu.unpack(&mut back, &bytes, ROWS, width, format, key).unwrap();
        all.extend([bytes.into_iter().map(f32::from).collect::<Vec<_>>().into(), back]);
    }
    all
}

fn adam_update(cpu: &mut Cpu, gradient_rate: f32) -> Vec<CpuTensor> {
    let step = AdamStep {
        beta1: 0.99,
        beta2: 0.999,
        bias_correction2: 0.003,
        epsilon: 1e-8,
        gradient_scale: 0.7,
        decay: 3e-5,
        gradient_rate,
        momentum_rate: 1e-3,
    };
    let [mut w, mut m, mut v, g] = [1, 2, 3, 4].map(|stream| tensor(LEN, stream));
    v.as_mut_slice().iter_mut().for_each(|x| *x *= *x);
    cpu.adam_update(&mut w, &mut m, &mut v, &g, LEN, step).unwrap();
    vec![w, m, v]
}

/// `y`, `dx` and `dw`.
fn linear(cpu: &mut Cpu, write: Write) -> Vec<CpuTensor> {
    let mut all = Vec::new();
    for (rows, inputs, outputs) in [(1, 5, 3), (70, 300, 41), (515, 64, 128)] {
        let shape = LinearShape { rows, inputs, outputs };
        let [x, mut dx] = [1, 2].map(|stream| tensor(rows * inputs, stream));
        let [w, mut dw] = [3, 4].map(|stream| tensor(outputs * inputs, stream));
        let [dy, mut y] = [5, 6].map(|stream| tensor(rows * outputs, stream));
        cpu.linear(&mut y, &x, &w, shape, write).unwrap();
        cpu.linear_backward_input(&mut dx, &dy, &w, shape, write).unwrap();
        cpu.linear_backward_weight(&mut dw, &dy, &x, shape, write).unwrap();
        all.extend([y, dx, dw]);
    }
    all
}

const CODE: usize = 12;

fn project(cpu: &mut Cpu, write: Write) -> Vec<CpuTensor> {
    let (x, basis) = (tensor(ROWS * WIDTH, 1), tensor(CODE * WIDTH, 2));
    with(tensor(ROWS * CODE, 3), |z| cpu.project(z, &x, &basis, ROWS, WIDTH, CODE, write))
}

fn reconstruct(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let (z, basis, anchor) = (tensor(ROWS * CODE, 1), tensor(CODE * WIDTH, 2), tensor(ROWS * WIDTH, 3));
    with(tensor(ROWS * WIDTH, 4), |x| cpu.reconstruct(x, &z, &basis, &anchor, ROWS, WIDTH, CODE))
}

/// The bytes, and the numbers they are lifted to.
fn project_pack(cpu: &mut Cpu, format: PackedFormat) -> Vec<CpuTensor> {
    let (x, basis, anchor) = (tensor(ROWS * WIDTH, 1), tensor(CODE * WIDTH, 2), tensor(ROWS * WIDTH, 3));
    let (key, mut bytes) = (RoundingKey { run: 7, tensor: 1 << 33 }, Vec::new());
    cpu.project_pack(&mut bytes, &x, &basis, ROWS, WIDTH, CODE, format, key).unwrap();
    let mut back = with(tensor(ROWS * WIDTH, 4), |x| {
        cpu.unpack_reconstruct(x, &bytes, &basis, &anchor, ROWS, WIDTH, CODE, format, key)
    });
    back.push(bytes.into_iter().map(f32::from).collect::<Vec<_>>().into());
    back
}

/// Outputs of the forward and the backward pass.
fn attention(cpu: &mut Cpu) -> Vec<CpuTensor> {
    let mut all = Vec::new();
    for (tokens, heads, kv_heads, head_width) in [(37, 4, 2, 10), (128, 2, 2, 32)] {
        let shape = AttentionShape { batch: 2, tokens, heads, kv_heads, head_width, theta: 1e4 };
        let rows = 2 * tokens;
        let [q, dout, mut out, mut dq] = [1, 2, 3, 4].map(|s| tensor(rows * heads * head_width, s));
        let [k, v, mut dk, mut dv] = [5, 6, 7, 8].map(|s| tensor(rows * kv_heads * head_width, s));
        let mut lse = tensor(rows * heads, 9);
        cpu.attention(&mut out, &mut lse, &q, &k, &v, shape).unwrap();
        cpu.attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape).unwrap();
        all.extend([out, lse, dq, dk, dv]);
    }
    all
}
