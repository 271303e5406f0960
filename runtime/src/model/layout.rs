//! Which parameters a range of layers has, under which names, in which shapes.

use std::ops::Range;

use crate::boundary::{self, Entry, Stream};
use crate::config::Run;

/// Standard deviation of initial weights (GPT-2's choice).
const WEIGHT_STD: f32 = 0.02;

/// One parameter of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct ParameterSpec {
    /// Global name, e.g. `layers.7.attention.wq`.
    pub name: String,
    /// `[out, in]` of a matrix, `[width]` of a gain.
    pub shape: Vec<usize>,
    /// Where its value starts.
    pub initial: Initial,
}

impl ParameterSpec {
    /// Number of f32.
    #[must_use]
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it holds no number; no parameter of a valid run does.
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

/// Where the value of a parameter starts.
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

/// The parameters of `layers`: with the embedding if they start at 0, with the head if they end at the last
/// layer. The order is fixed: embedding, layers, head.
///
/// In constrained layers (see [`boundary`]) `wo`, `ffn.down` and `embed` keep their names and have `k`
/// instead of `d` outputs; their entries start larger by `sqrt(d/k)`, so that `U A` has the variance of the
/// dense weight.
#[must_use]
pub fn parameters(run: &Run, layers: Range<usize>) -> Vec<ParameterSpec> {
    Layout::new(run, layers).specs
}

/// Positions of the parameters of a shard in its list.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) specs: Vec<ParameterSpec>,
    pub(super) embed: Option<Embed>,
    /// Whether the code that comes in holds coordinates for a dense stream. They are lifted while they are unpacked, so
    /// the first layer just continues.
    pub(super) lifts_code: bool,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Option<Head>,
}

/// Position of the embedding and how wide its rows are.
#[derive(Clone, Copy, Debug)]
pub(super) struct Embed {
    pub(super) table: usize,
    pub(super) width: usize,
}

/// Positions of a layer's parameters and the form of its stream.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layer {
    pub(super) entry: Entry,
    pub(super) stream: Stream,
    /// `d` or `k`
    pub(super) stream_width: usize,
    /// Present behind [`Entry::Restart`].
    pub(super) anchor: Option<usize>,
    pub(super) attention_norm: usize,
    pub(super) wq: usize,
    pub(super) wk: usize,
    pub(super) wv: usize,
    pub(super) wo: usize,
    pub(super) ffn_norm: usize,
    pub(super) gate: usize,
    pub(super) up: usize,
    pub(super) down: usize,
}

/// Positions of the final norm and the head.
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    pub(super) norm: usize,
    pub(super) head: usize,
}

impl Layout {
    pub(super) fn new(run: &Run, layers: Range<usize>) -> Self {
        let mut builder = Builder { run, specs: Vec::new() };
        let embed = (layers.start == 0).then(|| builder.embed());
        let mut blocks: Vec<_> = layers.clone().map(|layer| builder.layer(layer)).collect();
        let mut lifts_code = false;
        if let Some(first) = blocks.first_mut().filter(|first| first.entry == Entry::Lift) {
            (lifts_code, first.entry) = (true, Entry::Continue);
        }
        let head = (layers.end == run.model.num_hidden_layers).then(|| builder.head());
        Self { specs: builder.specs, embed, lifts_code, layers: blocks, head }
    }

    /// Whether coordinates are kept or turned into a dense stream anywhere.
    pub(super) fn needs_subspace(&self) -> bool {
        self.lifts_code || self.layers_need_anchor()
    }

    /// Whether any layer keeps coordinates or turns them into a dense stream.
    pub(super) fn layers_need_anchor(&self) -> bool {
        self.layers.iter().any(|layer| layer.stream == Stream::Coordinates || layer.entry == Entry::Lift)
    }
}

struct Builder<'a> {
    run: &'a Run,
    specs: Vec<ParameterSpec>,
}

impl Builder<'_> {
    fn embed(&mut self) -> Embed {
        let stream = boundary::stream(self.run, 0);
        let width = boundary::stream_width(self.run, stream);
        let std = WEIGHT_STD * self.widening(stream);
        Embed { table: self.matrix("embed".into(), self.run.model.vocab_size, width, std), width }
    }

    fn layer(&mut self, layer: usize) -> Layer {
        let model = &self.run.model;
        let (d, f) = (model.hidden_size, model.intermediate_size);
        let kv_width = d / model.num_attention_heads * model.num_key_value_heads;
        let stream = boundary::stream(self.run, layer);
        let w = boundary::stream_width(self.run, stream);
        let entry = boundary::entry(self.run, layer);
        // Writers to the residual stream shrink with depth (GPT-2), so the stream's variance does not grow.
        let writer_std = WEIGHT_STD / (2.0 * model.num_hidden_layers as f32).sqrt() * self.widening(stream);
        let vocab = model.vocab_size;
        let name = |part: &str| format!("layers.{layer}.{part}");
        Layer {
            entry,
            stream,
            stream_width: w,
            anchor: (entry == Entry::Restart).then(|| self.matrix(name("anchor"), vocab, d, WEIGHT_STD)),
            attention_norm: self.gain(name("attention_norm"), d),
            wq: self.matrix(name("attention.wq"), d, d, WEIGHT_STD),
            wk: self.matrix(name("attention.wk"), kv_width, d, WEIGHT_STD),
            wv: self.matrix(name("attention.wv"), kv_width, d, WEIGHT_STD),
            wo: self.matrix(name("attention.wo"), w, d, writer_std),
            ffn_norm: self.gain(name("ffn_norm"), d),
            gate: self.matrix(name("ffn.gate"), f, d, WEIGHT_STD),
            up: self.matrix(name("ffn.up"), f, d, WEIGHT_STD),
            down: self.matrix(name("ffn.down"), w, f, writer_std),
        }
    }

    fn head(&mut self) -> Head {
        let d = self.run.model.hidden_size;
        Head {
            norm: self.gain("norm".into(), d),
            head: self.matrix("head".into(), self.run.model.vocab_size, d, WEIGHT_STD),
        }
    }

    /// `sqrt(d/k)` for coordinates, 1 for a dense stream.
    fn widening(&self, stream: Stream) -> f32 {
        (self.run.model.hidden_size as f32 / boundary::stream_width(self.run, stream) as f32).sqrt()
    }

    fn matrix(&mut self, name: String, outputs: usize, inputs: usize, std: f32) -> usize {
        self.push(ParameterSpec { name, shape: vec![outputs, inputs], initial: Initial::Normal { std } })
    }

    fn gain(&mut self, name: String, width: usize) -> usize {
        self.push(ParameterSpec { name, shape: vec![width], initial: Initial::Ones })
    }

    fn push(&mut self, spec: ParameterSpec) -> usize {
        self.specs.push(spec);
        self.specs.len() - 1
    }
}
