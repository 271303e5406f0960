//! `swarmline generate FROM PROMPT`.

use std::io::Write as _;
use std::path::PathBuf;

use super::saved::Reading;
use super::{Failure, reporter};
use crate::generate::{Sampling, TextModel, generate};
use crate::report::Event;
use crate::weights::HuggingFace;

/// Arguments of `swarmline generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A folder that `swarmline export` has written, a checkpoint, the folder or bucket of a keeper, or saved stages with --run
    from: PathBuf,
    /// The text to continue
    prompt: String,
    /// Length of the continuation
    #[arg(long, value_name = "N", default_value_t = 100)]
    tokens: usize,
    /// 0 takes the most likely token; 1 draws tokens as likely as the model finds them
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = parse_temperature)]
    temperature: f32,
    /// Draw from the most likely tokens that have this share of the probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, value_parser = parse_share)]
    top_p: f32,
    /// Seed of the draws
    #[arg(long, value_name = "S", default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    reading: Reading,
    /// Print one JSON object: ids, text, seconds
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { prompt, tokens, temperature, top_p, seed, json, .. } = arguments;
    let threads = arguments.reading.threads();
    let sampling = Sampling { temperature: *temperature, top_p: *top_p, seed: *seed };
    let model = open(arguments)?;
    if *json {
        let report = generate(model, prompt, *tokens, sampling, threads, |_| {})?;
        reporter(true).tell(&Event::Generated(report));
        return Ok(());
    }
    print(prompt);
    generate(model, prompt, *tokens, sampling, threads, print)?;
    print("\n");
    Ok(())
}

fn open(arguments: &Arguments) -> Result<TextModel, Failure> {
    let Arguments { from, reading, .. } = arguments;
    if reading.run.is_none() && HuggingFace::is_at(from) {
        return Ok(TextModel::of_folder(from)?);
    }
    Ok(TextModel::of_run(reading.open(from)?)?)
}

/// Shows a piece of text at once. A closed pipe is not an error.
fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "a number from 0 is needed".to_owned())
}

fn parse_share(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a number from 0 to 1 is needed".to_owned())
}
