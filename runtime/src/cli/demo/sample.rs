//! A text by the model that a demo leaves behind.

use std::path::Path;

use crate::cli::failure::Failure;
use crate::cli::saved;
use crate::generate::{Sampling, TextModel, generate};

/// Length of the text, tokens.
const TOKENS: usize = 120;
/// Less likely tokens are drawn less often than the model finds them likely: the text of so small a model reads better.
const SAMPLING: Sampling = Sampling { temperature: 0.6, top_p: 0.9, seed: 1 };

/// A text that begins with `prompt`; `None` without a checkpoint.
pub(super) fn of_checkpoint(checkpoint: Option<&str>, prompt: &str) -> Result<Option<String>, Failure> {
    let Some(checkpoint) = checkpoint else { return Ok(None) };
    let model = TextModel::of_run(saved::open(Path::new(checkpoint), None, 1)?)?;
    let text = generate(model, prompt, TOKENS, SAMPLING, 1, |_| {})?.text;
    Ok(Some(format!("{prompt}{text}")))
}
