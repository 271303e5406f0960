//! All rules about values, for run files and manifests alike.

use data_encoding::HEXLOWER_PERMISSIVE;

use super::error::Violation;
use super::{Averaging, Data, Feed, Join, Kind, Model, Optimizer, Pipeline, Run, Tokenizer, limits};

/// Bytes of an ed25519 public key.
const KEY_BYTES: usize = 32;

/// The beginning of a secret key on disk, so that one is known wherever it is pasted.
pub(crate) const SECRET_MARK: &str = "swarmline-secret-";

type Checked = Result<(), Violation>;

/// Checks a run against the vocabulary of its tokenizer. Sizes are checked before their products.
pub(super) fn run(run: &Run, tokenizer_vocab: usize) -> Checked {
    if !name_is_fine(&run.name) {
        let allowed = format!("1 to {} bytes without control characters", limits::NAME_BYTES_MAX);
        return Err(broken("name", "is not a name".to_owned(), allowed, "Choose a short name"));
    }
    model_sizes(&run.model)?;
    heads(&run.model)?;
    vocabulary(&run.model, &run.data.tokenizer, tokenizer_vocab)?;
    model_numbers(&run.model)?;
    pipeline(&run.pipeline, &run.model)?;
    boundary(run)?;
    batch(run)?;
    optimizer(&run.optimizer)?;
    averaging(&run.averaging)?;
    data(&run.data)?;
    join(&run.policy.join)?;
    feed(&run.policy.feed)?;
    totals(run)
}

impl Model {
    /// Checks the sizes of a model from outside against each other and against the limits.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn check(&self) -> Result<(), Violation> {
        model_sizes(self)?;
        heads(self)?;
        model_numbers(self)
    }
}

/// Whether `name` may be the name of a run.
pub(super) fn name_is_fine(name: &str) -> bool {
    !name.trim().is_empty() && name.len() <= limits::NAME_BYTES_MAX && !name.chars().any(char::is_control)
}

fn model_sizes(model: &Model) -> Checked {
    count("model.hidden_size", model.hidden_size, 2, limits::HIDDEN_SIZE_MAX)?;
    count("model.num_hidden_layers", model.num_hidden_layers, 1, limits::LAYERS_MAX)?;
    count("model.num_attention_heads", model.num_attention_heads, 1, model.hidden_size)?;
    count("model.num_key_value_heads", model.num_key_value_heads, 1, model.num_attention_heads)?;
    count("model.intermediate_size", model.intermediate_size, 1, limits::INTERMEDIATE_SIZE_MAX)?;
    count("model.max_position_embeddings", model.max_position_embeddings, 1, limits::POSITIONS_MAX)?;
    count("model.vocab_size", model.vocab_size, 2, limits::VOCAB_SIZE_MAX)
}

fn heads(model: &Model) -> Checked {
    const FIELD: &str = "model.num_attention_heads";
    const REMEDY: &str = "Change num_attention_heads or hidden_size";
    let (width, heads, kv_heads) = (model.hidden_size, model.num_attention_heads, model.num_key_value_heads);
    if !width.is_multiple_of(heads) {
        let problem = format!("is {heads}, which does not divide model.hidden_size = {width}");
        return Err(broken(FIELD, problem, divisors(width), REMEDY));
    }
    if !(width / heads).is_multiple_of(2) {
        let problem = format!("is {heads}, which makes heads of odd width {}", width / heads);
        let allowed = "heads of even width: rotary positions turn pairs of numbers".to_owned();
        return Err(broken(FIELD, problem, allowed, REMEDY));
    }
    if !heads.is_multiple_of(kv_heads) {
        let problem = format!("is {kv_heads}, which does not divide {FIELD} = {heads}");
        let remedy = "Change num_key_value_heads or leave it out";
        return Err(broken("model.num_key_value_heads", problem, divisors(heads), remedy));
    }
    Ok(())
}

fn vocabulary(model: &Model, tokenizer: &Tokenizer, tokenizer_vocab: usize) -> Checked {
    if model.vocab_size >= tokenizer_vocab {
        return Ok(());
    }
    let name = match tokenizer {
        Tokenizer::Bytes => "tokenizer \"bytes\"".to_owned(),
        Tokenizer::File(path) => format!("tokenizer {}", path.display()),
    };
    let problem = format!("is {}, but the {name} has {tokenizer_vocab} entries", model.vocab_size);
    let allowed = format!("{tokenizer_vocab} to {}", limits::VOCAB_SIZE_MAX);
    Err(broken("model.vocab_size", problem, allowed, "Raise it, or leave it out to take the tokenizer's"))
}

fn model_numbers(model: &Model) -> Checked {
    real("model.rope_theta", model.rope_theta, 1.0..=1e12)?;
    positive("model.rms_norm_eps", model.rms_norm_eps, 1.0)
}

fn pipeline(pipeline: &Pipeline, model: &Model) -> Checked {
    count("pipeline.stages", pipeline.stages, 1, limits::LAYERS_MAX)?;
    if pipeline.stages > model.num_hidden_layers {
        let layers = model.num_hidden_layers;
        let problem = format!("is {}, more than model.num_hidden_layers = {layers}", pipeline.stages);
        let allowed = format!("1 to {layers}");
        return Err(broken(
            "pipeline.stages",
            problem,
            allowed,
            "A stage needs a layer: fewer stages or more layers",
        ));
    }
    layers_per_stage(pipeline, model)?;
    count("pipeline.replicas", pipeline.replicas, 1, limits::REPLICAS_MAX)?;
    count("pipeline.max_in_flight", pipeline.max_in_flight, 1, limits::IN_FLIGHT_MAX)?;
    count("pipeline.initial_in_flight", pipeline.initial_in_flight, 1, pipeline.max_in_flight)?;
    let accumulated = pipeline.gradient_accumulation_steps;
    count("pipeline.gradient_accumulation_steps", accumulated, 1, limits::ACCUMULATION_STEPS_MAX)
}

fn layers_per_stage(pipeline: &Pipeline, model: &Model) -> Checked {
    const FIELD: &str = "pipeline.layers_per_stage";
    const REMEDY: &str = "Change it, or leave it out for the most even cut";
    let (cut, layers) = (&pipeline.layers_per_stage, model.num_hidden_layers);
    let allowed =
        format!("{} numbers from 1 that sum to model.num_hidden_layers = {layers}", pipeline.stages);
    if cut.len() != pipeline.stages {
        let problem = format!("names {} stages, but pipeline.stages is {}", cut.len(), pipeline.stages);
        return Err(broken(FIELD, problem, allowed, REMEDY));
    }
    if let Some(stage) = cut.iter().position(|&layers| layers == 0) {
        return Err(broken(FIELD, format!("gives stage {stage} no layer"), allowed, REMEDY));
    }
    let sum = cut.iter().fold(0usize, |sum, &layers| sum.saturating_add(layers));
    if sum != layers {
        return Err(broken(FIELD, format!("sums to {sum}"), allowed, REMEDY));
    }
    Ok(())
}

fn boundary(run: &Run) -> Checked {
    let (rank, width) = (run.boundary.rank, run.model.hidden_size);
    if run.boundary.kind == Kind::Subspace && rank > width {
        let problem = format!("is {rank}, more than model.hidden_size = {width}");
        let remedy = "Lower it, or send the stream itself with kind = \"identity\"";
        return Err(broken("boundary.rank", problem, format!("1 to {width}"), remedy));
    }
    count("boundary.rank", rank, 1, limits::HIDDEN_SIZE_MAX)?;
    positive("boundary.anchor_scale", run.boundary.anchor_scale, 100.0)
}

fn batch(run: &Run) -> Checked {
    count("batch.sequences", run.batch.sequences, 1, limits::SEQUENCES_MAX)?;
    let tokens = run.tokens_per_microbatch();
    if tokens > limits::MICROBATCH_TOKENS_MAX {
        let problem = format!("x model.max_position_embeddings is {tokens} tokens a microbatch");
        let allowed = format!("up to {} tokens", limits::MICROBATCH_TOKENS_MAX);
        let remedy = "Use fewer sequences and raise pipeline.gradient_accumulation_steps";
        return Err(broken("batch.sequences", problem, allowed, remedy));
    }
    Ok(())
}

fn optimizer(optimizer: &Optimizer) -> Checked {
    positive("optimizer.learning_rate", optimizer.learning_rate, limits::LEARNING_RATE_MAX)?;
    number("optimizer.steps", optimizer.steps, 1, limits::STEPS_MAX)?;
    number("optimizer.warmup_steps", optimizer.warmup_steps, 0, optimizer.steps)?;
    real("optimizer.min_lr_ratio", optimizer.min_lr_ratio, 0.0..=1.0)?;
    below_one("optimizer.beta1", optimizer.beta1)?;
    below_one("optimizer.beta2", optimizer.beta2)?;
    positive("optimizer.epsilon", optimizer.epsilon, 1.0)?;
    real("optimizer.weight_decay", optimizer.weight_decay, 0.0..=10.0)?;
    if optimizer.learning_rate * optimizer.weight_decay >= 1.0 {
        let (rate, decay) = (optimizer.learning_rate, optimizer.weight_decay);
        let problem = format!(
            "is {decay}, which times optimizer.learning_rate = {rate} is {}: each step would turn every weight around",
            rate * decay
        );
        let allowed = "below 1 when multiplied by optimizer.learning_rate".to_owned();
        return Err(broken("optimizer.weight_decay", problem, allowed, "Lower one of the two"));
    }
    real("optimizer.momentum_decay", optimizer.momentum_decay, 0.0..=1.0)?;
    real("optimizer.max_grad_norm_ratio", optimizer.max_grad_norm_ratio, 0.0..=1e6)?;
    real("optimizer.skip_grad_norm_ratio", optimizer.skip_grad_norm_ratio, 0.0..=1e6)?;
    real("optimizer.max_grad_norm", optimizer.max_grad_norm, 0.0..=1e6)?;
    real("optimizer.staleness_power", optimizer.staleness_power, 0.0..=4.0)
}

fn averaging(averaging: &Averaging) -> Checked {
    number("averaging.interval", averaging.interval, 0, limits::AVERAGING_INTERVAL_MAX)?;
    number("averaging.fragments", u64::from(averaging.fragments), 1, limits::AVERAGING_FRAGMENTS_MAX)
}

fn data(data: &Data) -> Checked {
    if data.extensions.len() > limits::EXTENSIONS_MAX {
        let problem = format!("has {} entries", data.extensions.len());
        let allowed = format!("up to {}", limits::EXTENSIONS_MAX);
        return Err(broken("data.extensions", problem, allowed, "Leave it out to take every file"));
    }
    if let Some(ending) = data.extensions.iter().find(|ending| !ending_is_fine(ending)) {
        let problem = format!("has the entry {ending:?}");
        let allowed = "endings without a dot or slash before them, e.g. \"rs\"".to_owned();
        return Err(broken("data.extensions", problem, allowed, "Write only the part behind the last dot"));
    }
    if data.paths.iter().any(|path| path.as_os_str().is_empty()) {
        let remedy = "Write \".\" for the folder of the run file";
        return Err(broken("data.paths", "has an empty path".to_owned(), "paths".to_owned(), remedy));
    }
    if !(data.heldout > 0.0 && data.heldout < 1.0) {
        let remedy = "A share such as 0.05 leaves enough to learn from and enough to judge by";
        let problem = format!("is {}", data.heldout);
        return Err(broken("data.heldout", problem, "above 0 and below 1".to_owned(), remedy));
    }
    count("data.heldout_microbatches", data.heldout_microbatches, 1, limits::HELDOUT_MICROBATCHES_MAX)
}

fn ending_is_fine(ending: &str) -> bool {
    let odd = |c: char| c == '/' || c == '\\' || c.is_control();
    !ending.is_empty() && ending.len() <= 32 && !ending.starts_with('.') && !ending.contains(odd)
}

fn join(join: &Join) -> Checked {
    let Join::Keys(keys) = join else { return Ok(()) };
    let allowed = "\"anyone\", or a list of ed25519 public keys of 64 hexadecimal digits each";
    if keys.is_empty() {
        let problem = "is an empty list, so no peer could join".to_owned();
        return Err(broken("policy.join", problem, allowed.to_owned(), "List the keys of your volunteers"));
    }
    self::keys(
        "policy.join",
        keys,
        allowed,
        "Copy the key that `swarmline join` or `swarmline key FILE` prints on the volunteer's machine",
    )
}

fn feed(feed: &Feed) -> Checked {
    let Feed::Keys(keys) = feed else { return Ok(()) };
    let allowed = format!(
        "\"first\", \"members\", or a list of 1 to {} public keys of 64 hexadecimal digits each",
        limits::FEEDERS_MAX
    );
    if keys.is_empty() || keys.len() > limits::FEEDERS_MAX {
        let problem = format!("is a list of {} keys", keys.len());
        return Err(broken("policy.feed", problem, allowed, "List the keys of your feeders"));
    }
    self::keys(
        "policy.feed",
        keys,
        &allowed,
        "Copy the key that `swarmline feed` or `swarmline key FILE` prints",
    )
}

fn keys(field: &'static str, keys: &[String], allowed: &str, remedy: &str) -> Checked {
    if let Some(index) = keys.iter().position(|key| key.trim_start().starts_with(SECRET_MARK)) {
        let problem =
            format!("has an entry, number {}, that is a secret: the content of a key file", index + 1);
        let remedy = "Write the public key that `swarmline key FILE` prints, and remove that key file for a new one if \
                      others may have read this run file";
        return Err(broken(field, problem, allowed.to_owned(), remedy));
    }
    let is_key =
        |key: &String| HEXLOWER_PERMISSIVE.decode(key.as_bytes()).is_ok_and(|bytes| bytes.len() == KEY_BYTES);
    let Some(index) = keys.iter().position(|key| !is_key(key)) else { return Ok(()) };
    let problem = format!("has an entry, number {}, that is not a key", index + 1);
    Err(broken(field, problem, allowed.to_owned(), remedy))
}

/// Products of sizes that are each allowed.
fn totals(run: &Run) -> Checked {
    let frame = run.tokens_per_microbatch() as u64 * run.model.hidden_size as u64 * 4;
    if frame > limits::BOUNDARY_BYTES_MAX {
        let problem = format!("makes activations of {frame} bytes a microbatch");
        let allowed =
            format!("up to {} bytes of hidden_size x tokens of a microbatch x 4", limits::BOUNDARY_BYTES_MAX);
        return Err(broken("batch.sequences", problem, allowed, "Use fewer sequences"));
    }
    let largest = run.stages().map(|stage| run.stage_parameters(stage)).max().unwrap_or(0);
    if largest > limits::STAGE_PARAMETERS_MAX {
        let problem = format!("leaves a stage with {largest} parameters");
        let allowed = format!("up to {} a stage", limits::STAGE_PARAMETERS_MAX);
        return Err(broken("pipeline.stages", problem, allowed, "Cut into more stages"));
    }
    Ok(())
}

fn count(field: &'static str, value: usize, min: usize, max: usize) -> Checked {
    number(field, value as u64, min as u64, max as u64)
}

fn number(field: &'static str, value: u64, min: u64, max: u64) -> Checked {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    let remedy = if value < min { "Raise it" } else { "Lower it" };
    Err(broken(field, format!("is {value}"), format!("{min} to {max}"), remedy))
}

fn real(field: &'static str, value: f32, allowed: std::ops::RangeInclusive<f32>) -> Checked {
    if allowed.contains(&value) {
        return Ok(());
    }
    let text = format!("{} to {}", allowed.start(), allowed.end());
    Err(broken(field, format!("is {value}"), text, remedy_for(value, *allowed.end())))
}

fn positive(field: &'static str, value: f32, max: f32) -> Checked {
    if value > 0.0 && value <= max {
        return Ok(());
    }
    Err(broken(field, format!("is {value}"), format!("above 0, up to {max}"), remedy_for(value, max)))
}

fn below_one(field: &'static str, value: f32) -> Checked {
    if (0.0..1.0).contains(&value) {
        return Ok(());
    }
    Err(broken(field, format!("is {value}"), "0 to below 1".to_owned(), remedy_for(value, 1.0)))
}

fn remedy_for(value: f32, max: f32) -> &'static str {
    if value.is_nan() {
        "Write a number, or leave it out for the default"
    } else if value >= max {
        "Lower it, or leave it out for the default"
    } else {
        "Raise it, or leave it out for the default"
    }
}

fn divisors(value: usize) -> String {
    const SHOWN_MAX: usize = 12;
    let all: Vec<_> =
        (1..=value).filter(|divisor| value.is_multiple_of(*divisor)).map(|d| d.to_string()).collect();
    let more = if all.len() > SHOWN_MAX { ", ..." } else { "" };
    format!("{}{more}", all[..all.len().min(SHOWN_MAX)].join(", "))
}

fn broken(field: &'static str, problem: String, allowed: String, remedy: &str) -> Violation {
    Violation { field: field.to_owned(), problem, allowed, remedy: remedy.to_owned() }
}
