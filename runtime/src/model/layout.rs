//! Positions of the parameters of a shard in its list, and the form of the stream in each of its layers.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::config::{Entry, ParameterSpec, Run, Stream};

/// Positions of the parameters of a shard in its list.
#[derive(Clone, Debug)]
pub(super) struct Layout {
    pub(super) specs: Vec<ParameterSpec>,
    pub(super) embed: Option<Embed>,
    /// Whether the incoming code holds coordinates for a dense stream. Unpacking lifts them, so the entry of the first
    /// layer is [`Entry::Continue`].
    pub(super) lifts_code: bool,
    pub(super) layers: Vec<Layer>,
    pub(super) head: Option<Head>,
}

/// Position of the embedding and width of its rows.
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
        let specs = run.parameter_specs(layers.clone());
        let positions = Positions::of(&specs);
        let embed = (layers.start == 0)
            .then(|| Embed { table: positions.at("embed"), width: run.stream_width(run.stream(0)) });
        let mut blocks: Vec<_> = layers.clone().map(|layer| Layer::new(run, layer, &positions)).collect();
        let mut lifts_code = false;
        if let Some(first) = blocks.first_mut().filter(|first| first.entry == Entry::Lift) {
            (lifts_code, first.entry) = (true, Entry::Continue);
        }
        let head = (layers.end == run.model.num_hidden_layers)
            .then(|| Head { norm: positions.at("norm"), head: positions.at("head") });
        Self { specs, embed, lifts_code, layers: blocks, head }
    }

    /// Whether the shard keeps coordinates or lifts them, in a layer or while it unpacks a code.
    pub(super) fn needs_subspace(&self) -> bool {
        self.lifts_code || self.layers_need_anchor()
    }

    /// Whether any layer keeps coordinates or lifts them.
    pub(super) fn layers_need_anchor(&self) -> bool {
        self.layers.iter().any(|layer| layer.stream == Stream::Coordinates || layer.entry == Entry::Lift)
    }
}

impl Layer {
    fn new(run: &Run, layer: usize, positions: &Positions<'_>) -> Self {
        let (entry, stream) = (run.entry(layer), run.stream(layer));
        let at = |part: &str| positions.at(&format!("layers.{layer}.{part}"));
        Self {
            entry,
            stream,
            stream_width: run.stream_width(stream),
            anchor: (entry == Entry::Restart).then(|| at("anchor")),
            attention_norm: at("attention_norm"),
            wq: at("attention.wq"),
            wk: at("attention.wk"),
            wv: at("attention.wv"),
            wo: at("attention.wo"),
            ffn_norm: at("ffn_norm"),
            gate: at("ffn.gate"),
            up: at("ffn.up"),
            down: at("ffn.down"),
        }
    }
}

/// Positions of parameters by name.
struct Positions<'s>(BTreeMap<&'s str, usize>);

impl<'s> Positions<'s> {
    fn of(specs: &'s [ParameterSpec]) -> Self {
        Self(specs.iter().enumerate().map(|(position, spec)| (spec.name.as_str(), position)).collect())
    }

    fn at(&self, name: &str) -> usize {
        let Some(position) = self.0.get(name) else { unreachable!("the run has a parameter {name}") };
        *position
    }
}
