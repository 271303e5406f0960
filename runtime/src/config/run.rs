//! The resolved run: defaults filled in, rules checked.

use std::ops::Range;
use std::path::PathBuf;

use strum::{IntoStaticStr, VariantArray};
use swarmline_scheduler::{StageIndex, WeightsPolicy, router};

/// A run: the settings that its processes must agree on, and the coordinator's own choices.
///
/// The *manifest* has all of it but [`Policy::join`] and the paths in [`Run::data`]; the digest of the manifest is part
/// of every handshake.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    /// Name shown to people. Default: the run file's name without its ending.
    pub name: String,
    /// Seed of weights, batches, basis, anchors and rounding. Default 0.
    pub seed: u64,
    /// The transformer.
    pub model: Model,
    /// Cut of the layers and flow of the microbatches.
    pub pipeline: Pipeline,
    /// The boundary between two stages.
    pub boundary: Boundary,
    /// Size of a microbatch.
    pub batch: Batch,
    /// Update rule, schedule and clipping.
    pub optimizer: Optimizer,
    /// Averaging among the replicas of a stage.
    pub averaging: Averaging,
    /// The text to learn from, and its tokenizer.
    pub data: Data,
    /// The peers that may take part.
    pub policy: Policy,
}

/// Sizes of the LLaMA model, under the names that Hugging Face's `config.json` has for them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Model {
    /// Width `d` of the residual stream. Default 128.
    pub hidden_size: usize,
    /// Transformer layers. Default 4.
    pub num_hidden_layers: usize,
    /// Query heads; divides `hidden_size` into parts of even width. Default: the largest of 1, 2, 4, ... for which
    /// a head is at least 32 wide.
    pub num_attention_heads: usize,
    /// Key-value heads; divides `num_attention_heads`. Default: `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Width of the feed-forward layer. Default: 8/3 of `hidden_size`, rounded up to a multiple of 16.
    pub intermediate_size: usize,
    /// Tokens `T` of a sequence. Default 128.
    pub max_position_embeddings: usize,
    /// Entries of the vocabulary. Default: as many as the tokenizer has.
    pub vocab_size: usize,
    /// Base of the rotary frequencies. Default 10000.
    pub rope_theta: f32,
    /// Added to the mean square in RMSNorm. Default 1e-5.
    pub rms_norm_eps: f32,
}

/// Cut of the layers into stages, and flow of the microbatches through them.
#[derive(Clone, Debug, PartialEq)]
pub struct Pipeline {
    /// Number of stages. Default: the length of `layers_per_stage`, or the smaller of 4 and `model.num_hidden_layers`.
    pub stages: usize,
    /// Layers of each stage, in order; sums to `model.num_hidden_layers`. Default: as even as possible, earlier stages
    /// take the remainder.
    pub layers_per_stage: Vec<usize>,
    /// Limit of the replicas of a stage; a peer that joins later stands by. Default 1.
    pub replicas: usize,
    /// Whether stages wait for each other. Default asynchronous.
    pub mode: Mode,
    /// Limit of the microbatches between first forward and last backward: it bounds how stale a gradient can be.
    /// Default: 8 x `initial_in_flight` asynchronous, `gradient_accumulation_steps` x replicas synchronous.
    pub max_in_flight: usize,
    /// The same limit at the beginning of an asynchronous run; the feeder raises it up to `max_in_flight` while that
    /// raises the throughput. Default: `max_in_flight` if that is given, which then stays fixed; otherwise 2 x stages x
    /// replicas.
    pub initial_in_flight: usize,
    /// Microbatches `K` whose gradients a replica accumulates before its optimizer steps. Default 1.
    pub gradient_accumulation_steps: usize,
    /// Whether a stage keeps only its input between forward and backward, and backward recomputes the forward at
    /// current weights. Least memory, and a third more arithmetic. Default false: forward keeps all activations.
    pub activation_checkpointing: bool,
    /// Policy of feeders and replicas to choose the next stage's replica for a microbatch. Default least-outstanding.
    pub router: router::Policy,
}

/// Whether stages wait for each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Mode {
    /// Every stage steps on its own; gradients are stale by a few versions.
    Asynchronous,
    /// The pipeline is drained before every optimizer step: the gradients are exact.
    Synchronous,
}

/// The boundary between two stages: the part of the stream that crosses, and its bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Boundary {
    /// The part of the residual stream that crosses. Default subspace.
    pub kind: Kind,
    /// Rank `k` of the column space, for `subspace`: the numbers per token that cross. The other kinds do not read
    /// it. Default `hidden_size / 8`.
    pub rank: usize,
    /// Format of the numbers, in both directions. Default q8.
    pub packing: Packing,
    /// Standard deviation of the entries of the frozen anchor, for `subspace`. Default 0.02, that of the initial
    /// weights.
    pub anchor_scale: f32,
}

/// The part of the residual stream that crosses a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Kind {
    /// The stream itself.
    Identity,
    /// Coordinates in a fixed column space that all writers before the last stage are confined to.
    Subspace,
    /// Nothing crosses: the receiver starts from a trained anchor of its own. This is the control of the other kinds.
    None,
}

/// Format of the numbers that cross a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum Packing {
    /// 4 bytes a number.
    F32,
    /// 2 bytes a number.
    Bf16,
    /// 1 byte a number and 2 a row.
    Q8,
    /// Half a byte a number and 2 a row.
    Q4,
}

/// Size of a microbatch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Sequences `B` of a microbatch; it has `B * max_position_embeddings` tokens. Default 8.
    pub sequences: usize,
}

/// Update rule and schedule (NAdamW: Dozat 2016 with decoupled decay; linear warm-up, then cosine).
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// Update rule. Default nadamw.
    pub kind: OptimizerKind,
    /// Peak learning rate. Default 0.001.
    pub learning_rate: f32,
    /// Optimizer steps of linear warm-up, of each replica. Default: a tenth of `steps`, at most 100.
    pub warmup_steps: u64,
    /// Steps of the schedule, after which the cosine has reached its floor; also the length of the run, which has
    /// `steps * K` microbatches for each configured replica of a stage. An asynchronous run counts a step of the cosine
    /// for each `K` microbatches a configured replica, however many replicas there are. Default 1000.
    pub steps: u64,
    /// Floor of the schedule as a ratio to the peak. Default 0.1.
    pub min_lr_ratio: f32,
    /// Decay of the first moment. Default 0.99 for nadamw, 0.9 for adamw.
    pub beta1: f32,
    /// Decay of the second moment. Default 0.999 for nadamw, 0.95 for adamw.
    pub beta2: f32,
    /// Added to the denominator. Default 1e-8.
    pub epsilon: f32,
    /// Decoupled decay of matrices (norm gains do not decay). Default 0.1.
    pub weight_decay: f32,
    /// Momentum decay `psi` of NAdam's mu schedule. Default 0.004.
    pub momentum_decay: f32,
    /// The gradient of a microbatch is clipped at this multiple of the running median norm; 0 turns it off. Default 2.
    pub max_grad_norm_ratio: f32,
    /// The gradient of a microbatch beyond this multiple of the running median norm is left out: its stage takes no step
    /// for it. 0 turns it off. Default 100.
    pub skip_grad_norm_ratio: f32,
    /// The accumulated gradient of a stage is clipped at this norm; 0 turns it off. Default 1.
    pub max_grad_norm: f32,
    /// Staleness correction: the rate is divided by `max(1, tau)^rho`, with `rho` annealed from this value to 0 over
    /// the run (arXiv 2505.01099). 0 turns it off. Default 1 asynchronous, 0 synchronous.
    pub staleness_power: f32,
}

impl Optimizer {
    /// The defaults of a run with this update rule, mode and number of steps.
    #[must_use]
    pub fn of(kind: OptimizerKind, mode: Mode, steps: u64) -> Self {
        let (beta1, beta2) = match kind {
            OptimizerKind::NAdamW => (0.99, 0.999),
            OptimizerKind::AdamW => (0.9, 0.95),
        };
        let staleness_power = match mode {
            Mode::Asynchronous => 1.0,
            Mode::Synchronous => 0.0,
        };
        Self {
            kind,
            learning_rate: 1e-3,
            warmup_steps: (steps / 10).min(100),
            steps,
            min_lr_ratio: 0.1,
            beta1,
            beta2,
            epsilon: 1e-8,
            weight_decay: 0.1,
            momentum_decay: 0.004,
            max_grad_norm_ratio: 2.0,
            skip_grad_norm_ratio: 100.0,
            max_grad_norm: 1.0,
            staleness_power,
        }
    }

    /// The update rule alone, for comparisons: a constant rate, without decay, clipping or staleness correction.
    #[must_use]
    pub fn plain(kind: OptimizerKind, learning_rate: f32, steps: u64) -> Self {
        Self {
            learning_rate,
            warmup_steps: 0,
            min_lr_ratio: 1.0,
            max_grad_norm_ratio: 0.0,
            skip_grad_norm_ratio: 0.0,
            max_grad_norm: 0.0,
            ..Self::of(kind, Mode::Synchronous, steps)
        }
    }
}

/// Update rule of the optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum OptimizerKind {
    /// Adam with decoupled decay (arXiv 1711.05101).
    AdamW,
    /// Adam with Nesterov momentum and decoupled decay.
    NAdamW,
}

/// Averaging of weights and moments among the replicas of a stage (AsyncMesh, arXiv 2601.22442). A stage with one
/// replica does not average.
#[derive(Clone, Debug, PartialEq)]
pub struct Averaging {
    /// Finished microbatches of the whole run between two averaging rounds; 0 turns averaging off. A shorter interval
    /// keeps replicas closer together and costs more traffic: each replica sends and receives about `24 / fragments`
    /// bytes in a round for each parameter of the stage. Default 16.
    pub interval: u64,
    /// Disjoint fragments that the parameters of a stage are divided into (Streaming DiLoCo, arXiv 2501.18512); a round
    /// averages one of them. Default 20, so that a round averages 5 %.
    pub fragments: u32,
}

/// The text a run learns from.
#[derive(Clone, Debug, PartialEq)]
pub struct Data {
    /// Files or directories of text; relative to the run file. Only the feeder reads them.
    pub paths: Vec<PathBuf>,
    /// File name endings to take from directories, e.g. `rs`; empty takes every file. Default empty.
    pub extensions: Vec<String>,
    /// Tokenizer of the text. Default bytes.
    pub tokenizer: Tokenizer,
    /// Share of the text held out for evaluation, between 0 and 1, drawn by file from the run seed. Default 0.05.
    pub heldout: f32,
    /// Microbatches of one evaluation. Default 8.
    pub heldout_microbatches: usize,
}

/// The tokenizer of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tokenizer {
    /// Each byte is a token.
    Bytes,
    /// A `tokenizer.json` in the format of the `tokenizers` library.
    File(PathBuf),
}

/// The peers that may take part.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    /// The peers that may join. Default anyone.
    pub join: Join,
    /// The peers that may feed the run and take over from a feeder that is gone. Default: the members if `join` is a
    /// list, else the first feeder alone.
    pub feed: Feed,
    /// Whether a keeper may keep the whole model. Default open.
    pub weights: WeightsPolicy,
}

/// The peers that may join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Join {
    /// Every peer that can reach the coordinator.
    Anyone,
    /// The peers with these ed25519 public keys, in hexadecimal.
    Keys(Vec<String>),
}

/// The peers that may feed a run: a feeder decides which gradients count and when the run is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Feed {
    /// The key that feeds the run first, and no other after it.
    First,
    /// Every peer that may join.
    Members,
    /// The peers with these ed25519 public keys, in hexadecimal.
    Keys(Vec<String>),
}

impl Policy {
    /// The default of [`Policy::feed`] for these peers.
    #[must_use]
    pub fn default_feed(join: &Join) -> Feed {
        match join {
            Join::Anyone => Feed::First,
            Join::Keys(_) => Feed::Members,
        }
    }
}

impl Data {
    /// `paths`, with the other fields at their defaults.
    #[must_use]
    pub fn of(paths: Vec<PathBuf>) -> Self {
        Self {
            paths,
            extensions: Vec::new(),
            tokenizer: Tokenizer::Bytes,
            heldout: 0.05,
            heldout_microbatches: 8,
        }
    }
}

impl Model {
    /// Width `e` of a head.
    #[must_use]
    pub fn head_width(&self) -> usize {
        self.hidden_size / self.num_attention_heads
    }

    /// Width `g * e` of all key heads of a token together, and of all value heads.
    #[must_use]
    pub fn kv_width(&self) -> usize {
        self.num_key_value_heads * self.head_width()
    }
}

impl Run {
    /// All stages, first to last.
    pub fn stages(&self) -> impl Iterator<Item = StageIndex> + use<> {
        (0..=self.last_stage().0).map(StageIndex)
    }

    /// Layers of `stage`.
    #[must_use]
    pub fn layers_of(&self, stage: StageIndex) -> Range<usize> {
        let first = self.pipeline.layers_per_stage[..usize::from(stage.0)].iter().sum();
        first..first + self.pipeline.layers_per_stage[usize::from(stage.0)]
    }

    /// The last stage, which has the head.
    #[must_use]
    pub fn last_stage(&self) -> StageIndex {
        StageIndex(u16::try_from(self.pipeline.stages - 1).unwrap_or(u16::MAX))
    }

    /// The same run of `model` in one piece: one stage, so nothing is constrained or packed.
    #[must_use]
    pub fn in_one_piece(&self, model: Model) -> Self {
        let mut run = Self { model, ..self.clone() };
        (run.pipeline.stages, run.pipeline.layers_per_stage) = (1, vec![model.num_hidden_layers]);
        (run.boundary.kind, run.boundary.packing) = (Kind::Identity, Packing::F32);
        run
    }

    /// Microbatches of the whole run: `steps * K` for each replica of a stage.
    #[must_use]
    pub fn microbatches(&self) -> u64 {
        self.optimizer.steps.saturating_mul(self.microbatches_per_step())
    }

    /// Microbatches of the whole run while each configured replica of a stage makes one step: `K` for each of them.
    #[must_use]
    pub fn microbatches_per_step(&self) -> u64 {
        self.pipeline.gradient_accumulation_steps.saturating_mul(self.pipeline.replicas).max(1) as u64
    }

    /// Tokens a microbatch is trained on: `N = B * T`.
    #[must_use]
    pub fn tokens_per_microbatch(&self) -> usize {
        self.batch.sequences * self.model.max_position_embeddings
    }
}
