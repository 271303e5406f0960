//! Attention on tensor cores, and what all attention kernels take.

use std::sync::Arc;

use cudarc::driver::CudaStream;

use super::Cuda;
use super::launch::{Kernels, Launch, int};
use super::memory::{Buffer, In, Out};
use crate::{AttentionShape, Error, Profile, Result};

/// Queries or keys of one block of attention.
const ATTENTION_TILE: usize = 16;
/// Queries or keys of one block of attention on tensor cores.
const NARROW_TILE: usize = 64;
/// The widest head the attention kernels hold.
const HEAD_WIDTH_MAX: usize = 256;

/// Cosines and sines of the rotary embedding for one shape.
#[derive(Debug)]
pub(super) struct RopeTable {
    tokens: usize,
    head_width: usize,
    theta: f32,
    cos: Buffer<f32>,
    sin: Buffer<f32>,
}

impl Cuda {
    /// Whether attention of this shape runs on tensor cores.
    pub(super) fn is_narrow(&self, shape: AttentionShape) -> bool {
        self.profile == Profile::Fast && matches!(shape.head_width, 64 | 128)
    }

    /// Attention on tensor cores, from queries, keys and values rounded to bf16.
    pub(super) fn narrow_attention(
        &mut self,
        out: Out<'_, f32>,
        lse: Out<'_, f32>,
        factors: [In<'_, f32>; 3],
        shape: AttentionShape,
    ) -> Result<()> {
        self.narrow_factors(factors, shape)?;
        let [queries, keys, _] = shape.lens();
        let [q, k, v] =
            [(0, queries), (1, keys), (2, keys)].map(|(index, len)| self.narrow[index].input(len));
        let launch = narrow_launch(shape, shape.heads)
            .shared(staged(NARROW_TILE, shape.head_width) + staged(shape.head_width, NARROW_TILE));
        let [tokens, heads, kv_heads, head_width] = attention_sizes(shape)?;
        let kernel = match head_width {
            64 => Kernels::swl_attention_bf16_64,
            _ => Kernels::swl_attention_bf16_128,
        };
        kernel(&self.kernels, launch, out, lse, q, k, v, tokens, heads, kv_heads)
    }

    /// `partial_rows = out . dout` of every head.
    pub(super) fn attention_delta(
        &mut self,
        out: In<'_, f32>,
        dout: In<'_, f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        let [_, _, sums] = shape.lens();
        self.partial_rows.grow(&self.stream, sums)?;
        let (halves, delta) = (Launch::row(sums.div_ceil(8), 128), self.partial_rows.output(sums));
        self.kernels.swl_attention_delta(halves, delta, out, dout, int(sums)?, int(shape.head_width)?)
    }

    /// `gradients` `[dq, dk, dv]` on tensor cores, from queries, keys, values and `dout` rounded to bf16, once
    /// [`Cuda::attention_delta`] is made.
    pub(super) fn narrow_attention_backward(
        &mut self,
        gradients: [Out<'_, f32>; 3],
        factors: [In<'_, f32>; 3],
        dout: In<'_, f32>,
        lse: In<'_, f32>,
        shape: AttentionShape,
    ) -> Result<()> {
        self.narrow_factors(factors, shape)?;
        self.narrow_plain(3, dout, shape.heads, shape)?;
        let [queries, keys, sums] = shape.lens();
        let [cos, sin] = RopeTable::of(&mut self.rope, &self.stream, &self.kernels, shape)?.inputs();
        let [q, k, v, dout] = [(0, queries), (1, keys), (2, keys), (3, queries)]
            .map(|(index, len)| self.narrow[index].input(len));
        let ([dq, dk, dv], delta) = (gradients, self.partial_rows.input(sums));
        let tiles = 4 * staged(NARROW_TILE, shape.head_width);
        let by_query = narrow_launch(shape, shape.heads).shared(tiles);
        // Two numbers for each query of a tile besides.
        let by_key = narrow_launch(shape, shape.kv_heads).shared(tiles + 2 * size_of::<f32>() * NARROW_TILE);
        let [tokens, heads, kv_heads, head_width] = attention_sizes(shape)?;
        let query = match head_width {
            64 => Kernels::swl_attention_backward_query_bf16_64,
            _ => Kernels::swl_attention_backward_query_bf16_128,
        };
        let key_value = match head_width {
            64 => Kernels::swl_attention_backward_key_value_bf16_64,
            _ => Kernels::swl_attention_backward_key_value_bf16_128,
        };
        let kernels = &self.kernels;
        query(kernels, by_query, dq, dout, q, k, v, lse, delta, cos, sin, tokens, heads, kv_heads)?;
        key_value(kernels, by_key, dk, dv, dout, q, k, v, lse, delta, cos, sin, tokens, heads, kv_heads)
    }

    /// `narrow[..3] = bf16` of queries and keys, rotated, and of values.
    fn narrow_factors(&mut self, factors: [In<'_, f32>; 3], shape: AttentionShape) -> Result<()> {
        let [q, k, v] = factors;
        self.narrow_rotated(0, q, shape.heads, shape)?;
        self.narrow_rotated(1, k, shape.kv_heads, shape)?;
        self.narrow_plain(2, v, shape.kv_heads, shape)
    }

    /// `narrow[index] = bf16(x[N, heads*e])`, `x` rotated.
    fn narrow_rotated(
        &mut self,
        index: usize,
        x: In<'_, f32>,
        heads: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        let AttentionShape { batch, tokens, head_width, .. } = shape;
        let [cos, sin] = RopeTable::of(&mut self.rope, &self.stream, &self.kernels, shape)?.inputs();
        let len = batch * tokens * heads * head_width;
        self.narrow[index].grow(&self.stream, len)?;
        let (pairs, y) = (Launch::each(len / 2, 256), self.narrow[index].output(len));
        let [batch, tokens, heads, head_width] = [int(batch)?, int(tokens)?, int(heads)?, int(head_width)?];
        self.kernels.swl_rope_to_bf16(pairs, y, x, cos, sin, batch, tokens, heads, head_width)
    }

    /// `narrow[index] = bf16(x[N, heads*e])`.
    fn narrow_plain(
        &mut self,
        index: usize,
        x: In<'_, f32>,
        heads: usize,
        shape: AttentionShape,
    ) -> Result<()> {
        let (rows, width) = (shape.batch * shape.tokens, heads * shape.head_width);
        self.narrow[index].grow(&self.stream, rows * width)?;
        let (each, y) = (Launch::each(rows * width, 256), self.narrow[index].output(rows * width));
        self.kernels.swl_to_bf16(each, y, x, int(rows)?, int(width)?)
    }
}

impl RopeTable {
    /// The table for `shape`: the one kept, or one to keep from now on.
    pub(super) fn of<'kept>(
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

    /// Cosines and sines as kernels take them.
    pub(super) fn inputs(&self) -> [In<'_, f32>; 2] {
        let len = self.tokens * (self.head_width / 2);
        [self.cos.input(len), self.sin.input(len)]
    }
}

/// `[T, h, g, e]` as the attention kernels take them.
pub(super) fn attention_sizes(shape: AttentionShape) -> Result<[i32; 4]> {
    let AttentionShape { tokens, heads, kv_heads, head_width, .. } = shape;
    if head_width > HEAD_WIDTH_MAX {
        return Err(Error::Device(format!(
            "heads of width {head_width}; the attention kernels hold {HEAD_WIDTH_MAX} at most"
        )));
    }
    Ok([int(tokens)?, int(heads)?, int(kv_heads)?, int(head_width)?])
}

/// A block for every 16 rows of each of `heads`, with `tiles` of 16 rows in shared memory.
pub(super) fn attention_launch(shape: AttentionShape, heads: usize, tiles: usize) -> Launch {
    let row_bytes = size_of::<f32>() * (shape.head_width + 1);
    Launch::grid([shape.tokens.div_ceil(ATTENTION_TILE), heads, shape.batch], 256)
        .shared(tiles * ATTENTION_TILE * row_bytes)
}

/// A block for every 64 rows of each of `heads`, on tensor cores.
fn narrow_launch(shape: AttentionShape, heads: usize) -> Launch {
    Launch::grid([shape.tokens.div_ceil(NARROW_TILE), heads, shape.batch], 128)
}

/// Bytes of a tile of `rows` with `width` numbers in bf16, as the kernels stage it: 16 bytes more a row.
fn staged(rows: usize, width: usize) -> usize {
    rows * (size_of::<u16>() * width + 16)
}
