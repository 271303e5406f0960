//! A folder that `transformers` loads as a `LlamaForCausalLM`, read and written.

mod config;
mod tensors;
mod tokenizer;
mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{DenseParameter, TensorFiles, Weights, WeightsError, dense_parameters};
use crate::config::{Model, Run, Tokenizer};
use crate::data::TextTokenizer;
use config::ModelConfig;

pub use tensors::Dtype;
pub use write::write;
#[cfg(test)]
pub(crate) use write::write_cut;

const CONFIG: &str = "config.json";
const GENERATION_CONFIG: &str = "generation_config.json";
const TOKENIZER: &str = "tokenizer.json";
const TOKENIZER_CONFIG: &str = "tokenizer_config.json";
const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";

/// An open folder in the format of Hugging Face.
#[derive(Debug)]
pub struct HuggingFace {
    folder: PathBuf,
    model: Model,
    parameters: BTreeMap<String, DenseParameter>,
    files: TensorFiles,
    has_head: bool,
    ends: Vec<u32>,
}

impl HuggingFace {
    /// Whether `folder` claims to be one: it has a `config.json`.
    #[must_use]
    pub fn is_at(folder: &Path) -> bool {
        folder.join(CONFIG).is_file()
    }

    /// Opens a folder and checks that it is a LLaMA that this program computes, with every tensor in its shape.
    ///
    /// # Errors
    /// A file is missing or broken, the model is of another architecture, or a tensor is missing or has another shape.
    pub fn open(folder: &Path) -> Result<Self, WeightsError> {
        if !Self::is_at(folder) {
            let remedy = "Give a folder that `swarmline export` has written, or another LlamaForCausalLM";
            return Err(WeightsError::unusable(folder, "there is no config.json in it", remedy));
        }
        let config = ModelConfig::read(&folder.join(CONFIG))?;
        let files = open_tensors(folder)?;
        let parameters = dense_parameters(&config.model);
        let parameters = parameters.into_iter().map(|parameter| (parameter.name.clone(), parameter));
        let (has_head, ends) = (!config.shares_embedding, config.ends);
        let folder = Self {
            folder: folder.to_owned(),
            model: config.model,
            parameters: parameters.collect(),
            files,
            has_head,
            ends,
        };
        folder.check()?;
        Ok(folder)
    }

    /// The tokenizer in the folder.
    ///
    /// # Errors
    /// It is missing or broken, or has more entries than the model.
    pub fn tokenizer(&self) -> Result<TextTokenizer, WeightsError> {
        let path = self.folder.join(TOKENIZER);
        if !path.is_file() {
            let remedy = "Copy the tokenizer.json of the model into the folder";
            return Err(WeightsError::unusable(&self.folder, "it has no tokenizer.json", remedy));
        }
        let tokenizer = TextTokenizer::load(&Tokenizer::File(TOKENIZER.into()), &self.folder)?;
        let (entries, vocab) = (tokenizer.vocab(), self.model.vocab_size);
        if entries > vocab {
            let problem = format!("it has {entries} entries, but the vocab_size of the model is {vocab}");
            return Err(WeightsError::unusable(&path, problem, "Use the tokenizer of this model"));
        }
        Ok(tokenizer)
    }

    /// Ids that end a text.
    #[must_use]
    pub fn ends(&self) -> &[u32] {
        &self.ends
    }

    /// Checks that a run, whose paths start from `base`, trains a model with the sizes and the tokenizer of this one.
    ///
    /// # Errors
    /// A size differs, or the tokenizer does.
    pub fn check_run(&self, run: &Run, base: &Path) -> Result<(), WeightsError> {
        if let Some(difference) = difference(&self.model, &run.model) {
            let remedy = "Change [model] in the run file; `swarmline check` prints it whole";
            return Err(WeightsError::unusable(&self.folder.join(CONFIG), difference, remedy));
        }
        let path = self.folder.join(TOKENIZER);
        if path.is_file() && std::fs::read(&path).ok() != tokenizer::file_of(&run.data.tokenizer, base).ok() {
            let problem = "it is not the tokenizer of the run, so its ids mean other text";
            let remedy = format!("Write tokenizer = \"{}\" below [data] in the run file", path.display());
            return Err(WeightsError::unusable(&path, problem, remedy));
        }
        Ok(())
    }

    fn check(&self) -> Result<(), WeightsError> {
        self.parameters.values().filter(|parameter| self.reads(parameter)).try_for_each(|parameter| {
            let name = &parameter.hugging_face;
            let file = self.files.with(name).ok_or_else(|| self.missing(name))?;
            let shape = file.shape(name).unwrap_or_default();
            if shape == parameter.shape {
                return Ok(());
            }
            let expected = &parameter.shape;
            let problem = format!("{name} has shape {shape:?}, config.json demands {expected:?}");
            Err(WeightsError::unusable(file.path(), problem, "Take all files of the folder from one model"))
        })
    }

    /// Whether the parameter has a tensor of its own: a shared head has none.
    fn reads(&self, parameter: &DenseParameter) -> bool {
        self.has_head || parameter.name != "head"
    }

    fn missing(&self, tensor: &str) -> WeightsError {
        let problem = format!("no file of it has the tensor {tensor}");
        WeightsError::unusable(&self.folder, problem, "Copy the folder again, with every .safetensors file")
    }
}

impl Weights for HuggingFace {
    fn model(&self) -> &Model {
        &self.model
    }

    fn read(&mut self, name: &str) -> Result<Vec<f32>, WeightsError> {
        let name = if name == "head" && !self.has_head { "embed" } else { name };
        let Some(parameter) = self.parameters.get(name) else {
            let problem = format!("its model has no parameter {name}");
            return Err(WeightsError::unusable(&self.folder, problem, "Use a folder of the same model"));
        };
        let tensor = &parameter.hugging_face;
        match self.files.with_mut(tensor) {
            Some(file) => file.read(tensor),
            None => Err(self.missing(tensor)),
        }
    }
}

/// The first size in which two models compute different functions. Both may have seen texts of different lengths.
fn difference(theirs: &Model, ours: &Model) -> Option<String> {
    let sizes = |model: &Model| {
        [
            ("hidden_size", model.hidden_size as f64),
            ("num_hidden_layers", model.num_hidden_layers as f64),
            ("num_attention_heads", model.num_attention_heads as f64),
            ("num_key_value_heads", model.num_key_value_heads as f64),
            ("intermediate_size", model.intermediate_size as f64),
            ("vocab_size", model.vocab_size as f64),
            ("rope_theta", f64::from(model.rope_theta)),
            ("rms_norm_eps", f64::from(model.rms_norm_eps)),
        ]
    };
    let pairs = sizes(theirs).into_iter().zip(sizes(ours));
    let mut different = pairs.filter(|(theirs, ours)| theirs.1 != ours.1);
    different.next().map(|((name, theirs), (_, ours))| format!("{name} is {theirs}, but the run has {ours}"))
}

fn open_tensors(folder: &Path) -> Result<TensorFiles, WeightsError> {
    let names = match tensors::read_index(&folder.join(INDEX))? {
        Some(names) => names,
        None if folder.join(WEIGHTS).is_file() => vec![WEIGHTS.to_owned()],
        None => {
            let problem = format!("it has neither {WEIGHTS} nor {INDEX}");
            let remedy = "Give a folder with weights in the safetensors format";
            return Err(WeightsError::unusable(folder, problem, remedy));
        }
    };
    TensorFiles::open(folder, names.iter().map(|name| folder.join(name)))
}
