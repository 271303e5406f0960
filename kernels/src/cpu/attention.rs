//! Causal grouped-query attention, in blocks of query rows.
//!
//! One job is one (sequence, key-value head): it copies the keys and values it reads again and again into dense
//! scratch, and makes scores for [`BLOCK_ROWS`] queries at a time over the keys those queries may see; the
//! masked half is not computed. Backward makes the probabilities again from the stored log-sum-exp (as in Dao
//! et al., arXiv 2205.14135).

use super::{
    columns::{self, Columns},
    lanes,
    math::{exp, ln_f64},
    matrix::Matrix,
    scratch::Scratch,
    threads::Threads,
    tile::{self, Product},
};
use crate::{AttentionShape, Write};
use pulp::Arch;

/// Query rows whose scores exist at a time.
const BLOCK_ROWS: usize = 16;

/// `out[N, h*e] = softmax(q k^T / sqrt(e)) v`, `lse[N, h]`
pub(super) fn forward(
    threads: &Threads,
    scratch: &Scratch,
    out: &mut [f32],
    lse: &mut [f32],
    q: &[f32],
    k: &[f32],
    v: &[f32],
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
            let place = Place::new(index, shape, threads.arch());
            let [dense, turned, scores, result] = place.lens();
            let mut memory = scratch.take(2 * dense + turned + scores + result);
            let [k_turned, v_dense, q_dense, scores, result] =
                memory.parts([turned, dense, dense, scores, result]);
            place.turn_key_value(k_turned, k);
            place.gather_key_value(v_dense, v);
            for head in 0..group {
                place.gather_query(q_dense, q, head);
                for first in (0..tokens).step_by(BLOCK_ROWS) {
                    let block = Block::new(first, place);
                    block.scores(scores, q_dense, k_turned);
                    for (r, row) in scores.chunks_exact_mut(place.keys).take(block.rows).enumerate() {
                        let row = &mut row[..tile::align(block.seen())];
                        lse.row(first + r)[head] = softmax(row, first + r + 1, block.scale);
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
            let place = Place::new(index, shape, threads.arch());
            let [dense, turned, scores, result] = place.lens();
            let mut memory = scratch.take(6 * dense + 2 * turned + 2 * scores + result);
            let [k_dense, q_dense, out_dense, dout_dense, dk_sum, dv_sum, k_turned, v_turned, p, dp, result] =
                memory.parts([dense, dense, dense, dense, dense, dense, turned, turned, scores, scores, result]);
            place.gather_key_value(k_dense, k);
            place.turn_key_value(k_turned, k);
            place.turn_key_value(v_turned, v);
            for head in 0..group {
                place.gather_query(q_dense, q, head);
                place.gather_query(out_dense, out, head);
                place.gather_query(dout_dense, dout, head);
                for first in (0..tokens).step_by(BLOCK_ROWS) {
                    let block = Block::new(first, place);
                    block.scores(p, q_dense, k_turned);
                    block.scores(dp, dout_dense, v_turned);
                    let rows = p.chunks_exact_mut(place.keys).zip(dp.chunks_exact_mut(place.keys));
                    for (token, (p, dp)) in (first..first + block.rows).zip(rows) {
                        let row = token * place.width..(token + 1) * place.width;
                        let delta = lanes::dot(&out_dense[row.clone()], &dout_dense[row]);
                        let lse = place.lse(lse, token, head);
                        let aligned = ..tile::align(block.seen());
                        softmax_backward(&mut p[aligned], &mut dp[aligned], token + 1, lse, delta, block.scale);
                    }
                    block.add_transposed(dv_sum, p, dout_dense);
                    block.add_transposed(dk_sum, dp, q_dense);
                    block.times_rows(result, dp, k_dense);
                    store(&mut dq, result, block, head);
                }
            }
            for row in 0..tokens {
                dk.row(row).copy_from_slice(&dk_sum[row * place.width..][..head_width]);
                dv.row(row).copy_from_slice(&dv_sum[row * place.width..][..head_width]);
            }
        },
    );
}

/// Where the job of one (sequence, key-value head) finds its numbers, and the shape of its scratch.
#[derive(Clone, Copy, Debug)]
struct Place {
    sequence: usize,
    kv_head: usize,
    shape: AttentionShape,
    arch: Arch,
    /// Width of a scratch row of queries, keys or values: the head width, aligned; the rest is 0.
    width: usize,
    /// Width of a scratch row of scores: the tokens, aligned, and some more, lest the rows of turned keys of
    /// long sequences compete for the same cache lines.
    keys: usize,
}

impl Place {
    fn new(index: usize, shape: AttentionShape, arch: Arch) -> Self {
        Self {
            sequence: index / shape.kv_heads,
            kv_head: index % shape.kv_heads,
            shape,
            arch,
            width: tile::align(shape.head_width),
            keys: tile::align(shape.tokens) + tile::ALIGN,
        }
    }

    /// Lengths of scratch: dense queries, keys or values; turned keys or values; scores of a block; its result.
    fn lens(self) -> [usize; 4] {
        let AttentionShape { tokens, head_width, .. } = self.shape;
        [tokens * self.width, head_width * self.keys, BLOCK_ROWS * self.keys, BLOCK_ROWS * self.width]
    }

    /// `dense =` this head's columns of `x[N, g*e]`
    fn gather_key_value(self, dense: &mut [f32], x: &[f32]) {
        self.gather(dense, x, self.shape.kv_heads, self.kv_head);
    }

    /// `turned[e, keys] =` this head's columns of `x[N, g*e]`, as rows of scores.
    fn turn_key_value(self, turned: &mut [f32], x: &[f32]) {
        for (token, row) in self.rows(x, self.shape.kv_heads, self.kv_head).enumerate() {
            for (column, &x) in row.iter().enumerate() {
                turned[column * self.keys + token] = x;
            }
        }
    }

    /// `dense =` the columns of query head `head` of this group of `x[N, h*e]`
    fn gather_query(self, dense: &mut [f32], x: &[f32], head: usize) {
        self.gather(dense, x, self.shape.heads, self.query_head(head));
    }

    fn lse(self, lse: &[f32], token: usize, head: usize) -> f32 {
        let row = self.sequence * self.shape.tokens + token;
        lse[row * self.shape.heads + self.query_head(head)]
    }

    fn query_head(self, head: usize) -> usize {
        self.kv_head * (self.shape.heads / self.shape.kv_heads) + head
    }

    fn gather(self, dense: &mut [f32], x: &[f32], heads: usize, head: usize) {
        for (dense, row) in dense.chunks_exact_mut(self.width).zip(self.rows(x, heads, head)) {
            dense[..row.len()].copy_from_slice(row);
        }
    }

    fn rows(self, x: &[f32], heads: usize, head: usize) -> impl Iterator<Item = &[f32]> {
        let AttentionShape { tokens, head_width, .. } = self.shape;
        let rows = x.chunks_exact(heads * head_width).skip(self.sequence * tokens).take(tokens);
        rows.map(move |row| &row[head * head_width..][..head_width])
    }
}

/// Some consecutive query rows and the keys the last of them sees.
#[derive(Clone, Copy, Debug)]
struct Block {
    first: usize,
    rows: usize,
    place: Place,
    scale: f32,
}

impl Block {
    fn new(first: usize, place: Place) -> Self {
        let rows = BLOCK_ROWS.min(place.shape.tokens - first);
        Self { first, rows, place, scale: 1.0 / (place.shape.head_width as f32).sqrt() }
    }

    fn seen(self) -> usize {
        self.first + self.rows
    }

    /// `scores[rows, keys] = q[rows, e] k[e, keys]`, unscaled
    fn scores(self, scores: &mut [f32], q: &[f32], k: &[f32]) {
        let Place { width, keys, shape, arch, .. } = self.place;
        Product {
            c: scores,
            c_stride: keys,
            a: Matrix::rows(&q[self.first * width..], width),
            b: k,
            b_stride: keys,
            m: self.rows,
            n: tile::align(self.seen()),
            k: shape.head_width,
            write: Write::Set,
        }
        .run(arch);
    }

    /// `result[rows, e] = p[rows, keys] x[keys, e]`
    fn times_rows(self, result: &mut [f32], p: &[f32], x: &[f32]) {
        let Place { width, keys, arch, .. } = self.place;
        Product {
            c: result,
            c_stride: width,
            a: Matrix::rows(p, keys),
            b: x,
            b_stride: width,
            m: self.rows,
            n: width,
            k: self.seen(),
            write: Write::Set,
        }
        .run(arch);
    }

    /// `sum[keys, e] += p[rows, keys]^T x[rows, e]`
    fn add_transposed(self, sum: &mut [f32], p: &[f32], x: &[f32]) {
        let Place { width, keys, arch, .. } = self.place;
        Product {
            c: sum,
            c_stride: width,
            a: Matrix::rows(p, keys).transposed(),
            b: &x[self.first * width..],
            b_stride: width,
            m: self.seen(),
            n: width,
            k: self.rows,
            write: Write::Add,
        }
        .run(arch);
    }
}

fn store(out: &mut Columns<'_>, result: &[f32], block: Block, head: usize) {
    let width = block.place.shape.head_width;
    for (r, row) in result.chunks_exact(block.place.width).take(block.rows).enumerate() {
        out.row(block.first + r)[head * width..][..width].copy_from_slice(&row[..width]);
    }
}

/// Turns scores into probabilities in place, those beyond the first `seen` into 0; returns the log-sum-exp of the
/// scaled scores. The row has an aligned width, so that its loops leave no remainder.
#[inline(always)]
fn softmax(row: &mut [f32], seen: usize, scale: f32) -> f32 {
    row[seen..].fill(f32::NEG_INFINITY);
    let top = lanes::max(row);
    for chunk in row.as_chunks_mut::<{ tile::ALIGN }>().0 {
        for x in chunk {
            *x = exp((*x - top) * scale);
        }
    }
    // Zeros leave the partial sums alone.
    row[seen..].fill(0.0);
    let sum = lanes::sum(row);
    let factor = 1.0 / sum;
    for chunk in row.as_chunks_mut::<{ tile::ALIGN }>().0 {
        for x in chunk {
            *x *= factor;
        }
    }
    (ln_f64(f64::from(sum)) + f64::from(top * scale)) as f32
}

/// Scores become probabilities `p`; their gradients `dp` become `p (dp - delta) scale`; both 0 beyond `seen`.
#[inline(always)]
fn softmax_backward(p: &mut [f32], dp: &mut [f32], seen: usize, lse: f32, delta: f32, scale: f32) {
    let chunks = p.as_chunks_mut::<{ tile::ALIGN }>().0.iter_mut();
    for (p, dp) in chunks.zip(dp.as_chunks_mut::<{ tile::ALIGN }>().0) {
        for (p, dp) in p.iter_mut().zip(dp) {
            *p = exp(p.mul_add(scale, -lse));
            *dp = *p * (*dp - delta) * scale;
        }
    }
    p[seen..].fill(0.0);
    dp[seen..].fill(0.0);
}

#[cfg(test)]
mod tests {
    use super::BLOCK_ROWS;
    use crate::{
        AttentionShape, Backend,
        cpu::check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
    };

    const fn shape(
        batch: usize,
        tokens: usize,
        heads: usize,
        kv_heads: usize,
        head_width: usize,
    ) -> AttentionShape {
        AttentionShape { batch, tokens, heads, kv_heads, head_width }
    }

    fn lens(shape: AttentionShape) -> [usize; 3] {
        let rows = shape.batch * shape.tokens;
        let [queries, keys] = [shape.heads, shape.kv_heads].map(|heads| rows * heads * shape.head_width);
        [queries, keys, rows * shape.heads]
    }

    /// `inputs` are `q`, `k` and `v`; gives `out` and `lse`.
    fn naive(inputs: &[Vec<f64>], shape: AttentionShape) -> [Vec<f64>; 2] {
        let AttentionShape { batch, tokens, heads, kv_heads, head_width: e } = shape;
        let (mut out, mut lse) = (vec![0.0; lens(shape)[0]], vec![0.0; lens(shape)[2]]);
        for (b, t, h) in
            (0..batch * tokens * heads).map(|i| (i / heads / tokens, i / heads % tokens, i % heads))
        {
            let query = ((b * tokens + t) * heads + h) * e;
            let key = |s: usize| ((b * tokens + s) * kv_heads + h / (heads / kv_heads)) * e;
            let score = |s: usize| -> f64 {
                let product: f64 = (0..e).map(|i| inputs[0][query + i] * inputs[1][key(s) + i]).sum();
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
            shape(1, 1, 1, 1, 1),
            shape(2, 7, 4, 2, 3),
            shape(1, block, 2, 2, 16),
            shape(2, block + 1, 3, 1, 5),
            shape(1, 3 * block - 5, 4, 2, 32),
        ];
        for shape in cases {
            let [queries, keys, sums] = lens(shape);
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
        for shape in [shape(1, 1, 1, 1, 2), shape(2, 5, 4, 2, 3), shape(1, BLOCK_ROWS + 3, 2, 1, 4)] {
            let [queries, keys, sums] = lens(shape);
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
        let [queries, keys, sums] = lens(shape);
        let [mut q, mut k] = [tensor(queries, 1), tensor(keys, 2)];
        q.as_mut_slice().iter_mut().chain(k.as_mut_slice()).for_each(|x| *x *= 100.0);
        let (mut out, mut lse) = (tensor(queries, 4), tensor(sums, 5));
        cpu().attention(&mut out, &mut lse, &q, &k, &tensor(keys, 3), shape).unwrap();
        assert!(out.as_slice().iter().chain(lse.as_slice()).all(|x| x.is_finite()));
    }

    #[test]
    fn threads_do_not_show() {
        let shape = shape(3, 2 * BLOCK_ROWS + 9, 4, 2, 16);
        let [queries, keys, sums] = lens(shape);
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
