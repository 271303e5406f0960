//! Every field of a run file, once: its name, what it says to a reader, and how it is written.

use std::fmt::Display;
use std::path::Path;

use toml::Value;

use super::{Join, Kind, Mode, OptimizerKind, Packing, Run, Tokenizer};

/// A table of the run file; the one without a name holds the fields at the top.
pub(super) struct Section {
    pub(super) name: &'static str,
    pub(super) fields: &'static [Field],
}

/// A field of a section.
pub(super) struct Field {
    pub(super) name: &'static str,
    /// One line for a reader of the file.
    pub(super) says: &'static str,
    /// Whether all processes of a run must agree on it.
    pub(super) shared: bool,
    /// The value in TOML.
    pub(super) value: fn(&Run) -> String,
}

const fn shared(name: &'static str, says: &'static str, value: fn(&Run) -> String) -> Field {
    Field { name, says, shared: true, value }
}

const fn own(name: &'static str, says: &'static str, value: fn(&Run) -> String) -> Field {
    Field { name, says, shared: false, value }
}

/// All sections, in the order they are written.
pub(super) const SECTIONS: &[Section] = &[
    Section {
        name: "",
        fields: &[
            shared("name", "Name shown to people.", |run| text(&run.name)),
            shared("seed", "Seed of weights, batches, basis, anchors and rounding.", |run| number(run.seed)),
        ],
    },
    Section {
        name: "model",
        fields: &[
            shared("hidden_size", "Width of the residual stream.", |run| number(run.model.hidden_size)),
            shared("num_hidden_layers", "Transformer layers.", |run| number(run.model.num_hidden_layers)),
            shared(
                "num_attention_heads",
                "Query heads; divides hidden_size into parts of even width.",
                |run| number(run.model.num_attention_heads),
            ),
            shared("num_key_value_heads", "Key-value heads; divides num_attention_heads.", |run| {
                number(run.model.num_key_value_heads)
            }),
            shared("intermediate_size", "Width of the feed-forward layer.", |run| {
                number(run.model.intermediate_size)
            }),
            shared("max_position_embeddings", "Tokens of a sequence.", |run| {
                number(run.model.max_position_embeddings)
            }),
            shared("vocab_size", "Entries of the vocabulary; at least what the tokenizer has.", |run| {
                number(run.model.vocab_size)
            }),
            shared("rope_theta", "Base of the rotary frequencies.", |run| real(run.model.rope_theta)),
            shared("rms_norm_eps", "Added to the mean square in RMSNorm.", |run| {
                real(run.model.rms_norm_eps)
            }),
        ],
    },
    Section {
        name: "pipeline",
        fields: &[
            shared("stages", "Parts the layers are cut into.", |run| number(run.pipeline.stages)),
            shared("layers_per_stage", "Layers of each stage, in order.", |run| {
                list(&run.pipeline.layers_per_stage, |layers| number(layers))
            }),
            shared("replicas", "Replicas that serve a stage, at most.", |run| number(run.pipeline.replicas)),
            shared("mode", "asynchronous: no stage waits. synchronous: drain before every update.", |run| {
                text(mode_name(run.pipeline.mode))
            }),
            shared("max_in_flight", "Microbatches in flight, at most.", |run| {
                number(run.pipeline.max_in_flight)
            }),
            shared(
                "gradient_accumulation_steps",
                "Microbatches a replica accumulates before its optimizer steps.",
                |run| number(run.pipeline.gradient_accumulation_steps),
            ),
            shared("activation_checkpointing", "Recompute the forward in backward: less memory.", |run| {
                flag(run.pipeline.activation_checkpointing)
            }),
        ],
    },
    Section {
        name: "boundary",
        fields: &[
            shared("kind", "What crosses a cut: identity, subspace or none (the control).", |run| {
                text(kind_name(run.boundary.kind))
            }),
            shared("rank", "Numbers per token that cross, for subspace.", |run| number(run.boundary.rank)),
            shared("packing", "Numbers to bytes: f32, bf16, q8 or q4.", |run| {
                text(packing_name(run.boundary.packing))
            }),
            shared("anchor_scale", "Standard deviation of the frozen anchor.", |run| {
                real(run.boundary.anchor_scale)
            }),
        ],
    },
    Section {
        name: "batch",
        fields: &[shared("sequences", "Sequences of a microbatch.", |run| number(run.batch.sequences))],
    },
    Section {
        name: "optimizer",
        fields: &[
            shared("kind", "Update rule: nadamw or adamw.", |run| text(optimizer_name(run.optimizer.kind))),
            shared("learning_rate", "Peak learning rate.", |run| real(run.optimizer.learning_rate)),
            shared("warmup_steps", "Steps of linear warm-up.", |run| number(run.optimizer.warmup_steps)),
            shared("steps", "Steps of the run; the cosine ends here.", |run| number(run.optimizer.steps)),
            shared("min_lr_ratio", "Floor of the schedule as a ratio to the peak.", |run| {
                real(run.optimizer.min_lr_ratio)
            }),
            shared("beta1", "Decay of the first moment.", |run| real(run.optimizer.beta1)),
            shared("beta2", "Decay of the second moment.", |run| real(run.optimizer.beta2)),
            shared("epsilon", "Added to the denominator.", |run| real(run.optimizer.epsilon)),
            shared("weight_decay", "Decoupled decay of matrices.", |run| real(run.optimizer.weight_decay)),
            shared("momentum_decay", "Momentum decay psi of nadamw's schedule.", |run| {
                real(run.optimizer.momentum_decay)
            }),
            shared(
                "max_grad_norm_ratio",
                "Clip a microbatch at this multiple of the median norm; 0 is off.",
                |run| real(run.optimizer.max_grad_norm_ratio),
            ),
            shared("max_grad_norm", "Clip a stage's gradient at this norm; 0 is off.", |run| {
                real(run.optimizer.max_grad_norm)
            }),
            shared("staleness_power", "Divide the rate by staleness to this power; 0 is off.", |run| {
                real(run.optimizer.staleness_power)
            }),
        ],
    },
    Section {
        name: "averaging",
        fields: &[
            shared("interval", "Finished microbatches between averaging rounds; 0 is off.", |run| {
                number(run.averaging.interval)
            }),
            shared("fragments", "Parts the parameters are divided into; a round averages one.", |run| {
                number(run.averaging.fragments)
            }),
        ],
    },
    Section {
        name: "data",
        fields: &[
            own("paths", "Files or directories of text, relative to the folder of this file.", |run| {
                list(&run.data.paths, |path| self::path(path))
            }),
            shared(
                "extensions",
                "File name endings to take from directories; an empty list takes every file.",
                |run| list(&run.data.extensions, |ending| text(ending)),
            ),
            own("tokenizer", "bytes, or the path of a tokenizer.json.", |run| match &run.data.tokenizer {
                Tokenizer::Bytes => text("bytes"),
                Tokenizer::File(file) => path(file),
            }),
            shared("heldout", "Share of the text held out for evaluation.", |run| real(run.data.heldout)),
            shared("heldout_microbatches", "Microbatches of one evaluation.", |run| {
                number(run.data.heldout_microbatches)
            }),
        ],
    },
    Section {
        name: "policy",
        fields: &[own("join", "Who may join: anyone, or a list of public keys in hexadecimal.", |run| {
            match &run.policy.join {
                Join::Anyone => text("anyone"),
                Join::Keys(keys) => list(keys, |key| text(key)),
            }
        })],
    },
];

/// The value in TOML, quoted and escaped.
pub(super) fn text(value: &str) -> String {
    Value::String(value.to_owned()).to_string()
}

fn path(value: &Path) -> String {
    text(&value.to_string_lossy())
}

fn number(value: impl Display) -> String {
    value.to_string()
}

fn flag(value: bool) -> String {
    value.to_string()
}

/// The shortest decimal that reads back as the same `f32`; always with a point or an exponent, as TOML asks.
fn real(value: f32) -> String {
    format!("{value:?}")
}

fn list<T>(values: &[T], one: impl Fn(&T) -> String) -> String {
    format!("[{}]", values.iter().map(one).collect::<Vec<_>>().join(", "))
}

fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Asynchronous => "asynchronous",
        Mode::Synchronous => "synchronous",
    }
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Identity => "identity",
        Kind::Subspace => "subspace",
        Kind::None => "none",
    }
}

fn packing_name(packing: Packing) -> &'static str {
    match packing {
        Packing::F32 => "f32",
        Packing::Bf16 => "bf16",
        Packing::Q8 => "q8",
        Packing::Q4 => "q4",
    }
}

fn optimizer_name(kind: OptimizerKind) -> &'static str {
    match kind {
        OptimizerKind::AdamW => "adamw",
        OptimizerKind::NAdamW => "nadamw",
    }
}
