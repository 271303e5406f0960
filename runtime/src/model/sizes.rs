//! The sizes of a shard's operations, in one place.

use swarmline_kernels::{AttentionShape, LinearShape};

use crate::config::Run;

/// Sizes that all layers of a run share.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    /// `N = B * T`
    pub(super) rows: usize,
    pub(super) batch: usize,
    pub(super) tokens: usize,
    /// `d`, also `h * e`
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) head_width: usize,
    pub(super) ffn: usize,
    pub(super) vocab: usize,
    pub(super) theta: f32,
    pub(super) epsilon: f32,
}

impl Sizes {
    pub(super) fn new(run: &Run) -> Self {
        let model = &run.model;
        Self {
            rows: run.tokens_per_microbatch(),
            batch: run.batch.sequences,
            tokens: model.max_position_embeddings,
            width: model.hidden_size,
            heads: model.num_attention_heads,
            kv_heads: model.num_key_value_heads,
            head_width: model.head_width(),
            ffn: model.intermediate_size,
            vocab: model.vocab_size,
            theta: model.rope_theta,
            epsilon: model.rms_norm_eps,
        }
    }

    /// `g * e`
    pub(super) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }

    pub(super) fn linear(&self, inputs: usize, outputs: usize) -> LinearShape {
        LinearShape { rows: self.rows, inputs, outputs }
    }

    /// Of the logits.
    pub(super) fn head(&self) -> LinearShape {
        self.linear(self.width, self.vocab)
    }

    pub(super) fn attention(&self) -> AttentionShape {
        AttentionShape {
            batch: self.batch,
            tokens: self.tokens,
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_width: self.head_width,
            theta: self.theta,
        }
    }
}
