//! Times every operation at the shapes of configuration `s` (width 256, 8 heads, feed-forward 688, 16
//! sequences of 128 tokens, byte vocabulary) on one thread.
//!
//! Products report floating-point operations as elements, so `Gelem/s` reads as GFLOP/s; all others report the
//! bytes they must read and write.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use std::{hint::black_box, time::Duration};
use swarmline_kernels::{
    AdamStep, AttentionShape, Backend, Cpu, CpuIds, CpuTensor, LinearShape, PackedFormat, RoundingKey, Write,
    random,
};

const BATCH: usize = 16;
const TOKENS: usize = 128;
const ROWS: usize = BATCH * TOKENS;
const WIDTH: usize = 256;
const HEADS: usize = 8;
const HIDDEN: usize = 688;
const VOCAB: usize = 256;
const CODE: usize = WIDTH / 8;
/// Parameters of one block of the model.
const PARAMETERS: usize = 4 * WIDTH * WIDTH + 3 * WIDTH * HIDDEN + 2 * WIDTH;
const KEY: RoundingKey = RoundingKey { run: 1, tensor: 2 };

fn numbers(len: usize, stream: u64) -> CpuTensor {
    let mut x = vec![0.0; len];
    random::fill_normal(&mut x, 1, stream, 0.5);
    x.into()
}

fn one_thread() -> Cpu {
    Cpu::new(1).expect("one thread needs no pool")
}

fn ids(cpu: &mut Cpu) -> CpuIds {
    let ids: Vec<u32> =
        (0..ROWS as u64).map(|i| (random::uniform_u64(1, 9, i) % VOCAB as u64) as u32).collect();
    cpu.ids(&ids, VOCAB).expect("ids lie in the vocabulary")
}

fn time(c: &mut Criterion, name: &str, throughput: Throughput, mut run: impl FnMut()) {
    let mut group = c.benchmark_group(name);
    group.throughput(throughput);
    group.bench_function("s", |b| b.iter(&mut run));
    group.finish();
}

/// Throughput of a pass over `count` f32.
fn moved(count: usize) -> Throughput {
    Throughput::Bytes(4 * count as u64)
}

fn products(c: &mut Criterion) {
    for (name, inputs, outputs) in
        [("attention", WIDTH, WIDTH), ("gate", WIDTH, HIDDEN), ("down", HIDDEN, WIDTH)]
    {
        let shape = LinearShape { rows: ROWS, inputs, outputs };
        let flops = Throughput::Elements((2 * ROWS * inputs * outputs) as u64);
        let (mut x, mut w, mut y) =
            (numbers(ROWS * inputs, 1), numbers(inputs * outputs, 2), numbers(ROWS * outputs, 3));
        let mut cpu = one_thread();
        time(c, &format!("linear/{name}"), flops.clone(), || {
            let _ = black_box(cpu.linear(&mut y, &x, &w, shape, Write::Set));
        });
        time(c, &format!("linear_backward_input/{name}"), flops.clone(), || {
            let _ = black_box(cpu.linear_backward_input(&mut x, &y, &w, shape, Write::Set));
        });
        time(c, &format!("linear_backward_weight/{name}"), flops, || {
            let _ = black_box(cpu.linear_backward_weight(&mut w, &y, &x, shape, Write::Set));
        });
    }
}

fn attention(c: &mut Criterion) {
    let head_width = WIDTH / HEADS;
    let shape = AttentionShape {
        batch: BATCH,
        tokens: TOKENS,
        heads: HEADS,
        kv_heads: HEADS,
        head_width,
        theta: 10_000.0,
    };
    // Half of two products of T x T x e a head, as the other half is masked.
    let flops = (2 * BATCH * HEADS * TOKENS * TOKENS * head_width) as u64;
    let [q, k, v, dout] = [1, 2, 3, 4].map(|stream| numbers(ROWS * WIDTH, stream));
    let [mut out, mut dq, mut dk, mut dv] = [5, 6, 7, 8].map(|stream| numbers(ROWS * WIDTH, stream));
    let mut lse = numbers(ROWS * HEADS, 9);
    let mut cpu = one_thread();
    time(c, "attention", Throughput::Elements(flops), || {
        let _ = black_box(cpu.attention(&mut out, &mut lse, &q, &k, &v, shape));
    });
    time(c, "attention_backward", Throughput::Elements(flops * 5 / 2), || {
        let done = cpu.attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape);
        let _ = black_box(done);
    });
}

fn layers(c: &mut Criterion) {
    let len = ROWS * WIDTH;
    let (x, gain, dy) = (numbers(len, 1), numbers(WIDTH, 2), numbers(len, 3));
    let (mut y, mut rstd, mut dgain) = (numbers(len, 4), numbers(ROWS, 5), numbers(WIDTH, 6));
    let mut cpu = one_thread();
    time(c, "rmsnorm", moved(2 * len), || {
        let _ = black_box(cpu.rmsnorm(&mut y, &mut rstd, &x, &gain, ROWS, WIDTH, 1e-5));
    });
    time(c, "rmsnorm_apply", moved(2 * len), || {
        let _ = black_box(cpu.rmsnorm_apply(&mut y, &x, &gain, &rstd, ROWS, WIDTH));
    });
    time(c, "rmsnorm_backward", moved(4 * len), || {
        let write = Write::Add;
        let done = cpu.rmsnorm_backward(&mut y, &mut dgain, &dy, &x, &gain, &rstd, ROWS, WIDTH, write);
        let _ = black_box(done);
    });
    let len = ROWS * HIDDEN;
    let [gate, up, dh] = [1, 2, 3].map(|stream| numbers(len, stream));
    let [mut h, mut dgate, mut dup] = [4, 5, 6].map(|stream| numbers(len, stream));
    time(c, "swiglu", moved(3 * len), || {
        let _ = black_box(cpu.swiglu(&mut h, &gate, &up, len));
    });
    time(c, "swiglu_backward", moved(5 * len), || {
        let _ = black_box(cpu.swiglu_backward(&mut dgate, &mut dup, &dh, &gate, &up, len));
    });
}

fn tokens(c: &mut Criterion) {
    let mut cpu = one_thread();
    let ids = ids(&mut cpu);
    let (mut x, mut table) = (numbers(ROWS * WIDTH, 1), numbers(VOCAB * WIDTH, 2));
    time(c, "embedding", moved(2 * ROWS * WIDTH), || {
        let _ = black_box(cpu.embedding(&mut x, &ids, &table, WIDTH, Write::Set));
    });
    time(c, "embedding_backward", moved(3 * ROWS * WIDTH), || {
        let _ = black_box(cpu.embedding_backward(&mut table, &x, &ids, WIDTH));
    });
    let (mut losses, mut logits) = (numbers(ROWS, 1), numbers(ROWS * VOCAB, 2));
    time(c, "cross_entropy", moved(2 * ROWS * VOCAB), || {
        let _ = black_box(cpu.cross_entropy(&mut losses, &mut logits, &ids, VOCAB, 1.0));
    });
    time(c, "anchor", moved(ROWS * WIDTH), || {
        let _ = black_box(cpu.anchor(&mut x, &ids, 1, WIDTH, 1.0));
    });
}

fn boundary(c: &mut Criterion) {
    let mut cpu = one_thread();
    let (mut x, mut z) = (numbers(ROWS * WIDTH, 1), numbers(ROWS * CODE, 2));
    let basis = random::orthonormal_rows(1, CODE, WIDTH).into();
    let flops = Throughput::Elements((2 * ROWS * WIDTH * CODE) as u64);
    time(c, "project", flops.clone(), || {
        let _ = black_box(cpu.project(&mut z, &x, &basis, ROWS, WIDTH, CODE, Write::Set));
    });
    let anchor = numbers(ROWS * WIDTH, 3);
    time(c, "reconstruct", flops, || {
        let _ = black_box(cpu.reconstruct(&mut x, &z, &basis, &anchor, ROWS, WIDTH, CODE));
    });
    for format in [PackedFormat::F32, PackedFormat::Bf16, PackedFormat::Q8, PackedFormat::Q4] {
        let mut bytes = Vec::new();
        let x = numbers(ROWS * WIDTH, 1);
        time(c, &format!("pack/{format:?}"), moved(ROWS * WIDTH), || {
            let _ = black_box(cpu.pack(&mut bytes, &x, ROWS, WIDTH, format, KEY));
        });
        let mut back = numbers(ROWS * WIDTH, 1);
        time(c, &format!("unpack/{format:?}"), moved(ROWS * WIDTH), || {
            let _ = black_box(cpu.unpack(&mut back, &bytes, ROWS, WIDTH, format, KEY));
        });
    }
}

fn optimizer(c: &mut Criterion) {
    let mut cpu = one_thread();
    let [mut w, mut m, mut v, g] = [1, 2, 3, 4].map(|stream| numbers(PARAMETERS, stream));
    v.as_mut_slice().iter_mut().for_each(|x| *x *= *x);
    let step = AdamStep {
        beta1: 0.9,
        beta2: 0.999,
        bias_correction2: 0.5,
        epsilon: 1e-8,
        gradient_scale: 0.5,
        decay: 1e-4,
        gradient_rate: 1e-4,
        momentum_rate: 1e-3,
    };
    time(c, "adam_update", moved(7 * PARAMETERS), || {
        let _ = black_box(cpu.adam_update(&mut w, &mut m, &mut v, &g, PARAMETERS, step));
    });
    time(c, "add_scaled", moved(3 * PARAMETERS), || {
        let _ = black_box(cpu.add_scaled(&mut w, &g, 1e-3, PARAMETERS));
    });
    time(c, "sum_squares", moved(PARAMETERS), || {
        let _ = black_box(cpu.sum_squares(&g, PARAMETERS));
    });
}

criterion_group! {
    name = ops;
    config = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(50))
        .measurement_time(Duration::from_millis(300));
    targets = products, attention, layers, tokens, boundary, optimizer
}
criterion_main!(ops);
