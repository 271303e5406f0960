//! `swarmline generate FROM PROMPT`, and `swarmline generate --swarm ADDRESS PROMPT`.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use super::output::{self, Output};
use super::saved::Reading;
use super::{Failure, Leash, StopRequest, block_on, reporter};
use crate::error::Error;
use crate::generate::{Sampling, TextModel, generate};
use crate::net::{Identity, Invite};
use crate::process::join_after_former;
use crate::reader::{Reader, ReaderOptions};
use crate::report::{Event, GenerateReport, Reporter};
use crate::weights::HuggingFace;

/// A request to join that is under way when a person interrupts gets this long, so that the reader can leave again.
const JOINS_WITHIN: Duration = Duration::from_secs(1);

/// Arguments of `swarmline generate`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// A folder that `swarmline export` has written, a checkpoint, the folder or bucket of a keeper, the folder of a run, or
    /// saved stages with --run; none with --swarm
    #[arg(value_name = "FROM", required = true)]
    from: OsString,
    /// The text to continue
    #[arg(value_name = "PROMPT", required_unless_present = "swarm")]
    prompt: Option<String>,
    #[command(flatten)]
    swarm: Swarm,
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

/// The live swarm that generates, in place of a saved model.
#[derive(Debug, clap::Args)]
struct Swarm {
    /// Let the replicas of this run generate: the invite its coordinator printed, KEY@HOST:PORT
    #[arg(long, value_name = "ADDRESS", conflicts_with_all = ["run", "threads"])]
    swarm: Option<Invite>,
    /// Address on which replicas reach this process; port 0 takes any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:0", requires = "swarm")]
    listen: SocketAddr,
    /// The key of this process, for a run that admits listed keys only
    #[arg(long, value_name = "FILE", requires = "swarm")]
    identity: Option<PathBuf>,
    /// The tokenizer file of the run, where the coordinator's is not on this machine
    #[arg(long, value_name = "FILE", requires = "swarm")]
    tokenizer: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { tokens, temperature, top_p, seed, json, .. } = arguments;
    let wanted = Wanted {
        prompt: arguments.prompt()?,
        tokens: *tokens,
        sampling: Sampling { temperature: *temperature, top_p: *top_p, seed: *seed },
    };
    let (mut output, mut unshown) = (Output::default(), Some(wanted.prompt));
    // The prompt comes with the first text: where there is none, nothing is written.
    let mut show = |text: &str| {
        if !*json {
            unshown.take().into_iter().chain([text]).for_each(|text| output.show(text));
        }
    };
    let report = match &arguments.swarm.swarm {
        Some(invite) => arguments.swarm.generate(invite, wanted, *json, &mut show)?,
        None => {
            let (model, threads) = (open(arguments)?, arguments.reading.threads());
            generate(model, wanted.prompt, wanted.tokens, wanted.sampling, threads, &mut show)?
        }
    };
    show("\n");
    output.done()?;
    if !*json {
        return Ok(());
    }
    let reporter = reporter(true);
    reporter.tell(&Event::Generated(report));
    output::told(&reporter)
}

/// The text that is wanted.
#[derive(Clone, Copy, Debug)]
struct Wanted<'a> {
    prompt: &'a str,
    tokens: usize,
    sampling: Sampling,
}

impl Arguments {
    /// The prompt: with --swarm the only argument, else the second.
    fn prompt(&self) -> Result<&str, Failure> {
        match (&self.swarm.swarm, &self.prompt) {
            (Some(_), None) => {
                self.from.to_str().ok_or_else(|| Failure::failed("the prompt is not UTF-8".to_owned()))
            }
            (None, Some(prompt)) => Ok(prompt),
            (Some(_), Some(_)) => {
                Err(Failure::usage("with --swarm give a prompt only: the swarm has the model".to_owned()))
            }
            (None, None) => Err(Failure::usage("a prompt is needed behind the model".to_owned())),
        }
    }
}

impl Swarm {
    /// Generates by the replicas of a run. In the text no line says that a replica was replaced.
    fn generate(
        &self,
        invite: &Invite,
        wanted: Wanted<'_>,
        json: bool,
        show: impl FnMut(&str),
    ) -> Result<GenerateReport, Failure> {
        let Wanted { prompt, tokens, sampling } = wanted;
        let stop = StopRequest::listen(Leash::default())?;
        let reporter = if json { reporter(true) } else { Reporter::silent() };
        let identity = Identity::load_or_ephemeral(self.identity.as_deref()).map_err(Error::from)?;
        let options = ReaderOptions::new(invite.clone(), identity)
            .with_listen(self.listen)
            .with_tokenizer(self.tokenizer.clone());
        block_on(async {
            let interrupted = || Err(Failure::interrupted("stopped before the text was complete"));
            let mut stop = pin!(stop.requested());
            let mut joining = pin!(join_after_former(&reporter, || Reader::join(options.clone())));
            let mut reader = tokio::select! {
                () = stop.as_mut() => {
                    // The request that is under way may have made it a member.
                    if let Ok(Ok(reader)) = tokio::time::timeout(JOINS_WITHIN, joining).await {
                        reader.leave().await;
                    }
                    return interrupted();
                }
                reader = joining.as_mut() => reader?,
            };
            let written = tokio::select! {
                () = stop.as_mut() => interrupted(),
                written = reader.generate(prompt, tokens, sampling, &reporter, show) => Ok(written?),
            };
            reader.leave().await;
            written
        })
    }
}

fn open(arguments: &Arguments) -> Result<TextModel, Failure> {
    let (from, reading) = (Path::new(&arguments.from), &arguments.reading);
    if reading.run.is_none() && HuggingFace::is_at(from) {
        return Ok(TextModel::of_folder(from)?);
    }
    Ok(TextModel::of_run(reading.open(from)?)?)
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number: &f32| number.is_finite() && *number >= 0.0);
    number.ok_or_else(|| "a number from 0 is needed".to_owned())
}

fn parse_share(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (0.0..=1.0).contains(number));
    number.ok_or_else(|| "a number from 0 to 1 is needed".to_owned())
}
