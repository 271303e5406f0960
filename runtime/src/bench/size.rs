//! The models that are measured; `torch_llama.py` has the same table.

use swarmline_scheduler::WeightsPolicy;

use crate::config::{
    Averaging, Batch, Boundary, Data, Feed, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing,
    Pipeline, Policy, Run,
};
use crate::model::Sizes;

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
    /// Name of the model on the command line and in files.
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
        let [width, layers, heads, kv_heads, ffn, tokens, vocab] = match self {
            Self::T => [64, 4, 4, 2, 176, 32, 256],
            Self::S => [256, 6, 8, 8, 688, 128, 256],
            Self::M => [512, 8, 8, 4, 1376, 256, 4096],
            Self::L => [1024, 8, 16, 4, 2816, 512, 4096],
        };
        Model {
            hidden_size: width,
            num_hidden_layers: layers,
            num_attention_heads: heads,
            num_key_value_heads: kv_heads,
            intermediate_size: ffn,
            max_position_embeddings: tokens,
            vocab_size: vocab,
            rope_theta: 10_000.0,
            rms_norm_eps: 1e-5,
        }
    }

    /// The whole model as one stage, which steps after every microbatch with the default optimizer of a run.
    #[must_use]
    pub fn run(self) -> Run {
        let model = self.model();
        Run {
            name: format!("bench-{}", self.letter()),
            seed: 0,
            pipeline: Pipeline {
                stages: 1,
                layers_per_stage: vec![model.num_hidden_layers],
                replicas: 1,
                mode: Mode::Asynchronous,
                max_in_flight: 1,
                initial_in_flight: 1,
                gradient_accumulation_steps: 1,
                activation_checkpointing: false,
                router: Default::default(),
            },
            boundary: Boundary {
                kind: Kind::Identity,
                rank: self.rank(),
                packing: Packing::Bf16,
                anchor_scale: 0.02,
            },
            batch: Batch { sequences: SEQUENCES },
            optimizer: Optimizer::of(OptimizerKind::NAdamW, Mode::Asynchronous, 1000),
            averaging: Averaging { interval: 0, fragments: 20 },
            data: Data::of(Vec::new()),
            policy: Policy { join: Join::Anyone, feed: Feed::First, weights: WeightsPolicy::default() },
            model,
        }
    }

    /// Rows `N = B * T` of a step.
    #[must_use]
    pub fn rows(self) -> usize {
        SEQUENCES * self.model().max_position_embeddings
    }

    /// Parameters of the model.
    pub(super) fn parameters(self) -> usize {
        // A model that is measured here fits memory.
        usize::try_from(self.run().parameters()).unwrap_or(usize::MAX)
    }

    /// Rank of the column space: the default of a run.
    pub(super) fn rank(self) -> usize {
        self.model().hidden_size / 8
    }

    /// Shapes of the operations.
    pub(super) fn sizes(self) -> Sizes {
        Sizes::new(&self.run())
    }
}
