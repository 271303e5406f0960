//! The models that are measured; `torch_llama.py`, the peer, has the same table.

use swarmline_kernels::{AttentionShape, LinearShape};

use crate::config::{
    Averaging, Batch, Boundary, Data, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing, Pipeline,
    Policy, Run, Stash,
};

/// A model of the benchmark by its letter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Size {
    /// Width 64, 4 layers, 32 tokens: for trials.
    T,
    /// Width 256, 6 layers, 128 tokens, bytes.
    S,
    /// Width 512, 8 layers, 256 tokens, vocabulary 4096.
    M,
    /// Width 1024, 8 layers, 512 tokens, vocabulary 4096.
    L,
}

/// Sequences of a microbatch.
pub(super) const SEQUENCES: usize = 16;

impl Size {
    /// As on the command line and in files.
    #[must_use]
    pub fn letter(self) -> &'static str {
        match self {
            Self::T => "t",
            Self::S => "s",
            Self::M => "m",
            Self::L => "l",
        }
    }

    /// The sizes of the model.
    #[must_use]
    pub fn model(self) -> Model {
        let [width, layers, heads, kv_heads, ffn, context, vocab] = match self {
            Self::T => [64, 4, 4, 2, 176, 32, 256],
            Self::S => [256, 6, 8, 8, 688, 128, 256],
            Self::M => [512, 8, 8, 4, 1376, 256, 4096],
            Self::L => [1024, 8, 16, 4, 2816, 512, 4096],
        };
        let (rope_theta, norm_epsilon) = (10_000.0, 1e-5);
        Model { width, layers, heads, kv_heads, ffn, context, vocab, rope_theta, norm_epsilon }
    }

    /// The whole model as one stage, stepping after every microbatch with the optimizer a run has by default.
    #[must_use]
    pub fn run(self) -> Run {
        let model = self.model();
        Run {
            name: format!("bench-{}", self.letter()),
            seed: 0,
            pipeline: Pipeline {
                stages: 1,
                layers_per_stage: vec![model.layers],
                replicas: 1,
                mode: Mode::Asynchronous,
                window: 1,
                microbatches_per_update: 1,
                stash: Stash::Activations,
            },
            boundary: Boundary {
                kind: Kind::Identity,
                code: self.code(),
                packing: Packing::Bf16,
                anchor_scale: 0.02,
            },
            batch: Batch { sequences: SEQUENCES },
            optimizer: Optimizer::of(OptimizerKind::NAdamW, Mode::Asynchronous, 1000),
            averaging: Averaging { every: 0, sets: 20 },
            data: Data::of(Vec::new()),
            policy: Policy { join: Join::Anyone },
            model,
        }
    }

    /// Rows `N = B * T` of a step.
    #[must_use]
    pub fn rows(self) -> usize {
        SEQUENCES * self.model().context
    }

    /// `g * e`
    pub(super) fn kv_width(self) -> usize {
        let model = self.model();
        model.width / model.heads * model.kv_heads
    }

    /// Width of a code in front of a cut: a run's default.
    pub(super) fn code(self) -> usize {
        self.model().width / 8
    }

    pub(super) fn linear(self, inputs: usize, outputs: usize) -> LinearShape {
        LinearShape { rows: self.rows(), inputs, outputs }
    }

    pub(super) fn attention(self) -> AttentionShape {
        let model = self.model();
        AttentionShape {
            batch: SEQUENCES,
            tokens: model.context,
            heads: model.heads,
            kv_heads: model.kv_heads,
            head_width: model.width / model.heads,
            theta: model.rope_theta,
        }
    }
}
