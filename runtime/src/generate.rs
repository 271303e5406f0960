//! Text from the weights of a whole model, in one process.

mod attention;
mod continuation;
mod decoder;
mod sampler;
mod text;

use std::path::Path;

use swarmline_kernels::Cpu;

use crate::data::TextTokenizer;
use crate::error::Error;
use crate::report::GenerateReport;
use crate::weights::{HuggingFace, SavedRun, Weights};

pub use continuation::Continuation;
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
    /// The replicas of a swarm see no more tokens than a sequence of their run has.
    #[error("the prompt has {tokens} tokens, and the model of this run sees {context} at once; shorten it")]
    PromptTooLong {
        /// Tokens of the prompt.
        tokens: usize,
        /// Tokens of a sequence.
        context: usize,
    },
    /// The tokenizer cannot encode the prompt, or decode the text.
    #[error("the tokenizer fails: {0}; use the tokenizer.json of this model")]
    Tokenizer(String),
    /// The last stage has replied with logits of another vocabulary.
    #[error(
        "the last stage replied with {found} logits where the run has {vocab} tokens; run the same release there"
    )]
    Logits {
        /// Logits of the reply.
        found: usize,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// The tokenizer is not that of the run.
    #[error("the tokenizer file is not that of the run; name it with --tokenizer FILE")]
    OtherTokenizer,
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
    let prompt = encode(&model.tokenizer, prompt)?;
    let mut decoder = Decoder::new(Cpu::new(threads)?, &mut *model.weights)?;
    let mut text = Continuation::behind(&model.tokenizer, &prompt, &model.ends, tokens, sampling);
    let mut logits = decoder.feed(&prompt)?;
    while !text.is_complete()
        && let Some(id) = text.push(&logits, &mut tell)?
    {
        if !text.is_complete() {
            logits = decoder.feed(&[id])?;
        }
    }
    Ok(text.finish(tell)?)
}

/// The ids of a prompt.
///
/// # Errors
/// [`GenerateError::EmptyPrompt`] if there are none, [`GenerateError::Tokenizer`] if the tokenizer fails.
pub fn encode(tokenizer: &TextTokenizer, prompt: &str) -> Result<Vec<u32>, GenerateError> {
    let ids: Vec<u32> =
        tokenizer.encode(prompt.as_bytes()).map_err(GenerateError::Tokenizer)?.iter().collect();
    if ids.is_empty() { Err(GenerateError::EmptyPrompt) } else { Ok(ids) }
}

#[cfg(test)]
mod tests;
