//! `swarmline demo`: a whole swarm on one machine, without preparation.

mod audit;
mod sample;
mod screen;
mod swarm;
mod table;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use screen::Screen;
use swarm::{Output, Source, Swarm};
use table::Summary;

use super::computing::Computing;
use super::{Failure, Leash, StopRequest, block_on, output};
use crate::config::{Data, Run};
use crate::data::sources;
use crate::report::{Event, Incident};

/// Arguments of `swarmline demo`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Learn from these files or directories instead of the Rust sources found on this machine
    #[arg(long, value_name = "PATH")]
    data: Vec<PathBuf>,
    #[command(flatten)]
    computing: Computing,
    /// Optimizer steps of each replica
    #[arg(long, value_name = "N", default_value_t = STEPS, value_parser = clap::value_parser!(u64).range(1..))]
    steps: u64,
    /// Seed of weights and batches
    #[arg(long, value_name = "N", default_value_t = 7)]
    seed: u64,
    /// Print the figures as one JSON object in the last line
    #[arg(long)]
    pub(super) json: bool,
}

/// Enough for a model of a million parameters to beat bigrams clearly, on two cores within two minutes.
const STEPS: u64 = 350;

/// The beginnings of the sample of a model of Rust sources, and of other text.
const SOURCE_PROMPT: &str = "    pub fn ";
const TEXT_PROMPT: &str = "The ";

/// The run, as a coordinator would write it.
const RUN: &str = include_str!("demo/run.toml");

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let stop = StopRequest::listen(Leash::default())?;
    let mut summary = block_on(demonstrate(arguments, stop))?;
    let prompt = if arguments.data.is_empty() { SOURCE_PROMPT } else { TEXT_PROMPT };
    summary.take_sample(sample::of_checkpoint(summary.checkpoint.as_deref(), prompt)?);
    present(&summary, arguments.json)?;
    verdict(&summary)
}

/// Trains the model in a swarm. What its keeper has kept stays, for the person to export.
async fn demonstrate(arguments: &Arguments, stop: StopRequest) -> Result<Summary, Failure> {
    let started = Instant::now();
    let setup = arguments.computing.setup(1)?;
    let mut screen = Screen::new();
    let folder = tempfile::Builder::new().prefix("swarmline-demo-").tempdir().map_err(|error| {
        Failure::failed(format!("cannot make a temporary folder for the run file: {error}"))
    })?;
    let run_file = folder.path().join("run.toml");
    let run = write_run_file(arguments, &run_file, &mut screen)?;

    let mut swarm = Swarm::new(folder.path(), setup);
    let mut summary = Summary::new(run.pipeline.mode);
    let outcome = tokio::select! {
        outcome = train(&run, &run_file, &mut swarm, &mut screen, &mut summary) => outcome,
        () = stop.requested() => Err(Failure::interrupted("stopped; every process of the demo has ended")),
    };
    swarm.stop().await;
    outcome?;
    summary.take_audit(&audit::of_applied_logs(folder.path())?);
    summary.seconds = started.elapsed().as_secs_f64();
    if summary.checkpoint.is_some() {
        let _ = folder.keep();
    }
    Ok(summary)
}

/// Completes the run file and checks it like any run file.
fn write_run_file(arguments: &Arguments, path: &Path, screen: &mut Screen) -> Result<Run, Failure> {
    let data = if arguments.data.is_empty() {
        let found = sources::find().map_err(|error| Failure::failed(error.to_string()))?;
        screen.say(&found.description);
        found.data
    } else {
        Data::of(absolute(&arguments.data)?)
    };
    let text = run_text(arguments, &data);
    std::fs::write(path, &text)
        .map_err(|error| Failure::failed(format!("cannot write {}: {error}", path.display())))?;
    Run::load(path).map_err(|error| Failure::failed(error.to_string()))
}

fn absolute(paths: &[PathBuf]) -> Result<Vec<PathBuf>, Failure> {
    let absolute = |path: &PathBuf| {
        std::path::absolute(path)
            .map_err(|error| Failure::usage(format!("--data {}: {error}", path.display())))
    };
    paths.iter().map(absolute).collect()
}

/// The run file of a demo: [`RUN`] with seed, length and text.
fn run_text(arguments: &Arguments, data: &Data) -> String {
    let paths: Vec<_> = data.paths.iter().map(|path| path.to_string_lossy()).collect();
    let (paths, extensions) = (json(&paths), json(&data.extensions));
    format!(
        "seed = {}\n{RUN}steps = {}\n\n[data]\npaths = {paths}\nextensions = {extensions}\n",
        arguments.seed, arguments.steps
    )
}

/// A list of strings in JSON is one in TOML as well.
fn json(list: &impl serde::Serialize) -> String {
    serde_json::to_string(list).unwrap_or_else(|_| "[]".to_owned())
}

/// Starts every process and follows the output until the last process has ended.
async fn train(
    run: &Run,
    run_file: &Path,
    swarm: &mut Swarm,
    screen: &mut Screen,
    summary: &mut Summary,
) -> Result<(), Failure> {
    let (stages, replicas) = (run.pipeline.stages, run.pipeline.stages * run.pipeline.replicas);
    let (invite, manifest) = swarm.start_coordinator(run_file).await?;
    for index in 0..replicas {
        swarm.start_replica(index, &invite)?;
    }
    swarm.start_feeder(&invite)?;
    screen.say(&format!(
        "{} processes: a coordinator, its keeper, a feeder, {} replicas of each of {stages} stages; manifest {}",
        replicas + 3,
        run.pipeline.replicas,
        &manifest[..12]
    ));
    let mut followed = Followed { victim_stage: middle(stages), ..Followed::default() };
    while !followed.is_complete(replicas) {
        let Some((source, output)) = swarm.output().await else { break };
        followed.take(source, output, screen, summary)?;
        if let Some(victim) = followed.due_to_die() {
            swarm.kill(victim).await?;
            screen.say(&format!(
                "killed replica {victim} of stage {} in mid-flight (SIGKILL); a fresh one joins",
                followed.victim_stage
            ));
            summary.killed += 1;
            swarm.start_replica(replicas, &invite)?;
        }
    }
    Ok(())
}

/// A stage with neighbours on both sides, where there is one.
fn middle(stages: usize) -> u16 {
    u16::try_from(stages / 2).unwrap_or(0)
}

/// The state of the demo, from the output so far.
#[derive(Debug, Default)]
struct Followed {
    serving: usize,
    fed: bool,
    last_reports: usize,
    coordinator_gone: bool,
    /// The stage that loses a replica halfway.
    victim_stage: u16,
    /// A replica of that stage.
    victim: Option<usize>,
    halfway: bool,
    killed: Option<usize>,
    /// Peers that a process could not reach.
    unreachable: BTreeSet<String>,
}

impl Followed {
    /// The replica to kill now. Halfway, with a full window in flight, it holds stashes.
    fn due_to_die(&mut self) -> Option<usize> {
        let due = self.halfway && self.killed.is_none() && !self.fed;
        self.killed = if due { self.victim } else { self.killed };
        self.killed.filter(|_| due)
    }

    fn is_complete(&self, replicas: usize) -> bool {
        self.fed && self.last_reports == replicas && self.coordinator_gone
    }

    fn take(
        &mut self,
        source: Source,
        output: Output,
        screen: &mut Screen,
        summary: &mut Summary,
    ) -> Result<(), Failure> {
        let event = match output {
            Output::Event(event) => event,
            Output::Complaint(complaint) => {
                screen.say(&complaint);
                return Ok(());
            }
            Output::Ended => return self.left(source),
        };
        match event {
            Event::Serving { stage } => {
                self.serving += 1;
                if let (Source::Replica(index), true) = (source, stage == self.victim_stage) {
                    self.victim.get_or_insert(index);
                }
            }
            Event::Corpus { bigram, .. } => summary.loss_bigram = Some(bigram),
            Event::Progress(report) => {
                self.halfway |= 2 * report.done >= report.total;
                screen.progress(&report, self.serving);
            }
            Event::Evaluation { done, loss, upstream_cut } => {
                screen.say(&Event::Evaluation { done, loss, upstream_cut }.to_string());
                summary.take_evaluation(done, loss, upstream_cut);
            }
            Event::Feeder(report) if source == Source::Feeder => {
                summary.take_feeder(&report);
                self.fed = true;
            }
            Event::Replica(report) => {
                self.last_reports += usize::from(report.last);
                if let Source::Replica(index) = source {
                    summary.take_replica(index, report);
                }
            }
            Event::Kept(kept) => summary.checkpoint = Some(kept.path),
            Event::Incident(incident) if self.is_news(&incident) => screen.say(&format!("! {incident}")),
            _ => {}
        }
        Ok(())
    }

    /// Every neighbour of a dead peer says that it is unreachable: once is enough.
    fn is_news(&mut self, incident: &Incident) -> bool {
        match incident {
            Incident::Unreachable { peer, .. } => self.unreachable.insert(peer.clone()),
            _ => true,
        }
    }

    /// Handles the end of a process. A process that ends before its work is done has printed why on standard error.
    fn left(&mut self, source: Source) -> Result<(), Failure> {
        if let (Source::Replica(index), Some(killed)) = (source, self.killed)
            && index == killed
        {
            self.serving = self.serving.saturating_sub(1);
            return Ok(());
        }
        if self.fed {
            self.coordinator_gone |= source == Source::Coordinator;
            return Ok(());
        }
        let process = match source {
            Source::Coordinator => "the coordinator".to_owned(),
            Source::Feeder => "the feeder".to_owned(),
            Source::Replica(index) => format!("replica {index}"),
        };
        Err(Failure::failed(format!("{process} ended before the run was done; its own message is above")))
    }
}

fn present(summary: &Summary, json: bool) -> Result<(), Failure> {
    let mut out = String::new();
    for (name, figure) in summary.rows() {
        let _ = writeln!(out, "{name:<38} {figure}");
    }
    if let Some((checkpoint, sample)) = summary.checkpoint.as_ref().zip(summary.sample.as_ref()) {
        let _ = writeln!(out, "\na text that the model has written:\n\n{sample}\n");
        let _ = writeln!(
            out,
            "for a model that transformers loads:\n\n  swarmline export {checkpoint} --to my-model\n"
        );
    }
    if json && let Ok(line) = serde_json::to_string(summary) {
        let _ = writeln!(out, "{line}");
    }
    output::print(&out)
}

/// A demo that lost a microbatch has failed, even with a good loss.
fn verdict(summary: &Summary) -> Result<(), Failure> {
    if summary.lost + summary.duplicates + summary.ungranted > 0 {
        return Err(Failure::failed(format!(
            "{} microbatches lost, {} counted twice, {} stages ungranted: this must not happen; please report it",
            summary.lost, summary.duplicates, summary.ungranted
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_that_four_neighbours_cannot_reach_is_told_once() {
        let mut followed = Followed::default();
        let gone = |peer: &str, undelivered| Incident::Unreachable {
            peer: peer.to_owned(),
            reason: format!("cannot connect to peer {peer}"),
            undelivered,
        };
        let told = (0..4).filter(|&undelivered| followed.is_news(&gone("a", undelivered))).count();
        assert_eq!(told, 1);
        assert!(followed.is_news(&gone("b", 1)));
        let lost = Incident::NeighbourLost { peer: "a".to_owned(), affected: 2 };
        assert!(followed.is_news(&lost) && followed.is_news(&lost), "each neighbour recovers its own");
    }
}
