//! Causal grouped-query attention, in blocks of query rows.
//!
//! A job is one (sequence, key-value head). It copies keys and values, which it reads many times, into dense scratch,
//! and computes scores for [`BLOCK_ROWS`] queries at a time over the keys that those queries see; most of the masked
//! half is not computed. The copy to scratch rotates queries and keys by their positions; the copy out of scratch
//! rotates their gradients back. Scores are transposed, a row per key and a column per query, so that a softmax works
//! on whole vectors and never sums within a vector. Backward recomputes the probabilities from the stored log-sum-exp
//! (as in Dao et al., arXiv 2205.14135).

use super::{
    columns::{self, Columns},
    lanes::{self, LANES},
    math::{exp_f32s, ln_f64},
    rope,
    scratch::Scratch,
    small_product::{self, SmallProduct},
    threads::Threads,
    view::MatrixView,
};
use crate::{AttentionShape, Write};
use pulp::{Arch, Simd, WithSimd};
use std::ops::Range;

/// Query rows of a block of scores: two vectors of the widest instruction set.
const BLOCK_ROWS: usize = 2 * HALF_ROWS;
/// Rows of half a block: products skip the keys that no row of a half sees.
const HALF_ROWS: usize = small_product::ALIGN;
/// Side of the squares in which queries are turned.
const SQUARE: usize = 8;

/// A number for every query of a block.
type Row = [f32; BLOCK_ROWS];

/// The index of every query of a block.
const ROWS: Row = {
    let mut rows = [0.0; BLOCK_ROWS];
    let mut r = 0;
    while r < BLOCK_ROWS {
        rows[r] = r as f32;
        r += 1;
    }
    rows
};

/// `out[N, h*e] = softmax(r(q) r(k)^T / sqrt(e)) v`, `lse[N, h]`; `r` rotates by the angles of `table`.
pub(super) fn forward(
    threads: &Threads,
    scratch: &Scratch,
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    table: &rope::Table,
    shape: AttentionShape,
) {
    let AttentionShape { tokens, heads, kv_heads, head_width, .. } = shape;
    let group = heads / kv_heads;
    let outs = columns::split(out, heads * head_width, tokens, group * head_width);
    let lses = columns::split(lse, heads, tokens, group);
    threads.each(
        outs.zip(lses).enumerate(),
        #[inline(always)]
        |(index, (mut out, mut lse))| {
            let job = Job::new(index, shape, threads.arch());
            let [dense, scores, rows] = job.lens();
            let mut memory = scratch.take(2 * dense + scores + 3 * rows);
            let [k_dense, v_dense, scores, q_rows, q_turned, result] =
                memory.parts([dense, dense, scores, rows, rows, rows]);
            job.gather_rotated(k_dense, job.key_value_rows(k), 0, table);
            job.gather(v_dense, job.key_value_rows(v));
            for head in 0..group {
                for first in (0..tokens).step_by(BLOCK_ROWS) {
                    let block = Block::new(first, job);
                    job.gather_rotated(q_rows, block.query_rows(q, head), first, table);
                    job.turn(q_turned, q_rows);
                    block.scores(scores, q_turned, k_dense);
                    let sums = job.arch.dispatch(Softmax { keys: scores, block });
                    for r in 0..block.rows {
                        lse.row(first + r)[head] = sums[r];
                    }
                    block.times_rows(result, scores, v_dense);
                    store(&mut out, result, block, head);
                }
            }
        },
    );
}

/// `dq =`, `dk =`, `dv =`
pub(super) fn backward(
    threads: &Threads,
    scratch: &Scratch,
    dq: &mut [f32],
    dk: &mut [f32],
    dv: &mut [f32],
    dout: &[f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &[f32],
    lse: &[f32],
    table: &rope::Table,
    shape: AttentionShape,
) {
    let AttentionShape { tokens, heads, kv_heads, head_width, .. } = shape;
    let group = heads / kv_heads;
    let dqs = columns::split(dq, heads * head_width, tokens, group * head_width);
    let dks = columns::split(dk, kv_heads * head_width, tokens, head_width);
    let dvs = columns::split(dv, kv_heads * head_width, tokens, head_width);
    threads.each(
        dqs.zip(dks).zip(dvs).enumerate(),
        #[inline(always)]
        |(index, ((mut dq, mut dk), mut dv))| {
            let job = Job::new(index, shape, threads.arch());
            let [dense, scores, rows] = job.lens();
            let mut memory = scratch.take(4 * dense + 2 * scores + 5 * rows);
            let [k_dense, v_dense, dk_sum, dv_sum, p, dp, q_rows, q_turned, dout_rows, dout_turned, result] =
                memory.parts([dense, dense, dense, dense, scores, scores, rows, rows, rows, rows, rows]);
            job.gather_rotated(k_dense, job.key_value_rows(k), 0, table);
            job.gather(v_dense, job.key_value_rows(v));
            for head in 0..group {
                for first in (0..tokens).step_by(BLOCK_ROWS) {
                    let block = Block::new(first, job);
                    job.gather_rotated(q_rows, block.query_rows(q, head), first, table);
                    job.turn(q_turned, q_rows);
                    job.gather(dout_rows, block.query_rows(dout, head));
                    job.turn(dout_turned, dout_rows);
                    block.scores(p, q_turned, k_dense);
                    block.scores(dp, dout_turned, v_dense);
                    let (mut lses, mut deltas) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
                    for (r, out) in block.query_rows(out, head).enumerate() {
                        lses[r] = job.lse(lse, first + r, head);
                        deltas[r] = lanes::dot(out, &dout_rows[r * job.width..][..head_width]);
                    }
                    job.arch.dispatch(SoftmaxBackward { p, dp, lses, deltas, block });
                    block.add_rows(dv_sum, p, dout_rows);
                    block.add_rows(dk_sum, dp, q_rows);
                    block.times_rows(result, dp, k_dense);
                    store_back(&mut dq, result, block, head, table);
                }
            }
            for row in 0..tokens {
                table.at(row).rotate_back(dk.row(row), &dk_sum[row * job.width..][..head_width]);
                dv.row(row).copy_from_slice(&dv_sum[row * job.width..][..head_width]);
            }
        },
    );
}

/// The job of one (sequence, key-value head): positions of its numbers, and shape of its scratch.
#[derive(Clone, Copy, Debug)]
struct Job {
    sequence: usize,
    kv_head: usize,
    shape: AttentionShape,
    arch: Arch,
    /// Width of a scratch row of queries, keys or values: the head width, aligned; the rest is 0.
    width: usize,
}

impl Job {
    fn new(index: usize, shape: AttentionShape, arch: Arch) -> Self {
        Self {
            sequence: index / shape.kv_heads,
            kv_head: index % shape.kv_heads,
            shape,
            arch,
            width: small_product::align(shape.head_width),
        }
    }

    /// Lengths of scratch: all keys or values; scores of a block; queries of a block.
    fn lens(self) -> [usize; 3] {
        let tokens = self.shape.tokens;
        [tokens * self.width, tokens * BLOCK_ROWS, BLOCK_ROWS * self.width]
    }

    /// This head's columns of `x[N, g*e]`
    #[inline(always)]
    fn key_value_rows(self, x: &[f32]) -> impl Iterator<Item = &[f32]> {
        self.rows(x, self.shape.kv_heads, self.kv_head, 0..self.shape.tokens)
    }

    fn lse(self, lse: &[f32], token: usize, head: usize) -> f32 {
        let row = self.sequence * self.shape.tokens + token;
        lse[row * self.shape.heads + self.query_head(head)]
    }

    fn query_head(self, head: usize) -> usize {
        self.kv_head * (self.shape.heads / self.shape.kv_heads) + head
    }

    #[inline(always)]
    fn rows(
        self,
        x: &[f32],
        heads: usize,
        head: usize,
        tokens: Range<usize>,
    ) -> impl Iterator<Item = &[f32]> {
        let AttentionShape { tokens: sequence, head_width, .. } = self.shape;
        let [start, end] = [tokens.start, tokens.end].map(|token| self.sequence * sequence + token);
        let rows = x[start * heads * head_width..end * heads * head_width].chunks_exact(heads * head_width);
        rows.map(
            #[inline(always)]
            move |row| &row[head * head_width..][..head_width],
        )
    }

    /// `dense =` the rows; the columns behind the head width stay 0.
    #[inline(always)]
    fn gather<'a>(self, dense: &mut [f32], rows: impl Iterator<Item = &'a [f32]>) {
        for (dense, row) in dense.chunks_exact_mut(self.width).zip(rows) {
            dense[..row.len()].copy_from_slice(row);
        }
    }

    /// `dense =` the rows, each rotated by its position; the first is that of token `first`.
    #[inline(always)]
    fn gather_rotated<'a>(
        self,
        dense: &mut [f32],
        rows: impl Iterator<Item = &'a [f32]>,
        first: usize,
        table: &rope::Table,
    ) {
        for (token, (dense, row)) in (first..).zip(dense.chunks_exact_mut(self.width).zip(rows)) {
            table.at(token).rotate(&mut dense[..row.len()], row);
        }
    }

    /// `turned[e, rows] = dense[rows, e]`, of a block.
    #[inline(always)]
    fn turn(self, turned: &mut [f32], dense: &[f32]) {
        let turned = turned.as_chunks_mut::<BLOCK_ROWS>().0;
        for (row, dense) in dense.chunks_exact(SQUARE * self.width).enumerate() {
            for (column, turned) in turned.as_chunks_mut::<SQUARE>().0.iter_mut().enumerate() {
                let mut square = [[0.0; SQUARE]; SQUARE];
                for r in 0..SQUARE {
                    let from = &dense[r * self.width + column * SQUARE..][..SQUARE];
                    for c in 0..SQUARE {
                        square[c][r] = from[c];
                    }
                }
                for c in 0..SQUARE {
                    turned[c][row * SQUARE..][..SQUARE].copy_from_slice(&square[c]);
                }
            }
        }
    }
}

/// Consecutive query rows, and the keys that the last row sees.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: usize,
    rows: usize,
    job: Job,
    scale: f32,
}

impl Block {
    fn new(first: usize, job: Job) -> Self {
        let rows = BLOCK_ROWS.min(job.shape.tokens - first);
        Self { first, rows, job, scale: 1.0 / (job.shape.head_width as f32).sqrt() }
    }

    /// Keys that some row sees.
    fn seen(self) -> usize {
        self.first + self.rows
    }

    /// Keys that some row of the half of `row` sees; scores of later keys are not computed.
    fn seen_by(self, row: usize) -> usize {
        if row < HALF_ROWS { self.first + self.rows.min(HALF_ROWS) } else { self.seen() }
    }

    /// The columns of query head `head` of the block's rows of `x[N, h*e]`
    #[inline(always)]
    fn query_rows(self, x: &[f32], head: usize) -> impl Iterator<Item = &[f32]> {
        let job = self.job;
        job.rows(x, job.shape.heads, job.query_head(head), self.first..self.seen())
    }

    /// `scores[keys, rows] = k[keys, e] q[e, rows]`, unscaled; scores of keys that the first half does not see are
    /// left as they are.
    fn scores(self, scores: &mut [f32], q: &[f32], k: &[f32]) {
        let Job { width, shape, arch, .. } = self.job;
        let half = self.seen_by(0);
        for (key, end, column) in [(0, half, 0), (half, self.seen(), HALF_ROWS)] {
            if key == end {
                continue;
            }
            SmallProduct {
                c: &mut scores[key * BLOCK_ROWS + column..],
                c_stride: BLOCK_ROWS,
                a: MatrixView::rows(&k[key * width..], width),
                b: &q[column..],
                b_stride: BLOCK_ROWS,
                m: end - key,
                n: BLOCK_ROWS - column,
                k: shape.head_width,
                write: Write::Set,
            }
            .run(arch);
        }
    }

    /// `result[rows, e] = p[keys, rows]^T x[keys, e]`
    fn times_rows(self, result: &mut [f32], p: &[f32], x: &[f32]) {
        let Job { width, arch, .. } = self.job;
        for row in (0..self.rows).step_by(HALF_ROWS) {
            SmallProduct {
                c: &mut result[row * width..],
                c_stride: width,
                a: MatrixView::rows(&p[row..], BLOCK_ROWS).transposed(),
                b: x,
                b_stride: width,
                m: HALF_ROWS.min(self.rows - row),
                n: width,
                k: self.seen_by(row),
                write: Write::Set,
            }
            .run(arch);
        }
    }

    /// `sum[keys, e] += p[keys, rows] x[rows, e]`
    fn add_rows(self, sum: &mut [f32], p: &[f32], x: &[f32]) {
        let Job { width, arch, .. } = self.job;
        let half = self.seen_by(0);
        for (key, end, row) in [(0, half, 0), (half, self.seen(), HALF_ROWS)] {
            if key == end {
                continue;
            }
            SmallProduct {
                c: &mut sum[key * width..],
                c_stride: width,
                a: MatrixView::rows(&p[key * BLOCK_ROWS + row..], BLOCK_ROWS),
                b: &x[row * width..],
                b_stride: width,
                m: end - key,
                n: width,
                k: self.rows - row,
                write: Write::Add,
            }
            .run(arch);
        }
    }
}

#[inline(always)]
fn store(out: &mut Columns<'_>, result: &[f32], block: Block, head: usize) {
    let width = block.job.shape.head_width;
    for (r, row) in result.chunks_exact(block.job.width).take(block.rows).enumerate() {
        out.row(block.first + r)[head * width..][..width].copy_from_slice(&row[..width]);
    }
}

/// [`store`] of gradients by rotated queries, rotated back.
#[inline(always)]
fn store_back(out: &mut Columns<'_>, result: &[f32], block: Block, head: usize, table: &rope::Table) {
    let width = block.job.shape.head_width;
    for (r, row) in result.chunks_exact(block.job.width).take(block.rows).enumerate() {
        let token = block.first + r;
        table.at(token).rotate_back(&mut out.row(token)[head * width..][..width], &row[..width]);
    }
}

/// Turns the scores of a block's rows into probabilities in place, 0 for keys that a row does not see, and returns the
/// log-sum-exp of the scaled scores.
#[derive(Debug)]
struct Softmax<'a> {
    keys: &'a mut [f32],
    block: Block,
}

impl WithSimd for Softmax<'_> {
    type Output = Row;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> Row {
        let Self { keys, block } = self;
        let vectors = BLOCK_ROWS / S::F32_LANES;
        let keys = S::as_mut_simd_f32s(keys).0;
        let (mut tops, mut sums) = ([0.0; BLOCK_ROWS], [0.0; BLOCK_ROWS]);
        let top_of = S::as_mut_simd_f32s(&mut tops).0;
        let sum_of = S::as_mut_simd_f32s(&mut sums).0;
        let [zero, scale] = [0.0, block.scale].map(
            #[inline(always)]
            |x| simd.splat_f32s(x),
        );
        for v in 0..vectors {
            let row = S::as_simd_f32s(&ROWS).0[v];
            let seen = block.seen_by(v * S::F32_LANES);
            let (all, some) = keys[..seen * vectors].split_at_mut(block.first * vectors);
            let mut top = simd.splat_f32s(f32::NEG_INFINITY);
            for key in all.chunks_exact(vectors) {
                top = simd.select_f32s(simd.less_than_f32s(top, key[v]), key[v], top);
            }
            for (key, x) in some.chunks_exact_mut(vectors).enumerate() {
                let hidden = simd.less_than_f32s(row, simd.splat_f32s(key as f32));
                x[v] = simd.select_f32s(hidden, simd.splat_f32s(f32::NEG_INFINITY), x[v]);
                top = simd.select_f32s(simd.less_than_f32s(top, x[v]), x[v], top);
            }
            // In the order of `lanes::sum`; zeros leave it alone.
            let mut parts = [zero; LANES];
            for keys in all.chunks_mut(LANES * vectors) {
                for (part, key) in parts.iter_mut().zip(keys.chunks_exact_mut(vectors)) {
                    key[v] = exp_f32s(simd, simd.mul_f32s(simd.sub_f32s(key[v], top), scale));
                    *part = simd.add_f32s(*part, key[v]);
                }
            }
            for (index, x) in some.chunks_exact_mut(vectors).enumerate() {
                let hidden = simd.less_than_f32s(row, simd.splat_f32s(index as f32));
                let power = exp_f32s(simd, simd.mul_f32s(simd.sub_f32s(x[v], top), scale));
                x[v] = simd.select_f32s(hidden, zero, power);
                parts[index % LANES] = simd.add_f32s(parts[index % LANES], x[v]);
            }
            let mut half = LANES / 2;
            while half > 0 {
                for i in 0..half {
                    parts[i] = simd.add_f32s(parts[i], parts[i + half]);
                }
                half /= 2;
            }
            (top_of[v], sum_of[v]) = (top, parts[0]);
            let factor = simd.div_f32s(simd.splat_f32s(1.0), parts[0]);
            for key in keys[..seen * vectors].chunks_exact_mut(vectors) {
                key[v] = simd.mul_f32s(key[v], factor);
            }
        }
        let mut lses = [0.0; BLOCK_ROWS];
        for r in 0..BLOCK_ROWS {
            lses[r] = (ln_f64(f64::from(sums[r])) + f64::from(tops[r] * block.scale)) as f32;
        }
        lses
    }
}

/// Scores become probabilities `p`; their gradients `dp` become `p (dp - delta) scale`; both are 0 for keys that a row
/// does not see.
#[derive(Debug)]
struct SoftmaxBackward<'a> {
    p: &'a mut [f32],
    dp: &'a mut [f32],
    lses: Row,
    deltas: Row,
    block: Block,
}

impl WithSimd for SoftmaxBackward<'_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let Self { p, dp, lses, deltas, block } = self;
        let vectors = BLOCK_ROWS / S::F32_LANES;
        let [p, dp] = [p, dp].map(
            #[inline(always)]
            |x| S::as_mut_simd_f32s(x).0,
        );
        let [lses, deltas] = [&lses, &deltas].map(
            #[inline(always)]
            |x| S::as_simd_f32s(x).0,
        );
        let [zero, scale] = [0.0, block.scale].map(
            #[inline(always)]
            |x| simd.splat_f32s(x),
        );
        for v in 0..vectors {
            let row = S::as_simd_f32s(&ROWS).0[v];
            let (lse, delta) = (simd.neg_f32s(lses[v]), deltas[v]);
            let seen = block.seen_by(v * S::F32_LANES);
            let keys = p.chunks_exact_mut(vectors).zip(dp.chunks_exact_mut(vectors)).take(seen).enumerate();
            for (key, (p, dp)) in keys {
                let power = exp_f32s(simd, simd.mul_add_f32s(p[v], scale, lse));
                let slope = simd.mul_f32s(simd.mul_f32s(power, simd.sub_f32s(dp[v], delta)), scale);
                let hidden = simd.less_than_f32s(row, simd.splat_f32s(key as f32 - block.first as f32));
                p[v] = simd.select_f32s(hidden, zero, power);
                dp[v] = simd.select_f32s(hidden, zero, slope);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::BLOCK_ROWS;
    use crate::{
        AttentionShape, Backend,
        cpu::check::{close, cpu, gradients, rotated, same_on_any_threads, tensor, wide},
    };

    const fn shape(
        batch: usize,
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head_width: usize,
    ) -> AttentionShape {
        AttentionShape { batch, tokens, heads, kv_heads, head_width, theta: 1e4 }
    }

    /// `inputs` are `q`, `k` and `v`; gives `out` and `lse`.
    fn naive(inputs: &[Vec<f64>], shape: AttentionShape) -> [Vec<f64>; 2] {
        let AttentionShape { batch, tokens, heads, kv_heads, head_width: e, .. } = shape;
        let (q, k) = (rotated(&inputs[0], heads, shape), rotated(&inputs[1], kv_heads, shape));
        let (mut out, mut lse) = (vec![0.0; shape.lens()[0]], vec![0.0; shape.lens()[2]]);
        for (b, t, h) in
            (0..batch * tokens * heads).map(|i| (i / heads / tokens, i / heads % tokens, i % heads))
        {
            let query = ((b * tokens + t) * heads + h) * e;
            let key = |s: usize| ((b * tokens + s) * kv_heads + h / (heads / kv_heads)) * e;
            let score = |s: usize| -> f64 {
                let product: f64 = (0..e).map(|i| q[query + i] * k[key(s) + i]).sum();
                product / (e as f64).sqrt()
            };
            let sum: f64 = (0..=t).map(|s| score(s).exp()).sum();
            lse[(b * tokens + t) * heads + h] = sum.ln();
            for s in 0..=t {
                let p = score(s).exp() / sum;
                (0..e).for_each(|i| out[query + i] += p * inputs[2][key(s) + i]);
            }
        }
        [out, lse]
    }

    #[test]
    fn forward_agrees_with_plain_loops() {
        let block = BLOCK_ROWS;
        let cases = [
            shape(1, 1, 1, 1, 2),
            shape(2, 7, 4, 2, 6),
            shape(1, block, 2, 2, 16),
            shape(2, block + 1, 3, 1, 10),
            shape(1, 3 * block - 5, 4, 2, 32),
        ];
        for shape in cases {
            let [queries, keys, sums] = shape.lens();
            let (q, k, v) = (tensor(queries, 1), tensor(keys, 2), tensor(keys, 3));
            let (mut out, mut lse) = (tensor(queries, 4), tensor(sums, 5));
            cpu().attention(&mut out, &mut lse, &q, &k, &v, shape).unwrap();
            let expected = naive(&[&q, &k, &v].map(|x| wide(x.as_slice())), shape);
            close(out.as_slice(), &expected[0], 2e-6);
            close(lse.as_slice(), &expected[1], 2e-6);
        }
    }

    #[test]
    fn backward_agrees_with_central_differences() {
        for shape in [shape(1, 1, 1, 1, 2), shape(2, 5, 4, 2, 6), shape(1, BLOCK_ROWS + 3, 2, 1, 4)] {
            let [queries, keys, sums] = shape.lens();
            let (q, k, v, dout) = (tensor(queries, 1), tensor(keys, 2), tensor(keys, 3), tensor(queries, 4));
            let (mut out, mut lse) = (tensor(queries, 5), tensor(sums, 6));
            cpu().attention(&mut out, &mut lse, &q, &k, &v, shape).unwrap();
            let (mut dq, mut dk, mut dv) = (tensor(queries, 7), tensor(keys, 8), tensor(keys, 9));
            cpu()
                .attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape)
                .unwrap();
            let inputs = [&q, &k, &v].map(|x| x.as_slice());
            let slopes = gradients(|inputs| naive(inputs, shape)[0].clone(), &inputs, dout.as_slice());
            for (got, want) in [dq, dk, dv].iter().zip(&slopes) {
                close(got.as_slice(), want, 5e-6);
            }
        }
    }

    #[test]
    fn large_scores_do_not_overflow() {
        let shape = shape(1, 40, 1, 1, 4);
        let [queries, keys, sums] = shape.lens();
        let [mut q, mut k] = [tensor(queries, 1), tensor(keys, 2)];
        q.as_mut_slice().iter_mut().chain(k.as_mut_slice()).for_each(|x| *x *= 100.0);
        let (mut out, mut lse) = (tensor(queries, 4), tensor(sums, 5));
        cpu().attention(&mut out, &mut lse, &q, &k, &tensor(keys, 3), shape).unwrap();
        assert!(out.as_slice().iter().chain(lse.as_slice()).all(|x| x.is_finite()));
    }

    #[test]
    fn threads_do_not_show() {
        let shape = shape(3, 2 * BLOCK_ROWS + 9, 4, 2, 16);
        let [queries, keys, sums] = shape.lens();
        let (q, k, v, dout) = (tensor(queries, 1), tensor(keys, 2), tensor(keys, 3), tensor(queries, 4));
        same_on_any_threads(|cpu| {
            let (mut out, mut lse) = (tensor(queries, 5), tensor(sums, 6));
            cpu.attention(&mut out, &mut lse, &q, &k, &v, shape).unwrap();
            let (mut dq, mut dk, mut dv) = (tensor(queries, 7), tensor(keys, 8), tensor(keys, 9));
            cpu.attention_backward(&mut dq, &mut dk, &mut dv, &dout, &q, &k, &v, &out, &lse, shape).unwrap();
            vec![out, lse, dq, dk, dv]
        });
    }
}
