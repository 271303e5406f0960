//! `config.json`: the sizes of a model, under the names that a run file has for them too.

use std::path::Path;

use serde::Deserialize;
use serde_json::{Value, json};

use super::Dtype;
use crate::config::Model;
use crate::weights::WeightsError;
use crate::weights::small_files::read_json;

const REMEDY: &str = "Only LLaMA models without biases and with plain rotary positions can be read";

/// The parts of a `config.json` that this program reads.
#[derive(Clone, Debug)]
pub(super) struct ModelConfig {
    pub(super) model: Model,
    /// Whether the head is the embedding.
    pub(super) shares_embedding: bool,
    /// Ids that end a text.
    pub(super) ends: Vec<u32>,
}

/// `config.json` as it is written. Fields that `transformers` has defaults for may be missing.
#[derive(Debug, Deserialize)]
struct Written {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    max_position_embeddings: Option<usize>,
    vocab_size: usize,
    rms_norm_eps: Option<f32>,
    rope_theta: Option<f32>,
    rope_scaling: Option<Rope>,
    rope_parameters: Option<Rope>,
    hidden_act: Option<String>,
    #[serde(default)]
    attention_bias: bool,
    #[serde(default)]
    mlp_bias: bool,
    #[serde(default)]
    tie_word_embeddings: bool,
    eos_token_id: Option<Ends>,
}

#[derive(Debug, Deserialize)]
struct Rope {
    #[serde(alias = "type")]
    rope_type: Option<String>,
    rope_theta: Option<f32>,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Ends {
    One(u32),
    Several(Vec<u32>),
}

impl ModelConfig {
    pub(super) fn read(path: &Path) -> Result<Self, WeightsError> {
        let written: Written = serde_json::from_slice(&read_json(path)?).map_err(|error| {
            let problem = format!("not the configuration of a LLaMA: {error}");
            WeightsError::unusable(path, problem, "Give a folder that holds a LlamaForCausalLM")
        })?;
        if let Some(problem) = written.unsupported() {
            return Err(WeightsError::unusable(path, problem, REMEDY));
        }
        let model = written.model();
        model
            .check()
            .map_err(|violation| WeightsError::unusable(path, violation.to_string(), "Is the file whole?"))?;
        let ends = match written.eos_token_id {
            None => Vec::new(),
            Some(Ends::One(end)) => vec![end],
            Some(Ends::Several(ends)) => ends,
        };
        Ok(Self { model, shares_embedding: written.tie_word_embeddings, ends })
    }
}

impl Written {
    /// The part of the model that this program does not compute, if there is one.
    fn unsupported(&self) -> Option<String> {
        let ropes = [&self.rope_scaling, &self.rope_parameters].into_iter().flatten();
        let scaled = ropes.filter_map(|rope| rope.rope_type.as_deref()).find(|kind| *kind != "default");
        let heads = self.num_attention_heads.max(1);
        let wide = self.head_dim.filter(|width| width.checked_mul(heads) != Some(self.hidden_size));
        let activation = self.hidden_act.as_deref().filter(|activation| *activation != "silu");
        if self.model_type != "llama" {
            Some(format!("model_type is {:?}, not \"llama\"", self.model_type))
        } else if self.attention_bias || self.mlp_bias {
            Some("its layers have biases".to_owned())
        } else if let Some(activation) = activation {
            Some(format!("hidden_act is {activation:?}, not \"silu\""))
        } else if let Some(kind) = scaled {
            Some(format!("its rotary positions are scaled ({kind})"))
        } else {
            wide.map(|width| format!("head_dim is {width}, not hidden_size / num_attention_heads"))
        }
    }

    fn model(&self) -> Model {
        let theta = self.rope_parameters.as_ref().and_then(|rope| rope.rope_theta);
        Model {
            hidden_size: self.hidden_size,
            num_hidden_layers: self.num_hidden_layers,
            num_attention_heads: self.num_attention_heads,
            num_key_value_heads: self.num_key_value_heads.unwrap_or(self.num_attention_heads),
            intermediate_size: self.intermediate_size,
            // The defaults of `transformers`.
            max_position_embeddings: self.max_position_embeddings.unwrap_or(2048),
            vocab_size: self.vocab_size,
            rope_theta: self.rope_theta.or(theta).unwrap_or(10_000.0),
            rms_norm_eps: self.rms_norm_eps.unwrap_or(1e-6),
        }
    }
}

/// The `config.json` of `model`.
pub(super) fn config(model: &Model, dtype: Dtype) -> Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": model.hidden_size,
        "intermediate_size": model.intermediate_size,
        "num_hidden_layers": model.num_hidden_layers,
        "num_attention_heads": model.num_attention_heads,
        "num_key_value_heads": model.num_key_value_heads,
        "head_dim": model.head_width(),
        "max_position_embeddings": model.max_position_embeddings,
        "vocab_size": model.vocab_size,
        "rms_norm_eps": shortest(model.rms_norm_eps),
        "rope_theta": shortest(model.rope_theta),
        "rope_scaling": null,
        "hidden_act": "silu",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "mlp_bias": false,
        "tie_word_embeddings": false,
        "bos_token_id": null,
        "eos_token_id": null,
        "pad_token_id": null,
        "initializer_range": 0.02,
        "use_cache": true,
        "torch_dtype": dtype.torch_name(),
    })
}

/// The `generation_config.json` of every exported model: no token begins or ends a text.
pub(super) fn generation_config() -> Value {
    json!({ "do_sample": false, "bos_token_id": null, "eos_token_id": null, "pad_token_id": null })
}

/// The f64 with the shortest digits that give this f32 back: 1e-5 and not 9.999999747378752e-6.
fn shortest(number: f32) -> f64 {
    number.to_string().parse().unwrap_or(f64::from(number))
}
