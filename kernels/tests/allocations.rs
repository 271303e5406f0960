//! On one thread, operations that have run once allocate no more: they borrow scratch, which is kept.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use allocation_counter::measure;
use swarmline_kernels::{
    AdamStep, AttentionShape, Backend, Cpu, CpuTensor, PackedFormat, RoundingKey, Write, random,
};

const TOKENS: usize = 64;
const ROWS: usize = 4 * TOKENS;
const WIDTH: usize = 64;
const VOCAB: usize = 100;
const CODE: usize = 16;

fn tensor(len: usize) -> CpuTensor {
    let mut x = vec![0.0; len];
    random::fill_normal(&mut x, 1, 1, 1.0);
    x.into()
}

#[test]
fn operations_allocate_once() {
    let mut cpu = Cpu::new(1).unwrap();
    let ids: Vec<u32> = (0..ROWS as u32).map(|i| i % VOCAB as u32).collect();
    let ids = cpu.ids(&ids, VOCAB).unwrap();
    let shape =
        AttentionShape { batch: 4, tokens: TOKENS, heads: 4, kv_heads: 2, head_width: 16, theta: 1e4 };
    let key = RoundingKey { run: 1, tensor: 2 };
    let step = AdamStep {
        beta1: 0.9,
        beta2: 0.99,
        bias_correction2: 0.1,
        epsilon: 1e-8,
        gradient_scale: 1.0,
        decay: 0.0,
        gradient_rate: 0.0,
        momentum_rate: 1e-3,
    };
    let [mut a, mut b, mut c, mut d, mut e] = [(); 5].map(|()| tensor(ROWS * VOCAB));
    let (x, mut small, mut bytes) = (tensor(ROWS * VOCAB), tensor(ROWS * 4), Vec::new());
    let mut run = || {
        cpu.attention(&mut a, &mut small, &x, &x, &x, shape).unwrap();
        cpu.attention_backward(&mut b, &mut c, &mut d, &x, &x, &x, &x, &a, &small, shape).unwrap();
        cpu.rmsnorm(&mut a, &mut small, &x, &x, ROWS, WIDTH, 1e-5).unwrap();
        cpu.rmsnorm_backward(&mut a, &mut b, &x, &x, &x, &small, ROWS, WIDTH, Write::Set).unwrap();
        cpu.swiglu_backward(&mut a, &mut b, &x, &x, &x, ROWS * WIDTH).unwrap();
        cpu.embedding(&mut a, &ids, &x, WIDTH, Write::Set).unwrap();
        cpu.embedding_backward(&mut a, &x, &ids, WIDTH).unwrap();
        cpu.cross_entropy(&mut small, &mut e, &ids, VOCAB, 0.1).unwrap();
        cpu.anchor(&mut a, &ids, 1, WIDTH, 1.0).unwrap();
        for format in [PackedFormat::F32, PackedFormat::Bf16, PackedFormat::Q8, PackedFormat::Q4] {
            cpu.pack(&mut bytes, &x, ROWS, WIDTH, format, key).unwrap();
            cpu.unpack(&mut a, &bytes, ROWS, WIDTH, format, key).unwrap();
            cpu.project_pack(&mut bytes, &x, &x, ROWS, WIDTH, CODE, format, key).unwrap();
            cpu.unpack_reconstruct(&mut a, &bytes, &x, &x, ROWS, WIDTH, CODE, format, key).unwrap();
        }
        cpu.adam_update(&mut a, &mut b, &mut c, &x, ROWS * WIDTH, step).unwrap();
        cpu.sum_squares(&x, ROWS * WIDTH).unwrap();
    };
    run();
    assert_eq!(measure(run).bytes_total, 0, "bytes asked for by operations that have run before");
}
