//! Attention: on tensor cores in bf16 with f32 sums for the head widths their kernels take, else in f32.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::launch::{Kernels, Launch, int};
use super::memory::{Buffer, In, Out};
use crate::{AttentionShape, Error, Profile, Result};

/// Queries or keys of one block of attention in f32.
const TILE: usize = 16;
/// Queries or keys of one block of attention on tensor cores.
const BF16_TILE: usize = 64;
/// The widest head that the kernels hold.
const HEAD_WIDTH_MAX: usize = 256;

/// Computes attention on one device and keeps its scratch.
#[derive(Debug)]
pub(super) struct Attention {
    profile: Profile,
    stream: Arc<CudaStream>,
    rope: Option<RopeTable>,
    /// Rotated queries, rotated keys, values and `dout`.
    bf16: [Buffer<u16>; 4],
    /// `out . dout` of every head and row.
    delta: Buffer<f32>,
}

/// Cosines and sines of the rotary embedding for one shape.
#[derive(Debug)]
struct RopeTable {
    tokens: usize,
    head_width: usize,
    theta: f32,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
}

impl Attention {
    pub(super) fn new(stream: &Arc<CudaStream>, profile: Profile) -> Result<Self> {
        let empty = || Buffer::zeros(stream, 0);
        let bf16 = [empty()?, empty()?, empty()?, empty()?];
        let delta = Buffer::zeros(stream, 0)?;
        Ok(Self { profile, stream: Arc::clone(stream), rope: None, bf16, delta })
    }

    /// `out =`, `lse =`, from `[q, k, v]`.
    pub(super) fn forward(
        &mut self,
        kernels: &Kernels,
        out: &mut Buffer<f32>,
        lse: &mut Buffer<f32>,
        [q, k, v]: [&Buffer<f32>; 3],
        shape: AttentionShape,
    ) -> Result<()> {
        let [queries, keys, sums] = shape.lens();
        let (out, lse) = (out.output(queries), lse.output(sums));
        let (q, k, v) = (q.input(queries), k.input(keys), v.input(keys));
        let [tokens, heads, kv_heads, head_width] = sizes(shape)?;
        if self.on_tensor_cores(shape) {
            return self.forward_bf16(kernels, out, lse, [q, k, v], shape);
        }
        let launch = launch(shape, shape.heads, 3);
        let [cos, sin] = RopeTable::of(&mut self.rope, &self.stream, kernels, shape)?.inputs();
        let kernel = match self.profile {
            Profile::Fast => Kernels::swl_attention,
            Profile::Repro => Kernels::swl_attention_exact,
        };
        kernel(kernels, launch, out, lse, q, k, v, cos, sin, tokens, heads, kv_heads, head_width)
    }

    /// `gradients` `[dq, dk, dv]` `=`, from `dout` and the tensors of the forward pass.
    pub(super) fn backward(
        &mut self,
        kernels: &Kernels,
        gradients: [&mut Buffer<f32>; 3],
        dout: &Buffer<f32>,
        [q, k, v]: [&Buffer<f32>; 3],
        out: &Buffer<f32>,
        lse: &Buffer<f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let [queries, keys, sums] = shape.lens();
        let [dq, dk, dv] = gradients;
        let (dq, dk, dv) = (dq.output(queries), dk.output(keys), dv.output(keys));
        let (q, k, v) = (q.input(queries), k.input(keys), v.input(keys));
        let (dout, out, lse) = (dout.input(queries), out.input(queries), lse.input(sums));
        let [tokens, heads, kv_heads, head_width] = sizes(shape)?;
        self.compute_delta(kernels, out, dout, shape)?;
        if self.on_tensor_cores(shape) {
            return self.backward_bf16(kernels, [dq, dk, dv], [q, k, v], dout, lse, shape);
        }
        let delta = self.delta.input(sums);
        let [cos, sin] = RopeTable::of(&mut self.rope, &self.stream, kernels, shape)?.inputs();
        let by_query = launch(shape, shape.heads, 4);
        kernels.swl_attention_backward_query(
            by_query, dq, dout, q, k, v, lse, delta, cos, sin, tokens, heads, kv_heads, head_width,
        )?;
        let by_key = launch(shape, shape.kv_heads, 4);
        kernels.swl_attention_backward_key_value(
            by_key, dk, dv, dout, q, k, v, lse, delta, cos, sin, tokens, heads, kv_heads, head_width,
        )
    }

    fn on_tensor_cores(&self, shape: AttentionShape) -> bool {
        self.profile == Profile::Fast && matches!(shape.head_width, 64 | 128)
    }

    /// `delta = out . dout` of every head.
    fn compute_delta(
        &mut self,
        kernels: &Kernels,
        out: In<'_, f32>,
        dout: In<'_, f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let [_, _, sums] = shape.lens();
        self.delta.grow(&self.stream, sums)?;
        let (halves, delta) = (Launch::row(sums.div_ceil(8), 128), self.delta.output(sums));
        kernels.swl_attention_delta(halves, delta, out, dout, int(sums)?, int(shape.head_width)?)
    }

    /// [`Attention::forward`] on tensor cores, from factors rounded to bf16.
    fn forward_bf16(
        &mut self,
        kernels: &Kernels,
        out: Out<'_, f32>,
        lse: Out<'_, f32>,
        factors: [In<'_, f32>; 3],
        shape: AttentionShape,
    ) -> Result<()> {
        self.round_factors(kernels, factors, shape)?;
        let [queries, keys, _] = shape.lens();
        let [q, k, v] = [(0, queries), (1, keys), (2, keys)].map(|(index, len)| self.bf16[index].input(len));
        let launch = bf16_launch(shape, shape.heads)
            .shared(staged(BF16_TILE, shape.head_width) + staged(shape.head_width, BF16_TILE));
        let [tokens, heads, kv_heads, head_width] = sizes(shape)?;
        let kernel = match head_width {
            64 => Kernels::swl_attention_bf16_64,
            _ => Kernels::swl_attention_bf16_128,
        };
        kernel(kernels, launch, out, lse, q, k, v, tokens, heads, kv_heads)
    }

    /// [`Attention::backward`] on tensor cores, from factors and `dout` rounded to bf16, once `delta` is computed.
    fn backward_bf16(
        &mut self,
        kernels: &Kernels,
        gradients: [Out<'_, f32>; 3],
        factors: [In<'_, f32>; 3],
        dout: In<'_, f32>,
        lse: In<'_, f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        self.round_factors(kernels, factors, shape)?;
        self.round(3, kernels, dout, shape.heads, shape)?;
        let [queries, keys, sums] = shape.lens();
        let [cos, sin] = RopeTable::of(&mut self.rope, &self.stream, kernels, shape)?.inputs();
        let [q, k, v, dout] = [(0, queries), (1, keys), (2, keys), (3, queries)]
            .map(|(index, len)| self.bf16[index].input(len));
        let ([dq, dk, dv], delta) = (gradients, self.delta.input(sums));
        let tiles = 4 * staged(BF16_TILE, shape.head_width);
        let by_query = bf16_launch(shape, shape.heads).shared(tiles);
        // The log-sum-exp and the delta of each query of a tile come on top.
        let by_key = bf16_launch(shape, shape.kv_heads).shared(tiles + 2 * size_of::<f32>() * BF16_TILE);
        let [tokens, heads, kv_heads, head_width] = sizes(shape)?;
        let query = match head_width {
            64 => Kernels::swl_attention_backward_query_bf16_64,
            _ => Kernels::swl_attention_backward_query_bf16_128,
        };
        let key_value = match head_width {
            64 => Kernels::swl_attention_backward_key_value_bf16_64,
            _ => Kernels::swl_attention_backward_key_value_bf16_128,
        };
        query(kernels, by_query, dq, dout, q, k, v, lse, delta, cos, sin, tokens, heads, kv_heads)?;
        key_value(kernels, by_key, dk, dv, dout, q, k, v, lse, delta, cos, sin, tokens, heads, kv_heads)
    }

    /// `bf16[..3] =` rotated queries, rotated keys and values.
    fn round_factors(
        &mut self,
        kernels: &Kernels,
        [q, k, v]: [In<'_, f32>; 3],
        shape: AttentionShape,
    ) -> Result<()> {
        self.rotate_and_round(0, kernels, q, shape.heads, shape)?;
        self.rotate_and_round(1, kernels, k, shape.kv_heads, shape)?;
        self.round(2, kernels, v, shape.kv_heads, shape)
    }

    /// `bf16[index] = x[N, heads*e]`, every head rotated by its position.
    fn rotate_and_round(
        &mut self,
        index: usize,
        kernels: &Kernels,
        x: In<'_, f32>,
        heads: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        let AttentionShape { batch, tokens, head_width, .. } = shape;
        let [cos, sin] = RopeTable::of(&mut self.rope, &self.stream, kernels, shape)?.inputs();
        let len = batch * tokens * heads * head_width;
        self.bf16[index].grow(&self.stream, len)?;
        let (pairs, y) = (Launch::each(len / 2, 256), self.bf16[index].output(len));
        let [batch, tokens, heads, head_width] = [int(batch)?, int(tokens)?, int(heads)?, int(head_width)?];
        kernels.swl_rope_to_bf16(pairs, y, x, cos, sin, batch, tokens, heads, head_width)
    }

    /// `bf16[index] = x[N, heads*e]`
    fn round(
        &mut self,
        index: usize,
        kernels: &Kernels,
        x: In<'_, f32>,
        heads: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        let (rows, width) = (shape.batch * shape.tokens, heads * shape.head_width);
        self.bf16[index].grow(&self.stream, rows * width)?;
        let (each, y) = (Launch::each(rows * width, 256), self.bf16[index].output(rows * width));
        kernels.swl_to_bf16(each, y, x, int(rows)?, int(width)?)
    }
}

impl RopeTable {
    /// The table for `shape`: `kept` if it fits, else a new one that takes its place.
    fn of<'kept>(
        kept: &'kept mut Option<Self>,
        stream: &Arc<CudaStream>,
        kernels: &Kernels,
        shape: AttentionShape,
    ) -> Result<&'kept Self> {
        let table = match kept.take() {
            Some(table) if table.fits(shape) => table,
            _ => Self::new(stream, kernels, shape)?,
        };
        Ok(kept.insert(table))
    }

    fn new(stream: &Arc<CudaStream>, kernels: &Kernels, shape: AttentionShape) -> Result<Self> {
        let AttentionShape { tokens, head_width, theta, .. } = shape;
        let len = tokens * (head_width / 2);
        let (mut cos, mut sin) = (Buffer::zeros(stream, len)?, Buffer::zeros(stream, len)?);
        kernels.swl_rope_table(
            Launch::each(len, 128),
            cos.output(len),
            sin.output(len),
            int(tokens)?,
            int(head_width)?,
            theta,
        )?;
        Ok(Self { tokens, head_width, theta, cos, sin })
    }

    fn fits(&self, shape: AttentionShape) -> bool {
        let theta = self.theta.to_bits() == shape.theta.to_bits();
        theta && (self.tokens, self.head_width) == (shape.tokens, shape.head_width)
    }

    /// Cosines and sines as kernels take them, `[T, e/2]` each.
    fn inputs(&self) -> [In<'_, f32>; 2] {
        let len = self.tokens * (self.head_width / 2);
        [self.cos.input(len), self.sin.input(len)]
    }
}

/// `[T, h, g, e]` as the kernels take them.
fn sizes(shape: AttentionShape) -> Result<[i32; 4]> {
    let AttentionShape { tokens, heads, kv_heads, head_width, .. } = shape;
    if head_width > HEAD_WIDTH_MAX {
        return Err(Error::Device(format!(
            "heads of width {head_width}; the attention kernels hold {HEAD_WIDTH_MAX} at most"
        )));
    }
    Ok([int(tokens)?, int(heads)?, int(kv_heads)?, int(head_width)?])
}

/// A block for every 16 rows of each of `heads`, with `tiles` of 16 rows in shared memory.
fn launch(shape: AttentionShape, heads: usize, tiles: usize) -> Launch {
    let row_bytes = size_of::<f32>() * (shape.head_width + 1);
    Launch::grid([shape.tokens.div_ceil(TILE), heads, shape.batch], 256).shared(tiles * TILE * row_bytes)
}

/// A block for every 64 rows of each of `heads`, on tensor cores.
fn bf16_launch(shape: AttentionShape, heads: usize) -> Launch {
    Launch::grid([shape.tokens.div_ceil(BF16_TILE), heads, shape.batch], 128)
}

/// Bytes of a tile of `rows` with `width` numbers in bf16, as the kernels stage it: 16 bytes more a row.
fn staged(rows: usize, width: usize) -> usize {
    rows * (size_of::<u16>() * width + 16)
}
