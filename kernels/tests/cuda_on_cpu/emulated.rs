//! A backend that launches the kernels on the CPU, with the geometry their comments demand.

use crate::driver::{Arg, Driver, Launch, input, int, out};
use swarmline_kernels::{
    AdamStep, AttentionShape, Backend, Cpu, Error, LinearShape, PackedFormat, PackingError, Result,
    RoundingKey, Write,
};

/// Which kernel does the forward pass of attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Attention {
    Online,
    Exact,
}

pub(crate) struct Emulated {
    pub(crate) driver: Driver,
    pub(crate) attention: Attention,
}

impl Emulated {
    fn product(
        &mut self,
        c: &mut [f32],
        a: (&[f32], [usize; 2]),
        b: (&[f32], [usize; 2]),
        sizes: [usize; 3],
        write: Write,
    ) {
        let [m, n, k] = sizes;
        let launch = Launch::grid([n.div_ceil(64), m.div_ceil(64), 1], 256);
        let arguments = &mut [
            out(&mut c[..m * n]),
            input(&a.0[..m * k]),
            input(&b.0[..k * n]),
            int(m),
            int(n),
            int(k),
            int(a.1[0]),
            int(a.1[1]),
            int(b.1[0]),
            int(b.1[1]),
            add(write),
        ];
        self.driver.launch("swl_product", launch, arguments);
    }

    /// Cosines and sines.
    pub(crate) fn rope_table(&mut self, shape: AttentionShape) -> [Vec<f32>; 2] {
        let AttentionShape { tokens, head_width, theta, .. } = shape;
        let len = tokens * (head_width / 2);
        let (mut cos, mut sin) = (vec![0.0_f32; len], vec![0.0_f32; len]);
        let arguments = &mut [out(&mut cos), out(&mut sin), int(tokens), int(head_width), Arg::Float(theta)];
        self.driver.launch("swl_rope_table", Launch::threads(len, 128), arguments);
        [cos, sin]
    }
}

/// 0 to set, 1 to add.
fn add(write: Write) -> Arg<'static> {
    int(usize::from(write == Write::Add))
}

/// What `bad[2]` of the packing kernels says.
fn refuse(bad: [i32; 2]) -> Result<()> {
    match bad.iter().find(|&&row| row != i32::MAX) {
        Some(&row) => Err(Error::Packing(PackingError::NonFinite { row: row as usize })),
        None => Ok(()),
    }
}

fn top_level(format: PackedFormat) -> Arg<'static> {
    Arg::Int(format.top_level().into())
}

impl Backend for Emulated {
    type Tensor = Vec<f32>;
    type Ids = Vec<u32>;

    fn zeros(&mut self, len: usize) -> Result<Vec<f32>> {
        Ok(vec![0.0; len])
    }

    fn len(&self, tensor: &Vec<f32>) -> usize {
        tensor.len()
    }

    fn upload(&mut self, dst: &mut Vec<f32>, src: &[f32]) -> Result<()> {
        dst[..src.len()].copy_from_slice(src);
        Ok(())
    }

    fn download(&mut self, dst: &mut [f32], src: &Vec<f32>) -> Result<()> {
        dst.copy_from_slice(&src[..dst.len()]);
        Ok(())
    }

    fn ids(&mut self, ids: &[u32], vocab: usize) -> Result<Vec<u32>> {
        Ok(Cpu::new(1)?.ids(ids, vocab)?.as_slice().to_vec())
    }

    fn fill(&mut self, x: &mut Vec<f32>, value: f32, len: usize) -> Result<()> {
        let arguments = &mut [out(&mut x[..len]), Arg::Float(value), int(len)];
        self.driver.launch("swl_fill", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn copy(&mut self, y: &mut Vec<f32>, x: &Vec<f32>, len: usize) -> Result<()> {
        let arguments = &mut [out(&mut y[..len]), input(&x[..len]), int(len)];
        self.driver.launch("swl_copy", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn add_scaled(&mut self, y: &mut Vec<f32>, x: &Vec<f32>, alpha: f32, len: usize) -> Result<()> {
        let arguments = &mut [out(&mut y[..len]), input(&x[..len]), Arg::Float(alpha), int(len)];
        self.driver.launch("swl_add_scaled", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn sum_squares(&mut self, x: &Vec<f32>, len: usize) -> Result<f64> {
        let mut partial = vec![0.0_f64; len.div_ceil(16384)];
        let launch = Launch::threads(partial.len(), 16);
        let arguments = &mut [out(&mut partial), input(&x[..len]), int(len)];
        self.driver.launch("swl_sum_squares_partial", Launch { block: [256, 1, 1], ..launch }, arguments);
        let mut sum = [0.0_f64];
        let count = partial.len();
        let arguments = &mut [out(&mut sum), input(&partial), int(count)];
        self.driver.launch("swl_sum_in_order", Launch::blocks(1, 1), arguments);
        Ok(sum[0])
    }

    fn linear(
        &mut self,
        y: &mut Vec<f32>,
        x: &Vec<f32>,
        w: &Vec<f32>,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        let LinearShape { rows, inputs, outputs } = shape;
        self.product(y, (x, [inputs, 1]), (w, [1, inputs]), [rows, outputs, inputs], write);
        Ok(())
    }

    fn linear_backward_input(
        &mut self,
        dx: &mut Vec<f32>,
        dy: &Vec<f32>,
        w: &Vec<f32>,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        let LinearShape { rows, inputs, outputs } = shape;
        self.product(dx, (dy, [outputs, 1]), (w, [inputs, 1]), [rows, inputs, outputs], write);
        Ok(())
    }

    fn linear_backward_weight(
        &mut self,
        dw: &mut Vec<f32>,
        dy: &Vec<f32>,
        x: &Vec<f32>,
        shape: LinearShape,
        write: Write,
    ) -> Result<()> {
        let LinearShape { rows, inputs, outputs } = shape;
        self.product(dw, (dy, [1, outputs]), (x, [inputs, 1]), [outputs, inputs, rows], write);
        Ok(())
    }

    fn rmsnorm(
        &mut self,
        y: &mut Vec<f32>,
        rstd: &mut Vec<f32>,
        x: &Vec<f32>,
        gain: &Vec<f32>,
        rows: usize,
        width: usize,
        epsilon: f32,
    ) -> Result<()> {
        let arguments = &mut [
            out(&mut y[..rows * width]),
            out(&mut rstd[..rows]),
            input(&x[..rows * width]),
            input(&gain[..width]),
            int(rows),
            int(width),
            Arg::Float(epsilon),
        ];
        self.driver.launch("swl_rmsnorm", Launch::blocks(rows.div_ceil(8), 128), arguments);
        Ok(())
    }

    fn rmsnorm_apply(
        &mut self,
        y: &mut Vec<f32>,
        x: &Vec<f32>,
        gain: &Vec<f32>,
        rstd: &Vec<f32>,
        rows: usize,
        width: usize,
    ) -> Result<()> {
        let len = rows * width;
        let arguments = &mut [
            out(&mut y[..len]),
            input(&x[..len]),
            input(&gain[..width]),
            input(&rstd[..rows]),
            int(rows),
            int(width),
        ];
        self.driver.launch("swl_rmsnorm_apply", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn rmsnorm_backward(
        &mut self,
        dx: &mut Vec<f32>,
        dgain: &mut Vec<f32>,
        dy: &Vec<f32>,
        x: &Vec<f32>,
        gain: &Vec<f32>,
        rstd: &Vec<f32>,
        rows: usize,
        width: usize,
        write: Write,
    ) -> Result<()> {
        let (dy, x, rstd) = (&dy[..rows * width], &x[..rows * width], &rstd[..rows]);
        let arguments = &mut [
            out(&mut dx[..rows * width]),
            input(dy),
            input(x),
            input(&gain[..width]),
            input(rstd),
            int(rows),
            int(width),
            add(write),
        ];
        self.driver.launch("swl_rmsnorm_backward", Launch::blocks(rows.div_ceil(8), 128), arguments);
        let partials = rows.div_ceil(64);
        let mut partial = vec![0.0_f32; partials * width];
        let launch = Launch::grid([width.div_ceil(128), partials, 1], 128);
        let arguments = &mut [out(&mut partial), input(dy), input(x), input(rstd), int(rows), int(width)];
        self.driver.launch("swl_rmsnorm_gain_partial", launch, arguments);
        let arguments = &mut [out(&mut dgain[..width]), input(&partial), int(partials), int(width)];
        self.driver.launch("swl_rmsnorm_gain", Launch::threads(width, 128), arguments);
        Ok(())
    }

    fn attention(
        &mut self,
        out_: &mut Vec<f32>,
        lse: &mut Vec<f32>,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let AttentionShape { batch, tokens, heads, kv_heads, head_width, .. } = shape;
        let [cos, sin] = self.rope_table(shape);
        let [queries, keys, sums] = shape.lens();
        let kernel = match self.attention {
            Attention::Online => "swl_attention",
            Attention::Exact => "swl_attention_exact",
        };
        let launch = Launch::grid([tokens.div_ceil(16), heads, batch], 256).shared(192 * (head_width + 1));
        let arguments = &mut [
            out(&mut out_[..queries]),
            out(&mut lse[..sums]),
            input(&q[..queries]),
            input(&k[..keys]),
            input(&v[..keys]),
            input(&cos),
            input(&sin),
            int(tokens),
            int(heads),
            int(kv_heads),
            int(head_width),
        ];
        self.driver.launch(kernel, launch, arguments);
        Ok(())
    }

    fn attention_backward(
        &mut self,
        dq: &mut Vec<f32>,
        dk: &mut Vec<f32>,
        dv: &mut Vec<f32>,
        dout: &Vec<f32>,
        q: &Vec<f32>,
        k: &Vec<f32>,
        v: &Vec<f32>,
        out_: &Vec<f32>,
        lse: &Vec<f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let AttentionShape { batch, tokens, heads, kv_heads, head_width, .. } = shape;
        let [cos, sin] = self.rope_table(shape);
        let [queries, keys, sums] = shape.lens();
        let mut delta = vec![0.0_f32; sums];
        let arguments = &mut [
            out(&mut delta),
            input(&out_[..queries]),
            input(&dout[..queries]),
            int(sums),
            int(head_width),
        ];
        self.driver.launch("swl_attention_delta", Launch::blocks(sums.div_ceil(8), 128), arguments);
        let launch = Launch::grid([tokens.div_ceil(16), heads, batch], 256).shared(256 * (head_width + 1));
        let mut inputs =
            vec![input(&dout[..queries]), input(&q[..queries]), input(&k[..keys]), input(&v[..keys])];
        inputs.extend([input(&lse[..sums]), input(&delta), input(&cos), input(&sin)]);
        inputs.extend([tokens, heads, kv_heads, head_width].map(int));
        inputs.insert(0, out(&mut dq[..queries]));
        self.driver.launch("swl_attention_backward_query", launch, &mut inputs);
        inputs[0] = out(&mut dk[..keys]);
        inputs.insert(1, out(&mut dv[..keys]));
        let launch = Launch { grid: [tokens.div_ceil(16), kv_heads, batch], ..launch };
        self.driver.launch("swl_attention_backward_key_value", launch, &mut inputs);
        Ok(())
    }

    fn swiglu(&mut self, h: &mut Vec<f32>, gate: &Vec<f32>, up: &Vec<f32>, len: usize) -> Result<()> {
        let arguments = &mut [out(&mut h[..len]), input(&gate[..len]), input(&up[..len]), int(len)];
        self.driver.launch("swl_swiglu", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn swiglu_backward(
        &mut self,
        dgate: &mut Vec<f32>,
        dup: &mut Vec<f32>,
        dh: &Vec<f32>,
        gate: &Vec<f32>,
        up: &Vec<f32>,
        len: usize,
    ) -> Result<()> {
        let arguments = &mut [
            out(&mut dgate[..len]),
            out(&mut dup[..len]),
            input(&dh[..len]),
            input(&gate[..len]),
            input(&up[..len]),
            int(len),
        ];
        self.driver.launch("swl_swiglu_backward", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn embedding(
        &mut self,
        x: &mut Vec<f32>,
        ids: &Vec<u32>,
        table: &Vec<f32>,
        width: usize,
        write: Write,
    ) -> Result<()> {
        let len = ids.len() * width;
        let arguments =
            &mut [out(&mut x[..len]), input(ids), input(table), int(ids.len()), int(width), add(write)];
        self.driver.launch("swl_embedding", Launch::threads(len, 256), arguments);
        Ok(())
    }

    fn embedding_backward(
        &mut self,
        dtable: &mut Vec<f32>,
        dx: &Vec<f32>,
        ids: &Vec<u32>,
        width: usize,
    ) -> Result<()> {
        let vocab = dtable.len() / width;
        let arguments = &mut [
            out(&mut dtable[..vocab * width]),
            input(&dx[..ids.len() * width]),
            input(ids),
            int(ids.len()),
            int(width),
        ];
        self.driver.launch("swl_embedding_backward", Launch::blocks(vocab, 128), arguments);
        Ok(())
    }

    fn cross_entropy(
        &mut self,
        losses: &mut Vec<f32>,
        logits: &mut Vec<f32>,
        targets: &Vec<u32>,
        vocab: usize,
        scale: f32,
    ) -> Result<()> {
        let rows = targets.len();
        let arguments = &mut [
            out(&mut losses[..rows]),
            out(&mut logits[..rows * vocab]),
            input(targets),
            int(vocab),
            Arg::Float(scale),
        ];
        self.driver.launch("swl_cross_entropy", Launch::blocks(rows, 256), arguments);
        Ok(())
    }

    fn anchor(
        &mut self,
        x: &mut Vec<f32>,
        ids: &Vec<u32>,
        seed: u64,
        width: usize,
        scale: f32,
    ) -> Result<()> {
        let counters = width.div_ceil(32) * 16;
        let launch = Launch::grid([ids.len(), counters.div_ceil(128), 1], 128);
        let arguments = &mut [
            out(&mut x[..ids.len() * width]),
            input(ids),
            Arg::Long(seed),
            int(width),
            Arg::Float(scale),
        ];
        self.driver.launch("swl_anchor", launch, arguments);
        Ok(())
    }

    fn project(
        &mut self,
        z: &mut Vec<f32>,
        x: &Vec<f32>,
        basis: &Vec<f32>,
        rows: usize,
        width: usize,
        code: usize,
        write: Write,
    ) -> Result<()> {
        self.product(z, (x, [width, 1]), (basis, [1, width]), [rows, code, width], write);
        Ok(())
    }

    fn reconstruct(
        &mut self,
        x: &mut Vec<f32>,
        z: &Vec<f32>,
        basis: &Vec<f32>,
        anchor: &Vec<f32>,
        rows: usize,
        width: usize,
        code: usize,
    ) -> Result<()> {
        self.copy(x, anchor, rows * width)?;
        self.product(x, (z, [code, 1]), (basis, [width, 1]), [rows, width, code], Write::Add);
        Ok(())
    }

    fn pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &Vec<f32>,
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        bytes.clear();
        bytes.resize(format.packed_len(rows, width).unwrap(), 0);
        let x = &x[..rows * width];
        let mut bad = [i32::MAX; 2];
        match format {
            PackedFormat::F32 => {
                let arguments = &mut [out(&mut bad), input(x), int(width)];
                self.driver.launch("swl_check_finite", Launch::blocks(rows, 128), arguments);
                bytes.copy_from_slice(bytemuck::cast_slice(x));
            }
            PackedFormat::Bf16 => {
                let arguments = &mut [out(bytes), out(&mut bad), input(x), int(rows), int(width)];
                self.driver.launch("swl_pack_bf16", Launch::threads(rows * width, 256), arguments);
            }
            PackedFormat::Q8 | PackedFormat::Q4 => {
                let arguments = &mut [
                    out(bytes),
                    out(&mut bad),
                    input(x),
                    int(width),
                    top_level(format),
                    Arg::Long(key.run),
                    Arg::Long(key.tensor),
                ];
                self.driver.launch("swl_pack_levels", Launch::blocks(rows, 256).shared(4 * width), arguments);
            }
        }
        refuse(bad)
    }

    fn unpack(
        &mut self,
        x: &mut Vec<f32>,
        bytes: &[u8],
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        format.check_len(bytes, rows, width)?;
        let x = &mut x[..rows * width];
        let mut bad = [i32::MAX; 2];
        match format {
            PackedFormat::F32 => {
                bytemuck::cast_slice_mut(x).copy_from_slice(bytes);
                let arguments = &mut [out(&mut bad), input(x), int(width)];
                self.driver.launch("swl_check_finite", Launch::blocks(rows, 128), arguments);
            }
            PackedFormat::Bf16 => {
                let arguments = &mut [out(x), out(&mut bad), input(bytes), int(rows), int(width)];
                self.driver.launch("swl_unpack_bf16", Launch::threads(rows * width, 256), arguments);
            }
            PackedFormat::Q8 | PackedFormat::Q4 => {
                let arguments = &mut [
                    out(x),
                    out(&mut bad),
                    input(bytes),
                    int(width),
                    top_level(format),
                    Arg::Long(key.run),
                    Arg::Long(key.tensor),
                ];
                self.driver.launch(
                    "swl_unpack_levels",
                    Launch::blocks(rows, 256).shared(4 * width),
                    arguments,
                );
            }
        }
        refuse(bad)
    }

    fn project_pack(
        &mut self,
        bytes: &mut Vec<u8>,
        x: &Vec<f32>,
        basis: &Vec<f32>,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        if matches!(format, PackedFormat::F32 | PackedFormat::Bf16) {
            let mut z = vec![0.0; rows * code];
            self.project(&mut z, x, basis, rows, width, code, Write::Set)?;
            return self.pack(bytes, &z, rows, code, format, key);
        }
        bytes.clear();
        bytes.resize(format.packed_len(rows, code).unwrap(), 0);
        let mut bad = [i32::MAX; 2];
        let arguments = &mut [
            out(bytes),
            out(&mut bad),
            input(&x[..rows * width]),
            input(&basis[..code * width]),
            int(width),
            int(code),
            top_level(format),
            Arg::Long(key.run),
            Arg::Long(key.tensor),
        ];
        let launch = Launch::blocks(rows, 256).shared(4 * (width + code));
        self.driver.launch("swl_project_pack", launch, arguments);
        refuse(bad)
    }

    fn unpack_reconstruct(
        &mut self,
        x: &mut Vec<f32>,
        bytes: &[u8],
        basis: &Vec<f32>,
        anchor: &Vec<f32>,
        rows: usize,
        width: usize,
        code: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        if matches!(format, PackedFormat::F32 | PackedFormat::Bf16) {
            let mut z = vec![0.0; rows * code];
            self.unpack(&mut z, bytes, rows, code, format, key)?;
            return self.reconstruct(x, &z, basis, anchor, rows, width, code);
        }
        format.check_len(bytes, rows, code)?;
        let mut bad = [i32::MAX; 2];
        let arguments = &mut [
            out(&mut x[..rows * width]),
            out(&mut bad),
            input(bytes),
            input(&basis[..code * width]),
            input(&anchor[..rows * width]),
            int(width),
            int(code),
            top_level(format),
            Arg::Long(key.run),
            Arg::Long(key.tensor),
        ];
        let launch = Launch::blocks(rows, 256).shared(4 * code);
        self.driver.launch("swl_unpack_reconstruct", launch, arguments);
        refuse(bad)
    }

    fn adam_update(
        &mut self,
        w: &mut Vec<f32>,
        m: &mut Vec<f32>,
        v: &mut Vec<f32>,
        g: &Vec<f32>,
        len: usize,
        step: AdamStep,
    ) -> Result<()> {
        let mut arguments =
            vec![out(&mut w[..len]), out(&mut m[..len]), out(&mut v[..len]), input(&g[..len]), int(len)];
        let AdamStep {
            beta1,
            beta2,
            bias_correction2,
            epsilon,
            gradient_scale,
            decay,
            gradient_rate,
            momentum_rate,
        } = step;
        arguments.extend(
            [beta1, beta2, bias_correction2, epsilon, gradient_scale, decay, gradient_rate, momentum_rate]
                .map(Arg::Float),
        );
        self.driver.launch("swl_adam_update", Launch::threads(len, 256), &mut arguments);
        Ok(())
    }
}
