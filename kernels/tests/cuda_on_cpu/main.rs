//! The CUDA kernels, run on the CPU and compared with the CPU backend.
//!
//! The unchanged sources of the kernels are compiled by a C++ compiler with `kernels/shim`, which runs the threads of
//! a block in turns, under the address sanitizer. Not executed here: the `mma.sync` instruction of `swl_product_bf16`,
//! `swl_attention_bf16_*` and `swl_attention_backward_*_bf16_*`, the `ldmatrix` of the latter (their scalar twins are),
//! and what only real concurrency shows.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on should say where")]

mod conformance;
mod driver;
mod emulated;

use conformance::{BITS, Tolerance, Trial, compare, numbers};
use driver::{Arg, Driver, Launch, input, int, out};
use emulated::{Attention, Emulated};
use half::bf16;
use swarmline_kernels::{AttentionShape, Backend, Cpu, CpuTensor, LinearShape, Write};

/// Terms summed from zero before they are added to the result of a product.
const DEPTH: usize = 256;

#[test]
fn kernels_do_what_the_cpu_does() {
    let Some(driver) = Driver::start() else { return };
    let mut emulated = Emulated { driver, attention: Attention::Exact };
    // The order of the sums is the CPU's.
    let exact = Tolerance { product: BITS, attention: BITS };
    let mut trial = Trial::new(&mut emulated);
    trial.run(exact);
    report("exact attention", &trial.worst);

    emulated.attention = Attention::Online;
    let mut trial = Trial::new(&mut emulated);
    // Sums over 43 keys in another order, exponentials of 2 ulp.
    trial.run(Tolerance { attention: 1e-6, ..exact });
    report("online attention", &trial.worst);

    products_have_the_fixed_order(&mut emulated);
    bf16_products_are_close(&mut emulated);
    bf16_attention_is_close(&mut emulated);
    bf16_attention_backward_is_close(&mut emulated);
    assert_eq!(emulated.driver.never_launched(), [""; 0], "kernels without a case");
}

#[expect(clippy::print_stdout, reason = "shown on request: how close the kernels come")]
fn report(title: &str, worst: &std::collections::BTreeMap<&str, f64>) {
    for (operation, error) in worst {
        let error = if *error == 0.0 { "equal bits".to_owned() } else { format!("{error:.1e}") };
        println!("{title}: {operation}: {error}");
    }
}

/// The order every repeatable product has, spelled out.
fn fixed_product(start: Option<f32>, terms: impl ExactSizeIterator<Item = (f32, f32)>) -> f32 {
    let mut total = start;
    let (mut sum, mut count, len) = (0.0_f32, 0, terms.len());
    for (x, y) in terms {
        sum = x.mul_add(y, sum);
        count += 1;
        if count % DEPTH == 0 || count == len {
            total = Some(total.map_or(sum, |total| total + sum));
            sum = 0.0;
        }
    }
    total.unwrap_or_default()
}

fn products_have_the_fixed_order(emulated: &mut Emulated) {
    for (rows, inputs, outputs) in [(1, 1, 1), (1, 600, 1), (70, 257, 65), (5, 256, 3), (2, 513, 66)] {
        let (x, w) = (numbers(rows * inputs, 1), numbers(outputs * inputs, 2));
        for write in [Write::Set, Write::Add] {
            let mut y = numbers(rows * outputs, 3);
            let want: Vec<f32> = (0..rows * outputs)
                .map(|i| {
                    let (x, w) = (&x[i / outputs * inputs..][..inputs], &w[i % outputs * inputs..][..inputs]);
                    let start = (write == Write::Add).then_some(y[i]);
                    fixed_product(start, x.iter().copied().zip(w.iter().copied()))
                })
                .collect();
            let shape = LinearShape { rows, inputs, outputs };
            emulated.linear(&mut y, &x, &w, shape, write).unwrap();
            compare("linear", &(shape, write), &y, &want, BITS);
        }
    }
}

fn to_bf16(driver: &mut Driver, x: &[f32], rows: usize, columns: usize) -> Vec<u16> {
    let mut packed = vec![0_u16; x.len()];
    let arguments = &mut [out(&mut packed), input(x), int(rows), int(columns)];
    driver.launch("swl_to_bf16", Launch::threads(x.len(), 256), arguments);
    let want: Vec<u16> = x.iter().map(|&x| bf16::from_f32(x).to_bits()).collect();
    assert_eq!(packed, want);
    let mut turned = vec![0_u16; x.len()];
    let launch = Launch::grid([columns.div_ceil(32), rows.div_ceil(32), 1], 32);
    let arguments = &mut [out(&mut turned), input(x), int(rows), int(columns)];
    driver.launch("swl_to_bf16_transposed", Launch { block: [32, 8, 1], ..launch }, arguments);
    for (i, &x) in want.iter().enumerate() {
        assert_eq!(turned[i % columns * rows + i / columns], x, "{rows}x{columns}, number {i}");
    }
    packed
}

/// The scalar twin of the tensor-core product: exact products, sums of f32.
fn bf16_products_are_close(emulated: &mut Emulated) {
    let driver = &mut emulated.driver;
    for (m, n, k) in [(1, 1, 1), (17, 9, 33), (65, 70, 64), (64, 64, 31), (3, 130, 100)] {
        let a = to_bf16(driver, &numbers(m * k, 1), m, k);
        let b = to_bf16(driver, &numbers(n * k, 2), n, k);
        let wide = |x: u16| bf16::from_bits(x).to_f32();
        for add in [0, 1] {
            let mut c = numbers(m * n, 3);
            let want: Vec<f32> = (0..m * n)
                .map(|i| {
                    let (a, b) = (&a[i / n * k..][..k], &b[i % n * k..][..k]);
                    let sum: f64 = a.iter().zip(b).map(|(&x, &y)| f64::from(wide(x) * wide(y))).sum();
                    (sum + f64::from(c[i]) * f64::from(add)) as f32
                })
                .collect();
            let launch = Launch::grid([n.div_ceil(64), m.div_ceil(64), 1], 128);
            let arguments = &mut [out(&mut c), input(&a), input(&b), int(m), int(n), int(k), Arg::Int(add)];
            driver.launch("swl_product_bf16", launch, arguments);
            // Sums of up to 100 products in f32.
            compare("product_bf16", &(m, n, k, add), &c, &want, 3e-6);
        }
    }
}

/// `x[N, heads*e]`, every head rotated by its position, or back by it with a sign of -1.
fn rotated(x: &[f32], heads: usize, shape: AttentionShape, table: &[Vec<f32>; 2], sign: f32) -> Vec<f32> {
    let AttentionShape { tokens, head_width, .. } = shape;
    let half = head_width / 2;
    let number = |i: usize| {
        let (position, column) = (i / (heads * head_width) % tokens, i % head_width);
        let [cos, sin] = [0, 1].map(|which| table[which][position * half + column % half]);
        let sin = sign * sin;
        if column < half { x[i] * cos - x[i + half] * sin } else { x[i] * cos + x[i - half] * sin }
    };
    (0..x.len()).map(number).collect()
}

fn rope_to_bf16(
    driver: &mut Driver,
    x: &[f32],
    heads: usize,
    shape: AttentionShape,
    table: &[Vec<f32>; 2],
) -> Vec<u16> {
    let mut packed = vec![0_u16; x.len()];
    let mut arguments = vec![out(&mut packed), input(x), input(&table[0]), input(&table[1])];
    arguments.extend([shape.batch, shape.tokens, heads, shape.head_width].map(int));
    driver.launch("swl_rope_to_bf16", Launch::threads(x.len() / 2, 256), &mut arguments);
    let want = rotated(x, heads, shape, table, 1.0).into_iter().map(|x| bf16::from_f32(x).to_bits());
    assert_eq!(packed, want.collect::<Vec<_>>(), "{shape:?}");
    packed
}

/// The scalar twin of attention on tensor cores against the CPU on the same rounded inputs, which it gets rotated back
/// where it rotates them itself.
fn bf16_attention_is_close(emulated: &mut Emulated) {
    let mut cpu = Cpu::new(1).unwrap();
    let shapes = [(1, 1, 1, 1, 64), (2, 67, 2, 1, 64), (1, 130, 1, 1, 64), (1, 65, 2, 2, 128)];
    for (batch, tokens, heads, kv_heads, head_width) in shapes {
        let shape = AttentionShape { batch, tokens, heads, kv_heads, head_width, theta: 1e4 };
        let table = emulated.rope_table(shape);
        let driver = &mut emulated.driver;
        let rows = batch * tokens;
        let [q, k] = [(heads, 1), (kv_heads, 2)].map(|(heads, stream)| {
            rope_to_bf16(driver, &numbers(rows * heads * head_width, stream), heads, shape, &table)
        });
        let v = to_bf16(driver, &numbers(rows * kv_heads * head_width, 3), rows, kv_heads * head_width);
        let wide = |x: &[u16]| x.iter().map(|&x| bf16::from_bits(x).to_f32()).collect::<Vec<_>>();
        let back = |x: &[u16], heads| CpuTensor::from(rotated(&wide(x), heads, shape, &table, -1.0));
        let mut want = [rows * heads * head_width, rows * heads].map(|len| CpuTensor::from(vec![0.0; len]));
        let [out_, lse_] = &mut want;
        let (q_back, k_back) = (back(&q, heads), back(&k, kv_heads));
        cpu.attention(out_, lse_, &q_back, &k_back, &wide(&v).into(), shape).unwrap();
        let mut got = [rows * heads * head_width, rows * heads].map(|len| vec![0.0_f32; len]);
        let [out_, lse_] = &mut got;
        let mut arguments = vec![out(out_), out(lse_), input(&q), input(&k), input(&v)];
        arguments.extend([tokens, heads, kv_heads].map(int));
        let (kernel, shared_bytes) = if head_width == 64 {
            ("swl_attention_bf16_64", 18432)
        } else {
            ("swl_attention_bf16_128", 35840)
        };
        let launch = Launch::grid([tokens.div_ceil(64), heads, batch], 128).shared(shared_bytes);
        driver.launch(kernel, launch, &mut arguments);
        // Probabilities are rounded to bf16: 2^-9 of values of unit size; the scores are not.
        for (got, (want, tolerance)) in got.iter().zip(want.iter().zip([4e-3, 2e-6])) {
            compare("attention_bf16", &shape, got, want.as_slice(), tolerance);
        }
    }
}

/// The same of the backward pass, from the CPU's own forward pass.
fn bf16_attention_backward_is_close(emulated: &mut Emulated) {
    let mut cpu = Cpu::new(1).unwrap();
    let shapes = [
        (1, 1, 1, 1, 64),
        (2, 67, 4, 2, 64),
        (1, 130, 1, 1, 64),
        (1, 1, 1, 1, 128),
        (1, 67, 2, 1, 128),
        (1, 130, 1, 1, 128),
    ];
    for (batch, tokens, heads, kv_heads, head_width) in shapes {
        let shape = AttentionShape { batch, tokens, heads, kv_heads, head_width, theta: 1e4 };
        let table = emulated.rope_table(shape);
        let driver = &mut emulated.driver;
        let (rows, [queries, keys, sums]) = (batch * tokens, shape.lens());
        let q = rope_to_bf16(driver, &numbers(queries, 1), heads, shape, &table);
        let k = rope_to_bf16(driver, &numbers(keys, 2), kv_heads, shape, &table);
        let v = to_bf16(driver, &numbers(keys, 3), rows, kv_heads * head_width);
        let dout = to_bf16(driver, &numbers(queries, 4), rows, heads * head_width);
        let wide = |x: &[u16]| x.iter().map(|&x| bf16::from_bits(x).to_f32()).collect::<Vec<_>>();
        let back = |x: &[u16], heads| CpuTensor::from(rotated(&wide(x), heads, shape, &table, -1.0));
        let (q_back, k_back) = (back(&q, heads), back(&k, kv_heads));
        let [v_wide, dout_wide] = [&v, &dout].map(|x| CpuTensor::from(wide(x)));
        let [mut out_, mut lse] = [queries, sums].map(|len| CpuTensor::from(vec![0.0; len]));
        cpu.attention(&mut out_, &mut lse, &q_back, &k_back, &v_wide, shape).unwrap();
        let [mut dq, mut dk, mut dv] = [queries, keys, keys].map(|len| CpuTensor::from(vec![0.0; len]));
        cpu.attention_backward(
            &mut dq, &mut dk, &mut dv, &dout_wide, &q_back, &k_back, &v_wide, &out_, &lse, shape,
        )
        .unwrap();
        let mut delta = vec![0.0_f32; sums];
        let arguments = &mut [
            out(&mut delta),
            input(out_.as_slice()),
            input(dout_wide.as_slice()),
            int(sums),
            int(head_width),
        ];
        driver.launch("swl_attention_delta", Launch::blocks(sums.div_ceil(8), 128), arguments);
        let [mut dq_got, mut dk_got, mut dv_got] = [queries, keys, keys].map(|len| vec![f32::NAN; len]);
        let mut arguments = vec![out(&mut dq_got), input(&dout), input(&q), input(&k), input(&v)];
        arguments.extend([input(lse.as_slice()), input(&delta), input(&table[0]), input(&table[1])]);
        arguments.extend([tokens, heads, kv_heads].map(int));
        let tiles = 4 * 64 * (2 * head_width + 16);
        let launch = Launch::grid([tokens.div_ceil(64), heads, batch], 128).shared(tiles);
        driver.launch(&format!("swl_attention_backward_query_bf16_{head_width}"), launch, &mut arguments);
        arguments[0] = out(&mut dk_got);
        arguments.insert(1, out(&mut dv_got));
        let launch = Launch::grid([tokens.div_ceil(64), kv_heads, batch], 128).shared(tiles + 512);
        driver.launch(&format!("swl_attention_backward_key_value_bf16_{head_width}"), launch, &mut arguments);
        // Probabilities and gradients of scores are rounded to bf16, each off by up to 2^-9 of itself; a sum has several
        // of unit size.
        for (name, got, want) in [("dq", dq_got, dq), ("dk", dk_got, dk), ("dv", dv_got, dv)] {
            compare(name, &shape, &got, want.as_slice(), 8e-3);
        }
    }
}
