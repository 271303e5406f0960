//! Text from the weights of a whole model, in one process.

mod attention;
mod decoder;
mod sampler;
mod text;

use std::path::Path;
use std::time::Instant;

use swarmline_kernels::Cpu;

use crate::data::TextTokenizer;
use crate::error::Error;
use crate::report::GenerateReport;
use crate::weights::{HuggingFace, SavedRun, Weights};

pub use decoder::Decoder;
pub use sampler::{Sampler, Sampling};
pub use text::TextStream;

/// Reasons why no text can be generated.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GenerateError {
    /// A model continues text; without a token there is nothing to continue.
    #[error("the prompt has no token; give a few words to continue")]
    EmptyPrompt,
    /// The tokenizer cannot encode the prompt, or decode the text.
    #[error("the tokenizer fails: {0}; use the tokenizer.json of this model")]
    Tokenizer(String),
    /// A logit is a NaN or an infinity.
    #[error(
        "the model computes numbers that are not finite: its training had diverged; use weights that were saved before"
    )]
    NonFinite,
}

/// The model that generates: weights, tokenizer, and the ids that end a text.
pub struct TextModel {
    weights: Box<dyn Weights>,
    tokenizer: TextTokenizer,
    ends: Vec<u32>,
}

impl std::fmt::Debug for TextModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TextModel").field("model", self.weights.model()).finish_non_exhaustive()
    }
}

impl TextModel {
    /// The model in a Hugging Face folder.
    ///
    /// # Errors
    /// If a file of the folder is missing, torn or not of a model that this program computes.
    pub fn of_folder(folder: &Path) -> Result<Self, Error> {
        let weights = HuggingFace::open(folder)?;
        let (tokenizer, ends) = (weights.tokenizer()?, weights.ends().to_vec());
        Ok(Self { weights: Box::new(weights), tokenizer, ends })
    }

    /// The model that the stages of a run have saved.
    ///
    /// # Errors
    /// The tokenizer of the run cannot be loaded.
    pub fn of_run(saved: SavedRun) -> Result<Self, Error> {
        let tokenizer = TextTokenizer::load(&saved.run().data.tokenizer, saved.base())?;
        Ok(Self { weights: Box::new(saved), tokenizer, ends: Vec::new() })
    }
}

/// Continues `prompt` by up to `tokens` tokens. `tell` gets the text piece by piece, as soon as it is whole characters.
///
/// # Errors
/// The weights cannot be read, the device has no memory, the tokenizer fails ([`GenerateError`]), or the model has
/// diverged.
pub fn generate(
    mut model: TextModel,
    prompt: &str,
    tokens: usize,
    sampling: Sampling,
    threads: usize,
    mut tell: impl FnMut(&str),
) -> Result<GenerateReport, Error> {
    let encoded = model.tokenizer.encode(prompt.as_bytes()).map_err(GenerateError::Tokenizer)?;
    let prompt: Vec<u32> = encoded.iter().collect();
    if prompt.is_empty() {
        return Err(GenerateError::EmptyPrompt.into());
    }
    let mut decoder = Decoder::new(Cpu::new(threads)?, &mut *model.weights)?;
    let mut text = TextStream::behind(&model.tokenizer, &prompt);
    let mut sampler = Sampler::new(sampling);
    let started = Instant::now();
    let mut report = GenerateReport::default();
    let mut logits = decoder.feed(&prompt)?;
    while report.ids.len() < tokens {
        let id = sampler.choose(&logits).ok_or(GenerateError::NonFinite)?;
        if model.ends.contains(&id) {
            break;
        }
        report.ids.push(id);
        let piece = text.push(id).map_err(GenerateError::Tokenizer)?;
        tell(&piece);
        report.text += &piece;
        if report.ids.len() < tokens {
            logits = decoder.feed(&[id])?;
        }
    }
    let rest = text.finish().map_err(GenerateError::Tokenizer)?;
    tell(&rest);
    report.text += &rest;
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

#[cfg(test)]
mod tests;
