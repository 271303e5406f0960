//! Fills in the defaults of a run file.

use std::path::{Path, PathBuf};

use super::document::{Document, position};
use super::error::{ConfigError, Violation};
use super::fields::{ANYONE, BYTES, FIRST, MEMBERS, SECTIONS};
use super::{
    Averaging, Batch, Boundary, Data, Feed, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing,
    Pipeline, Policy, Run, Tokenizer, check, limits,
};
use crate::data::TextTokenizer;

const DEFAULT_HIDDEN_SIZE: usize = 128;
const DEFAULT_LAYERS: usize = 4;
const DEFAULT_POSITIONS: usize = 128;
const DEFAULT_STAGES: usize = 4;
/// How far the window grows by default, as a multiple of its start.
const IN_FLIGHT_GROWTH: usize = 8;
const DEFAULT_SEQUENCES: usize = 8;
const DEFAULT_STEPS: u64 = 1000;
const DEFAULT_AVERAGING_INTERVAL: u64 = 16;
const DEFAULT_AVERAGING_FRAGMENTS: u32 = 20;
/// Least width of a head by default: a narrower head tells few positions apart.
const DEFAULT_HEAD_WIDTH_MIN: usize = 32;

impl Run {
    /// Reads a run file.
    ///
    /// # Errors
    /// The file cannot be read, is too long, or is not TOML; a field is unknown, missing, of the wrong type, or breaks
    /// a rule; the tokenizer cannot be loaded.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        let file = path.display().to_string();
        Self::parse(&read_text(path, &file)?, &file, path.parent().unwrap_or(Path::new("")))
    }

    /// Reads the text of a run file. `file` is the name used in messages, and the run's default name; paths in the
    /// text are relative to `base`.
    ///
    /// # Errors
    /// As [`Run::load`].
    pub fn parse(text: &str, file: &str, base: &Path) -> Result<Self, ConfigError> {
        let document = Document::parse(text, file)?;
        let known = SECTIONS.iter().map(|s| (s.name, s.fields.iter().map(|f| f.name).collect()));
        document.refuse_unknown(&known.collect::<Vec<_>>())?;

        let tokenizer = read_tokenizer(&document)?;
        let tokenizer_vocab = load_vocab(&document, &tokenizer, base)?;
        let run = read_run(&document, tokenizer, tokenizer_vocab)?;
        if run.data.paths.is_empty() {
            return Err(ConfigError::Missing {
                file: file.to_owned(),
                line: document.line_of("data.paths"),
                field: "data.paths".to_owned(),
                remedy: "the text to learn from, e.g. paths = [\"my-text\"] below a line [data]".to_owned(),
            });
        }
        check::run(&run, tokenizer_vocab).map_err(|violation| impossible(&document, violation))?;
        Ok(run)
    }
}

/// Names the line of a broken rule.
pub(super) fn impossible(document: &Document<'_>, violation: Violation) -> ConfigError {
    let line = document.line_of(&violation.field);
    ConfigError::Impossible { file: document.file().to_owned(), line, violation: Box::new(violation) }
}

/// The text of a file that a person wrote.
pub(super) fn read_text(path: &Path, file: &str) -> Result<String, ConfigError> {
    let unreadable = |cause| ConfigError::Unreadable { file: file.to_owned(), cause };
    let bytes = read_limited(path).map_err(unreadable)?;
    String::from_utf8(bytes).map_err(|error| not_text(file, &error))
}

fn read_limited(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    // One byte over the limit, so that the parser can tell a file that is too long.
    let limit = limits::CONFIG_BYTES_MAX as u64 + 1;
    std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn not_text(file: &str, error: &std::string::FromUtf8Error) -> ConfigError {
    let valid = error.utf8_error().valid_up_to();
    let text = String::from_utf8_lossy(&error.as_bytes()[..valid]);
    ConfigError::NotText { file: file.to_owned(), line: position(&text, valid).0 }
}

fn read_tokenizer(document: &Document<'_>) -> Result<Tokenizer, ConfigError> {
    Ok(match document.text("data", "tokenizer")? {
        None => Tokenizer::Bytes,
        Some(word) if word == BYTES => Tokenizer::Bytes,
        Some(path) => Tokenizer::File(PathBuf::from(path)),
    })
}

fn load_vocab(document: &Document<'_>, tokenizer: &Tokenizer, base: &Path) -> Result<usize, ConfigError> {
    let loaded = TextTokenizer::load(tokenizer, base).map_err(|cause| ConfigError::Tokenizer {
        file: document.file().to_owned(),
        line: document.line_of("data.tokenizer"),
        cause,
    })?;
    Ok(loaded.vocab())
}

/// The run in `document` with its defaults; only types are checked.
pub(super) fn read_run(
    document: &Document<'_>,
    tokenizer: Tokenizer,
    tokenizer_vocab: usize,
) -> Result<Run, ConfigError> {
    let model = read_model(document, tokenizer_vocab)?;
    let pipeline = read_pipeline(document, model.num_hidden_layers)?;
    Ok(Run {
        name: document.text("", "name")?.unwrap_or_else(|| default_name(document.file())),
        seed: document.number("", "seed")?.unwrap_or(0),
        boundary: read_boundary(document, model.hidden_size)?,
        batch: Batch { sequences: document.count("batch", "sequences")?.unwrap_or(DEFAULT_SEQUENCES) },
        optimizer: read_optimizer(document, pipeline.mode)?,
        averaging: read_averaging(document)?,
        data: read_data(document, tokenizer)?,
        policy: read_policy(document)?,
        model,
        pipeline,
    })
}

fn default_name(file: &str) -> String {
    let stem = Path::new(file).file_stem().map(|stem| stem.to_string_lossy().into_owned());
    stem.filter(|stem| check::name_is_fine(stem)).unwrap_or_else(|| "run".to_owned())
}

fn read_model(document: &Document<'_>, tokenizer_vocab: usize) -> Result<Model, ConfigError> {
    let count = |name| document.count("model", name);
    let real = |name| document.real("model", name);
    let hidden_size = count("hidden_size")?.unwrap_or(DEFAULT_HIDDEN_SIZE);
    let num_attention_heads = count("num_attention_heads")?.unwrap_or_else(|| default_heads(hidden_size));
    Ok(Model {
        hidden_size,
        num_hidden_layers: count("num_hidden_layers")?.unwrap_or(DEFAULT_LAYERS),
        num_attention_heads,
        num_key_value_heads: count("num_key_value_heads")?.unwrap_or(num_attention_heads),
        intermediate_size: count("intermediate_size")?
            .unwrap_or_else(|| default_intermediate_size(hidden_size)),
        max_position_embeddings: count("max_position_embeddings")?.unwrap_or(DEFAULT_POSITIONS),
        vocab_size: count("vocab_size")?.unwrap_or(tokenizer_vocab),
        rope_theta: real("rope_theta")?.unwrap_or(10_000.0),
        rms_norm_eps: real("rms_norm_eps")?.unwrap_or(1e-5),
    })
}

fn default_heads(hidden_size: usize) -> usize {
    let fits =
        |heads: &usize| hidden_size.is_multiple_of(*heads) && hidden_size / heads >= DEFAULT_HEAD_WIDTH_MIN;
    (0..8).map(|power| 1 << power).filter(fits).max().unwrap_or(1)
}

fn default_intermediate_size(hidden_size: usize) -> usize {
    // `hidden_size` is not checked yet; a size out of range is refused later.
    hidden_size.saturating_mul(8).div_ceil(3).checked_next_multiple_of(16).unwrap_or(usize::MAX)
}

fn read_pipeline(document: &Document<'_>, layers: usize) -> Result<Pipeline, ConfigError> {
    let count = |name| document.count("pipeline", name);
    let named = document.counts("pipeline", "layers_per_stage")?;
    let default_stages = named.as_ref().map_or(DEFAULT_STAGES.min(layers), Vec::len);
    let stages = count("stages")?.unwrap_or(default_stages);
    let mode = document.choice("pipeline", "mode")?.unwrap_or(Mode::Asynchronous);
    let gradient_accumulation_steps = count("gradient_accumulation_steps")?.unwrap_or(1);
    let replicas = count("replicas")?.unwrap_or(1);
    let initial = count("initial_in_flight")?;
    let (max_in_flight, default_initial) = match (count("max_in_flight")?, mode) {
        (Some(max), _) => (max, max),
        (None, Mode::Asynchronous) => {
            let default_initial = stages.saturating_mul(2).saturating_mul(replicas);
            let start = initial.unwrap_or(default_initial);
            (start.saturating_mul(IN_FLIGHT_GROWTH).min(limits::IN_FLIGHT_MAX).max(start), default_initial)
        }
        (None, Mode::Synchronous) => {
            let group = gradient_accumulation_steps.saturating_mul(replicas);
            (group, group)
        }
    };
    Ok(Pipeline {
        stages,
        layers_per_stage: named.unwrap_or_else(|| even_cut(layers, stages)),
        replicas,
        mode,
        max_in_flight,
        initial_in_flight: initial.unwrap_or(default_initial),
        gradient_accumulation_steps,
        activation_checkpointing: document.flag("pipeline", "activation_checkpointing")?.unwrap_or(false),
        router: document.choice("pipeline", "router")?.unwrap_or_default(),
    })
}

/// The most even cut; earlier stages take the remainder. Empty if no cut is possible, which `check` refuses.
fn even_cut(layers: usize, stages: usize) -> Vec<usize> {
    if stages == 0 || stages > layers || layers > limits::LAYERS_MAX {
        return Vec::new();
    }
    (0..stages).map(|stage| layers / stages + usize::from(stage < layers % stages)).collect()
}

fn read_boundary(document: &Document<'_>, hidden_size: usize) -> Result<Boundary, ConfigError> {
    Ok(Boundary {
        kind: document.choice("boundary", "kind")?.unwrap_or(Kind::Subspace),
        rank: document.count("boundary", "rank")?.unwrap_or((hidden_size / 8).max(1)),
        packing: document.choice("boundary", "packing")?.unwrap_or(Packing::Q8),
        anchor_scale: document.real("boundary", "anchor_scale")?.unwrap_or(0.02),
    })
}

fn read_optimizer(document: &Document<'_>, mode: Mode) -> Result<Optimizer, ConfigError> {
    let real = |name| document.real("optimizer", name);
    let number = |name| document.number("optimizer", name);
    let kind = document.choice("optimizer", "kind")?.unwrap_or(OptimizerKind::NAdamW);
    let defaults = Optimizer::of(kind, mode, number("steps")?.unwrap_or(DEFAULT_STEPS));
    Ok(Optimizer {
        kind,
        learning_rate: real("learning_rate")?.unwrap_or(defaults.learning_rate),
        warmup_steps: number("warmup_steps")?.unwrap_or(defaults.warmup_steps),
        steps: defaults.steps,
        min_lr_ratio: real("min_lr_ratio")?.unwrap_or(defaults.min_lr_ratio),
        beta1: real("beta1")?.unwrap_or(defaults.beta1),
        beta2: real("beta2")?.unwrap_or(defaults.beta2),
        epsilon: real("epsilon")?.unwrap_or(defaults.epsilon),
        weight_decay: real("weight_decay")?.unwrap_or(defaults.weight_decay),
        momentum_decay: real("momentum_decay")?.unwrap_or(defaults.momentum_decay),
        max_grad_norm_ratio: real("max_grad_norm_ratio")?.unwrap_or(defaults.max_grad_norm_ratio),
        skip_grad_norm_ratio: real("skip_grad_norm_ratio")?.unwrap_or(defaults.skip_grad_norm_ratio),
        max_grad_norm: real("max_grad_norm")?.unwrap_or(defaults.max_grad_norm),
        staleness_power: real("staleness_power")?.unwrap_or(defaults.staleness_power),
    })
}

fn read_averaging(document: &Document<'_>) -> Result<Averaging, ConfigError> {
    let number = |name| document.number("averaging", name);
    Ok(Averaging {
        interval: number("interval")?.unwrap_or(DEFAULT_AVERAGING_INTERVAL),
        // A number beyond u32 is above the limit, and `check` refuses it.
        fragments: number("fragments")?
            .map_or(DEFAULT_AVERAGING_FRAGMENTS, |fragments| u32::try_from(fragments).unwrap_or(u32::MAX)),
    })
}

fn read_data(document: &Document<'_>, tokenizer: Tokenizer) -> Result<Data, ConfigError> {
    let paths = document.texts("data", "paths")?.unwrap_or_default();
    let default = Data::of(paths.into_iter().map(PathBuf::from).collect());
    Ok(Data {
        tokenizer,
        extensions: document.texts("data", "extensions")?.unwrap_or(default.extensions),
        heldout: document.real("data", "heldout")?.unwrap_or(default.heldout),
        heldout_microbatches: document
            .count("data", "heldout_microbatches")?
            .unwrap_or(default.heldout_microbatches),
        paths: default.paths,
    })
}

fn read_policy(document: &Document<'_>) -> Result<Policy, ConfigError> {
    let join = read_join(document)?;
    let feed = read_feed(document)?.unwrap_or_else(|| Policy::default_feed(&join));
    let weights = document.choice("policy", "weights")?.unwrap_or_default();
    Ok(Policy { join, feed, weights })
}

fn read_feed(document: &Document<'_>) -> Result<Option<Feed>, ConfigError> {
    if document.is_list("policy", "feed")? {
        return Ok(document.texts("policy", "feed")?.map(Feed::Keys));
    }
    let word = document.word("policy", "feed", &[FIRST, MEMBERS])?;
    Ok(word.map(|word| if word == FIRST { Feed::First } else { Feed::Members }))
}

fn read_join(document: &Document<'_>) -> Result<Join, ConfigError> {
    if document.is_list("policy", "join")? {
        return Ok(Join::Keys(document.texts("policy", "join")?.unwrap_or_default()));
    }
    // The only word is the default.
    document.word("policy", "join", &[ANYONE]).map(|_| Join::Anyone)
}
