//! The parameters of a run: names, shapes, initial values, and their number.

use std::ops::Range;

use swarmline_scheduler::StageIndex;

use super::{Entry, Run, Stream};

/// Standard deviation of initial weights (GPT-2's choice).
const WEIGHT_STD: f32 = 0.02;

/// One parameter of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Global name, e.g. `layers.7.attention.wq`.
    pub name: String,
    /// `[out, in]` of a matrix, `[width]` of a gain.
    pub shape: Vec<usize>,
    /// Initial value, drawn from the run seed and the name.
    pub initial: Initial,
}

/// Initial value of a parameter.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Initial {
    /// All ones: gains.
    Ones,
    /// Normal with mean 0.
    Normal {
        /// Standard deviation.
        std: f32,
    },
}

impl ParameterSpec {
    fn matrix(name: String, outputs: usize, inputs: usize, std: f32) -> Self {
        Self { name, shape: vec![outputs, inputs], initial: Initial::Normal { std } }
    }

    fn gain(name: String, width: usize) -> Self {
        Self { name, shape: vec![width], initial: Initial::Ones }
    }

    /// Number of f32.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether the parameter has no numbers; false for each parameter of a valid run.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether weight decay applies: to matrices, not to gains.
    #[must_use]
    pub fn decays(&self) -> bool {
        self.shape.len() == 2
    }
}

impl Run {
    /// The parameters of `layers`: with the embedding if the range starts at 0, with the head if it ends at the last
    /// layer. The order is fixed: embedding, layers, head.
    ///
    /// In constrained layers `wo`, `ffn.down` and `embed` keep their names and have `k` instead of `d` outputs; their
    /// entries start larger by `sqrt(d/k)`, so that `U A` has the variance of the dense weight. A layer that restarts
    /// the stream has a trained anchor. The frozen basis and anchor of the subspace follow from the seed and are no
    /// parameters.
    #[must_use]
    pub fn parameter_specs(&self, layers: Range<usize>) -> Vec<ParameterSpec> {
        let mut specs = Vec::new();
        if layers.start == 0 {
            specs.push(self.embedding());
        }
        for layer in layers.clone() {
            specs.extend(self.layer_parameters(layer));
        }
        if layers.end == self.model.num_hidden_layers {
            specs.extend(self.head());
        }
        specs
    }

    /// Number of parameters that one replica of `stage` trains.
    #[must_use]
    pub fn stage_parameters(&self, stage: StageIndex) -> u64 {
        self.parameter_specs(self.layers_of(stage)).iter().map(|spec| spec.len() as u64).sum()
    }

    /// Length of the numbers in the state of a replica of `stage`, bytes: of each parameter the weight and two moments.
    #[must_use]
    pub fn state_bytes(&self, stage: StageIndex) -> u64 {
        self.stage_parameters(stage).saturating_mul(3 * size_of::<f32>() as u64)
    }

    /// Number of parameters of the whole model, all stages together.
    #[must_use]
    pub fn parameters(&self) -> u64 {
        self.stages().map(|stage| self.stage_parameters(stage)).sum()
    }

    fn embedding(&self) -> ParameterSpec {
        let stream = self.stream(0);
        let (width, std) = (self.stream_width(stream), WEIGHT_STD * self.widening(stream));
        ParameterSpec::matrix("embed".to_owned(), self.model.vocab_size, width, std)
    }

    fn layer_parameters(&self, layer: usize) -> Vec<ParameterSpec> {
        let model = &self.model;
        let (d, f, kv_width) = (model.hidden_size, model.intermediate_size, model.kv_width());
        let stream = self.stream(layer);
        let w = self.stream_width(stream);
        // Initial writers to the residual stream shrink with depth (GPT-2), so the stream's variance does not grow.
        let writer_std = WEIGHT_STD / (2.0 * model.num_hidden_layers as f32).sqrt() * self.widening(stream);
        let name = |part: &str| format!("layers.{layer}.{part}");
        let restarts = self.entry(layer) == Entry::Restart;
        let anchor = restarts.then(|| ParameterSpec::matrix(name("anchor"), model.vocab_size, d, WEIGHT_STD));
        let block = [
            ParameterSpec::gain(name("attention_norm"), d),
            ParameterSpec::matrix(name("attention.wq"), d, d, WEIGHT_STD),
            ParameterSpec::matrix(name("attention.wk"), kv_width, d, WEIGHT_STD),
            ParameterSpec::matrix(name("attention.wv"), kv_width, d, WEIGHT_STD),
            ParameterSpec::matrix(name("attention.wo"), w, d, writer_std),
            ParameterSpec::gain(name("ffn_norm"), d),
            ParameterSpec::matrix(name("ffn.gate"), f, d, WEIGHT_STD),
            ParameterSpec::matrix(name("ffn.up"), f, d, WEIGHT_STD),
            ParameterSpec::matrix(name("ffn.down"), w, f, writer_std),
        ];
        anchor.into_iter().chain(block).collect()
    }

    fn head(&self) -> [ParameterSpec; 2] {
        let (d, vocab) = (self.model.hidden_size, self.model.vocab_size);
        [
            ParameterSpec::gain("norm".to_owned(), d),
            ParameterSpec::matrix("head".to_owned(), vocab, d, WEIGHT_STD),
        ]
    }

    /// `sqrt(d/k)` for coordinates, 1 for a dense stream.
    fn widening(&self, stream: Stream) -> f32 {
        (self.model.hidden_size as f32 / self.stream_width(stream) as f32).sqrt()
    }
}
