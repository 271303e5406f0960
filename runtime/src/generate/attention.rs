//! Attention of one token over the keys and values of the tokens before it, on the host.

use crate::config::Model;

/// Keys and values of one layer, of the last `max_position_embeddings` tokens. Keys are kept rotated: what a query sees
/// of a key depends on the distance of their positions alone.
#[derive(Debug)]
pub(super) struct Cache {
    keys: Vec<f32>,
    values: Vec<f32>,
    width: usize,
    window: usize,
}

impl Cache {
    pub(super) fn new(model: &Model) -> Self {
        let (width, window) = (model.kv_width(), model.max_position_embeddings);
        Self { keys: vec![0.0; window * width], values: vec![0.0; window * width], width, window }
    }

    /// Keeps key and value of the token at `position`; they take the place of those that leave the window.
    fn put(&mut self, position: usize, key: &[f32], value: &[f32]) {
        let place = position % self.window * self.width;
        self.keys[place..][..self.width].copy_from_slice(key);
        self.values[place..][..self.width].copy_from_slice(value);
    }

    /// Positions that the token at `position` sees, itself included.
    fn seen(&self, position: usize) -> std::ops::RangeInclusive<usize> {
        (position + 1).saturating_sub(self.window)..=position
    }

    fn key(&self, position: usize, head: usize, head_width: usize) -> &[f32] {
        &self.keys[position % self.window * self.width + head * head_width..][..head_width]
    }

    fn value(&self, position: usize, head: usize, head_width: usize) -> &[f32] {
        &self.values[position % self.window * self.width + head * head_width..][..head_width]
    }
}

/// Shape and rotation of the attention of a model.
#[derive(Debug)]
pub(super) struct Attention {
    heads: usize,
    heads_per_kv_head: usize,
    head_width: usize,
    /// Radians a position, of each pair of a head.
    frequencies: Vec<f64>,
    scores: Vec<f32>,
}

impl Attention {
    pub(super) fn new(model: &Model) -> Self {
        let head_width = model.head_width();
        let frequency =
            |pair: usize| f64::from(model.rope_theta).powf(-((2 * pair) as f64) / head_width as f64);
        Self {
            heads: model.num_attention_heads,
            heads_per_kv_head: model.num_attention_heads / model.num_key_value_heads,
            head_width,
            frequencies: (0..head_width / 2).map(frequency).collect(),
            scores: Vec::new(),
        }
    }

    /// `out[h*e] =` the attention of the token at `position` with the query `q[h*e]`, over the tokens in `cache` and
    /// itself, with key `k[g*e]` and value `v[g*e]`. Rotates `q` and `k`.
    pub(super) fn attend(
        &mut self,
        cache: &mut Cache,
        position: usize,
        out: &mut [f32],
        q: &mut [f32],
        k: &mut [f32],
        v: &[f32],
    ) {
        self.rotate(position, q);
        self.rotate(position, k);
        cache.put(position, k, v);
        for head in 0..self.heads {
            let of_head = head * self.head_width..(head + 1) * self.head_width;
            self.attend_head(cache, position, head, &mut out[of_head.clone()], &q[of_head]);
        }
    }

    fn attend_head(&mut self, cache: &Cache, position: usize, head: usize, out: &mut [f32], q: &[f32]) {
        let (kv_head, width) = (head / self.heads_per_kv_head, self.head_width);
        let scale = 1.0 / (width as f32).sqrt();
        self.scores.clear();
        let scores = cache.seen(position).map(|seen| scale * dot(q, cache.key(seen, kv_head, width)));
        self.scores.extend(scores);
        softmax(&mut self.scores);
        out.fill(0.0);
        for (seen, &weight) in cache.seen(position).zip(&self.scores) {
            let value = cache.value(seen, kv_head, width);
            out.iter_mut().zip(value).for_each(|(out, value)| *out += weight * value);
        }
    }

    /// Turns the half-split pairs `(i, i + e/2)` of every head by the angles of `position`.
    fn rotate(&self, position: usize, heads: &mut [f32]) {
        let half = self.head_width / 2;
        for (pair, frequency) in self.frequencies.iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            let (sin, cos) = (sin as f32, cos as f32);
            for head in heads.chunks_exact_mut(self.head_width) {
                let (a, b) = (head[pair], head[pair + half]);
                (head[pair], head[pair + half]) = (a * cos - b * sin, b * cos + a * sin);
            }
        }
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Scores become weights that sum to 1.
fn softmax(scores: &mut [f32]) {
    let largest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = (*score - largest).exp());
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
}
