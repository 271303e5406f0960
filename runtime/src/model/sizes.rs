//! Shapes of the operations of a run, in one place.

use swarmline_kernels::{AttentionShape, LinearShape};

use crate::config::{Model, Run};

/// Sizes that all layers of a run share.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    /// Tokens of a microbatch, `N = B * T`.
    pub(crate) rows: usize,
    /// `B`
    sequences: usize,
    pub(crate) model: Model,
}

impl Sizes {
    pub(crate) fn new(run: &Run) -> Self {
        Self { rows: run.tokens_per_microbatch(), sequences: run.batch.sequences, model: run.model }
    }

    pub(crate) fn linear(&self, inputs: usize, outputs: usize) -> LinearShape {
        LinearShape { rows: self.rows, inputs, outputs }
    }

    /// Shape of the product that makes the logits.
    pub(crate) fn head(&self) -> LinearShape {
        self.linear(self.model.hidden_size, self.model.vocab_size)
    }

    pub(crate) fn attention(&self) -> AttentionShape {
        AttentionShape {
            batch: self.sequences,
            tokens: self.model.max_position_embeddings,
            heads: self.model.num_attention_heads,
            kv_heads: self.model.num_key_value_heads,
            head_width: self.model.head_width(),
            theta: self.model.rope_theta,
        }
    }
}
