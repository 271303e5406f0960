//! A text that is continued token by token, wherever its logits come from.

use std::time::Instant;

use super::GenerateError;
use super::sampler::{Sampler, Sampling};
use super::text::TextStream;
use crate::data::TextTokenizer;
use crate::report::GenerateReport;

/// The continuation of a prompt.
#[derive(Debug)]
pub struct Continuation<'t> {
    sampler: Sampler,
    text: TextStream<'t>,
    ends: &'t [u32],
    tokens: usize,
    started: Instant,
    report: GenerateReport,
}

impl<'t> Continuation<'t> {
    /// The continuation of `prompt` by up to `tokens` tokens, or up to an id of `ends`, which is left out.
    #[must_use]
    pub fn behind(
        tokenizer: &'t TextTokenizer,
        prompt: &[u32],
        ends: &'t [u32],
        tokens: usize,
        sampling: Sampling,
    ) -> Self {
        let text = TextStream::behind(tokenizer, prompt);
        let (sampler, report) = (Sampler::new(sampling), GenerateReport::default());
        Self { sampler, text, ends, tokens, started: Instant::now(), report }
    }

    /// Whether the continuation has all its tokens.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.report.ids.len() >= self.tokens
    }

    /// Chooses the next token by the logits behind the text so far; `None` at the end of the text. `tell` gets what is whole
    /// characters by now.
    ///
    /// # Errors
    /// [`GenerateError::NonFinite`] if a logit is not finite, [`GenerateError::Tokenizer`] if the tokenizer fails.
    pub fn push(&mut self, logits: &[f32], mut tell: impl FnMut(&str)) -> Result<Option<u32>, GenerateError> {
        let id = self.sampler.choose(logits).ok_or(GenerateError::NonFinite)?;
        if self.ends.contains(&id) {
            self.tokens = self.report.ids.len();
            return Ok(None);
        }
        self.report.ids.push(id);
        let piece = self.text.push(id).map_err(GenerateError::Tokenizer)?;
        tell(&piece);
        self.report.text += &piece;
        Ok(Some(id))
    }

    /// The whole continuation. `tell` gets the rest of the text.
    ///
    /// # Errors
    /// [`GenerateError::Tokenizer`] if the tokenizer fails.
    pub fn finish(mut self, mut tell: impl FnMut(&str)) -> Result<GenerateReport, GenerateError> {
        let rest = self.text.finish().map_err(GenerateError::Tokenizer)?;
        tell(&rest);
        self.report.text += &rest;
        self.report.seconds = self.started.elapsed().as_secs_f64();
        Ok(self.report)
    }
}
