//! A LLaMA in f64, one loop after the other, from the files of an exported folder.
//!
//! It shares no code with the program: names, layouts, rotation and epsilon are those that `transformers` reads.

use std::collections::HashMap;
use std::path::Path;

use safetensors::SafeTensors;

/// The model in an exported folder.
pub(crate) struct Reference {
    config: serde_json::Value,
    tensors: HashMap<String, Vec<f64>>,
}

impl Reference {
    pub(crate) fn open(folder: &Path) -> Self {
        let config = std::fs::read(folder.join("config.json")).unwrap();
        let bytes = std::fs::read(folder.join("model.safetensors")).unwrap();
        let file = SafeTensors::deserialize(&bytes).unwrap();
        let numbers = |data: &[u8]| {
            data.chunks_exact(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect()
        };
        let tensors = file.iter().map(|(name, tensor)| (name.to_owned(), numbers(tensor.data()))).collect();
        Self { config: serde_json::from_slice(&config).unwrap(), tensors }
    }

    /// Cross-entropy of each id behind those before it, nats.
    pub(crate) fn losses(&self, ids: &[u32]) -> Vec<f64> {
        let logits = self.logits(&ids[..ids.len() - 1]);
        let targets = ids[1..].iter().map(|&id| id as usize);
        logits.iter().zip(targets).map(|(logits, target)| log_sum_exp(logits) - logits[target]).collect()
    }

    /// The most likely continuation of `ids`.
    pub(crate) fn greedy(&self, ids: &[u32], tokens: usize) -> Vec<u32> {
        let mut ids = ids.to_vec();
        let prompt = ids.len();
        for _ in 0..tokens {
            let logits = self.logits(&ids).pop().unwrap();
            let best = (0..logits.len()).max_by(|&a, &b| logits[a].total_cmp(&logits[b])).unwrap();
            ids.push(best as u32);
        }
        ids.split_off(prompt)
    }

    /// Logits behind every id.
    fn logits(&self, ids: &[u32]) -> Vec<Vec<f64>> {
        let width = self.count("hidden_size");
        let embed = self.tensor("model.embed_tokens");
        let mut stream: Vec<Vec<f64>> =
            ids.iter().map(|&id| embed[id as usize * width..][..width].to_vec()).collect();
        for layer in 0..self.count("num_hidden_layers") {
            let attended =
                self.attention(layer, &self.norm(&format!("model.layers.{layer}.input_layernorm"), &stream));
            add(&mut stream, &attended);
            let name = format!("model.layers.{layer}.post_attention_layernorm");
            let fed = self.feed_forward(layer, &self.norm(&name, &stream));
            add(&mut stream, &fed);
        }
        self.linear("lm_head", &self.norm("model.norm", &stream))
    }

    fn attention(&self, layer: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (heads, kv_heads) = (self.count("num_attention_heads"), self.count("num_key_value_heads"));
        let width = self.count("head_dim");
        let project = |part: &str| self.linear(&format!("model.layers.{layer}.self_attn.{part}_proj"), x);
        let (mut q, mut k, v) = (project("q"), project("k"), project("v"));
        for rows in [&mut q, &mut k] {
            rows.iter_mut().enumerate().for_each(|(position, row)| self.rotate(position, width, row));
        }
        let mut out = vec![vec![0.0; heads * width]; x.len()];
        for (position, out) in out.iter_mut().enumerate() {
            for head in 0..heads {
                let kv = head / (heads / kv_heads) * width;
                let q = &q[position][head * width..][..width];
                let score = |seen: &Vec<f64>| dot(q, &seen[kv..][..width]) / (width as f64).sqrt();
                let scores: Vec<f64> = k[..=position].iter().map(score).collect();
                let total = log_sum_exp(&scores);
                for (score, v) in scores.iter().zip(&v) {
                    for (out, v) in out[head * width..][..width].iter_mut().zip(&v[kv..]) {
                        *out += (score - total).exp() * v;
                    }
                }
            }
        }
        self.linear(&format!("model.layers.{layer}.self_attn.o_proj"), &out)
    }

    fn feed_forward(&self, layer: usize, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let project =
            |part: &str, x: &[Vec<f64>]| self.linear(&format!("model.layers.{layer}.mlp.{part}_proj"), x);
        let (mut hidden, up) = (project("gate", x), project("up", x));
        for (hidden, up) in hidden.iter_mut().flatten().zip(up.iter().flatten()) {
            *hidden *= up / (1.0 + (-*hidden).exp());
        }
        project("down", &hidden)
    }

    /// `rotate_half` of `transformers`: pairs are half a head apart.
    fn rotate(&self, position: usize, width: usize, row: &mut [f64]) {
        let theta = self.config["rope_theta"].as_f64().unwrap();
        for head in row.chunks_exact_mut(width) {
            let (low, high) = head.split_at_mut(width / 2);
            for (pair, (a, b)) in low.iter_mut().zip(high).enumerate() {
                let angle = position as f64 / theta.powf(2.0 * pair as f64 / width as f64);
                (*a, *b) = (*a * angle.cos() - *b * angle.sin(), *b * angle.cos() + *a * angle.sin());
            }
        }
    }

    fn norm(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let (gain, epsilon) = (self.tensor(name), self.config["rms_norm_eps"].as_f64().unwrap());
        let norm = |row: &Vec<f64>| {
            let scale = (dot(row, row) / row.len() as f64 + epsilon).sqrt();
            row.iter().zip(gain).map(|(x, gain)| x / scale * gain).collect()
        };
        x.iter().map(norm).collect()
    }

    fn linear(&self, name: &str, x: &[Vec<f64>]) -> Vec<Vec<f64>> {
        let weight = self.tensor(name);
        x.iter().map(|row| weight.chunks_exact(row.len()).map(|out| dot(row, out)).collect()).collect()
    }

    fn tensor(&self, name: &str) -> &[f64] {
        &self.tensors[&format!("{name}.weight")]
    }

    fn count(&self, key: &str) -> usize {
        usize::try_from(self.config[key].as_u64().unwrap()).unwrap()
    }
}

fn add(stream: &mut [Vec<f64>], more: &[Vec<f64>]) {
    stream.iter_mut().flatten().zip(more.iter().flatten()).for_each(|(x, more)| *x += more);
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn log_sum_exp(numbers: &[f64]) -> f64 {
    let largest = numbers.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    largest + numbers.iter().map(|number| (number - largest).exp()).sum::<f64>().ln()
}
