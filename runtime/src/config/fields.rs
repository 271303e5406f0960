//! The fields of a run file: name, comment, and value in TOML.

use std::fmt::Display;
use std::path::Path;

use swarmline_scheduler::{WeightsPolicy, router};
use toml::Value;

use super::words::Word;
use super::{Feed, Join, Kind, Mode, OptimizerKind, Packing, Run, Tokenizer};

/// The word for [`Tokenizer::Bytes`]; any other text is the path of a tokenizer file.
pub(super) const BYTES: &str = "bytes";
/// The word for [`Join::Anyone`]; the field can also be a list of keys.
pub(super) const ANYONE: &str = "anyone";

/// The word for [`Feed::First`].
pub(super) const FIRST: &str = "first";
/// The word for [`Feed::Members`]; the field can also be a list of keys.
pub(super) const MEMBERS: &str = "members";

/// A table of the run file; the section without a name holds the fields at the top.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

/// A field of a section.
pub(super) struct Field {
    pub(super) name: &'static str,
    /// Comment in an annotated file: one line.
    pub(super) says: &'static str,
    /// The words that the field may be; empty if it is no choice of words.
    pub(super) words: fn() -> Vec<&'static str>,
    /// Whether all processes of a run must agree on it.
    pub(super) shared: bool,
    /// The value in TOML.
    pub(super) value: fn(&Run) -> String,
}

impl Field {
    const fn shared(name: &'static str, says: &'static str, value: fn(&Run) -> String) -> Self {
        Self { name, says, words: Vec::new, shared: true, value }
    }

    const fn own(name: &'static str, says: &'static str, value: fn(&Run) -> String) -> Self {
        Self { name, says, words: Vec::new, shared: false, value }
    }

    const fn choice<T: Word>(name: &'static str, says: &'static str, value: fn(&Run) -> String) -> Self {
        Self { name, says, words: T::words, shared: true, value }
    }
}

/// All sections, in the order they are written.
pub(super) const SECTIONS: &[Section] = &[
    Section { name: "", fields: TOP },
    Section { name: "model", fields: MODEL },
    Section { name: "pipeline", fields: PIPELINE },
    Section { name: "boundary", fields: BOUNDARY },
    Section { name: "batch", fields: BATCH },
    Section { name: "optimizer", fields: OPTIMIZER },
    Section { name: "averaging", fields: AVERAGING },
    Section { name: "data", fields: DATA },
    Section { name: "policy", fields: POLICY },
];

const TOP: &[Field] = &[
    Field::shared("name", "Name shown to people.", |run| text(&run.name)),
    Field::shared("seed", "Seed of weights, batches, basis, anchors and rounding.", |run| plain(run.seed)),
];

const MODEL: &[Field] = &[
    Field::shared("hidden_size", "Width of the residual stream.", |run| plain(run.model.hidden_size)),
    Field::shared("num_hidden_layers", "Transformer layers.", |run| plain(run.model.num_hidden_layers)),
    Field::shared("num_attention_heads", "Query heads; divides hidden_size into even parts.", |run| {
        plain(run.model.num_attention_heads)
    }),
    Field::shared("num_key_value_heads", "Key-value heads; divides num_attention_heads.", |run| {
        plain(run.model.num_key_value_heads)
    }),
    Field::shared("intermediate_size", "Width of the feed-forward layer.", |run| {
        plain(run.model.intermediate_size)
    }),
    Field::shared("max_position_embeddings", "Tokens of a sequence.", |run| {
        plain(run.model.max_position_embeddings)
    }),
    Field::shared("vocab_size", "Entries of the vocabulary; at least those of the tokenizer.", |run| {
        plain(run.model.vocab_size)
    }),
    Field::shared("rope_theta", "Base of the rotary frequencies.", |run| real(run.model.rope_theta)),
    Field::shared("rms_norm_eps", "Added to the mean square in RMSNorm.", |run| real(run.model.rms_norm_eps)),
];

const PIPELINE: &[Field] = &[
    Field::shared("stages", "Parts the layers are cut into.", |run| plain(run.pipeline.stages)),
    Field::shared("layers_per_stage", "Layers of each stage, in order.", |run| {
        list(&run.pipeline.layers_per_stage, |layers| plain(layers))
    }),
    Field::shared("replicas", "Replicas that serve a stage, at most.", |run| plain(run.pipeline.replicas)),
    Field::choice::<Mode>(
        "mode",
        "Whether stages wait: synchronous drains the pipeline before every step.",
        |run| word(run.pipeline.mode),
    ),
    Field::shared("max_in_flight", "Microbatches in flight, at most.", |run| {
        plain(run.pipeline.max_in_flight)
    }),
    Field::shared(
        "initial_in_flight",
        "The same at the beginning; raised up to max_in_flight while throughput rises.",
        |run| plain(run.pipeline.initial_in_flight),
    ),
    Field::shared("gradient_accumulation_steps", "Microbatches per optimizer step of a replica.", |run| {
        plain(run.pipeline.gradient_accumulation_steps)
    }),
    Field::shared("activation_checkpointing", "Recompute the forward in backward: less memory.", |run| {
        plain(run.pipeline.activation_checkpointing)
    }),
    Field::choice::<router::Policy>("router", "How the next replica of a microbatch is chosen.", |run| {
        word(run.pipeline.router)
    }),
];

const BOUNDARY: &[Field] = &[
    Field::choice::<Kind>(
        "kind",
        "Part of the stream that crosses a cut: all, its coordinates, or none (a control).",
        |run| word(run.boundary.kind),
    ),
    Field::shared("rank", "Numbers per token that cross, for subspace.", |run| plain(run.boundary.rank)),
    Field::choice::<Packing>("packing", "How numbers become bytes.", |run| word(run.boundary.packing)),
    Field::shared("anchor_scale", "Standard deviation of the frozen anchor.", |run| {
        real(run.boundary.anchor_scale)
    }),
];

const BATCH: &[Field] =
    &[Field::shared("sequences", "Sequences of a microbatch.", |run| plain(run.batch.sequences))];

const OPTIMIZER: &[Field] = &[
    Field::choice::<OptimizerKind>("kind", "Update rule.", |run| word(run.optimizer.kind)),
    Field::shared("learning_rate", "Peak learning rate.", |run| real(run.optimizer.learning_rate)),
    Field::shared("warmup_steps", "Steps of linear warm-up.", |run| plain(run.optimizer.warmup_steps)),
    Field::shared("steps", "Steps of the run; the cosine ends here.", |run| plain(run.optimizer.steps)),
    Field::shared("min_lr_ratio", "Floor of the schedule as a ratio to the peak.", |run| {
        real(run.optimizer.min_lr_ratio)
    }),
    Field::shared("beta1", "Decay of the first moment.", |run| real(run.optimizer.beta1)),
    Field::shared("beta2", "Decay of the second moment.", |run| real(run.optimizer.beta2)),
    Field::shared("epsilon", "Added to the denominator.", |run| real(run.optimizer.epsilon)),
    Field::shared("weight_decay", "Decoupled decay of matrices.", |run| real(run.optimizer.weight_decay)),
    Field::shared("momentum_decay", "Momentum decay psi of nadamw's schedule.", |run| {
        real(run.optimizer.momentum_decay)
    }),
    Field::shared(
        "max_grad_norm_ratio",
        "Clip a microbatch's gradient at this multiple of the running median norm; 0 is off.",
        |run| real(run.optimizer.max_grad_norm_ratio),
    ),
    Field::shared(
        "skip_grad_norm_ratio",
        "Leave out a microbatch's gradient beyond this multiple of the running median norm; 0 is off.",
        |run| real(run.optimizer.skip_grad_norm_ratio),
    ),
    Field::shared("max_grad_norm", "Clip a stage's gradient at this norm; 0 is off.", |run| {
        real(run.optimizer.max_grad_norm)
    }),
    Field::shared("staleness_power", "Divide the rate by staleness to this power; 0 is off.", |run| {
        real(run.optimizer.staleness_power)
    }),
];

const AVERAGING: &[Field] = &[
    Field::shared("interval", "Finished microbatches between two averaging rounds; 0 is off.", |run| {
        plain(run.averaging.interval)
    }),
    Field::shared("fragments", "Fragments of the parameters; a round averages one.", |run| {
        plain(run.averaging.fragments)
    }),
];

const DATA: &[Field] = &[
    Field::own("paths", "Files or directories of text, relative to the folder of this file.", |run| {
        list(&run.data.paths, |path| self::path(path))
    }),
    Field::shared(
        "extensions",
        "File name endings to take from directories; an empty list takes every file.",
        |run| list(&run.data.extensions, |ending| text(ending)),
    ),
    Field::own("tokenizer", "bytes, or the path of a tokenizer.json.", |run| match &run.data.tokenizer {
        Tokenizer::Bytes => text(BYTES),
        Tokenizer::File(file) => path(file),
    }),
    Field::shared("heldout", "Share of the text held out for evaluation.", |run| real(run.data.heldout)),
    Field::shared("heldout_microbatches", "Microbatches of one evaluation.", |run| {
        plain(run.data.heldout_microbatches)
    }),
];

const POLICY: &[Field] = &[
    Field::own("join", "Peers that may join: anyone, or a list of public keys in hexadecimal.", |run| {
        match &run.policy.join {
            Join::Anyone => text(ANYONE),
            Join::Keys(keys) => list(keys, |key| text(key)),
        }
    }),
    Field::shared(
        "feed",
        "Peers that may feed the run: first (the first feeder alone), members (all that may join), or a list of keys.",
        |run| match &run.policy.feed {
            Feed::First => text(FIRST),
            Feed::Members => text(MEMBERS),
            Feed::Keys(keys) => list(keys, |key| text(key)),
        },
    ),
    Field::choice::<WeightsPolicy>(
        "weights",
        "open (a keeper may keep the whole model) or split (each key keeps one stage).",
        |run| word(run.policy.weights),
    ),
];

/// The value in TOML, quoted and escaped.
pub(super) fn text(value: &str) -> String {
    Value::String(value.to_owned()).to_string()
}

fn word(value: impl Word) -> String {
    text(value.word())
}

fn path(value: &Path) -> String {
    text(&value.to_string_lossy())
}

/// A whole number, `true` or `false`.
fn plain(value: impl Display) -> String {
    value.to_string()
}

/// The shortest decimal that reads back as the same `f32`; always with a point or an exponent, as TOML asks.
fn real(value: f32) -> String {
    format!("{value:?}")
}

fn list<T>(values: &[T], one: impl Fn(&T) -> String) -> String {
    format!("[{}]", values.iter().map(one).collect::<Vec<_>>().join(", "))
}
