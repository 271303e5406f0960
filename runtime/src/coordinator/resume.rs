//! A launch that begins at a checkpoint. The checkpoint is found and checked before anything is changed; then a log that
//! begins there takes the place of the one before, which is put aside.
//!
//! A launch that has begun so goes on like any other: the same command again begins no second one, since members may have
//! come further than the newest checkpoint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use swarmline_scheduler::coordinator::{Action, Config, Event, Fact, Facts};
use swarmline_scheduler::{Block, BlockTally, Coordinator, Origin, PeerId, Time, WeightsPolicy};

use super::RunFolder;
use super::log::{Found, Head, Log, LogError, LogFault, NotedOrigin};
use crate::checkpoint::{Checkpoint, CheckpointError, Fault, Store};
use crate::config::{Manifest, Run, differences_at_checkpoint, fixed_differences};
use crate::error::Error;
use crate::report;

/// The checkpoint that a run is to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest in this folder or bucket, unless the log says that the run was resumed already. A run that began with
    /// imported weights was not.
    Newest(String),
    /// The one that the run began at as the log says; without a log the newest in this folder or bucket.
    AsBegun(String),
    /// This one, or the newest in this folder or bucket.
    At(String),
}

/// How the run of a folder has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Begun {
    /// Not yet.
    Not,
    /// With the initial weights that its seed gives.
    WithInitialWeights,
    /// At a checkpoint.
    AtCheckpoint,
}

impl Begun {
    /// As the log of the folder says.
    ///
    /// # Errors
    /// If there is a log that cannot be read.
    pub(crate) fn of(folder: &RunFolder) -> Result<Self, Error> {
        Ok(match Log::look(folder)? {
            Some(Found { head: Head { origin: Some(_), .. }, .. }) => Self::AtCheckpoint,
            Some(Found { facts, .. }) if !facts.is_empty() => Self::WithInitialWeights,
            Some(_) | None => Self::Not,
        })
    }
}

/// How a start goes on.
#[derive(Debug)]
pub(super) enum Plan {
    /// As the log says: the launch has begun at the checkpoint already.
    AsLogged(NotedOrigin),
    /// In a new launch.
    Begin(Box<Beginning>),
}

/// A launch that begins at a checkpoint.
#[derive(Debug)]
pub(super) struct Beginning {
    pub(super) noted: NotedOrigin,
    pub(super) manifest: Vec<u8>,
    pub(super) cursor: Vec<BlockTally>,
    /// What the log before says, if it can be read and says anything.
    before: Option<Before>,
}

/// The launch before.
#[derive(Clone, Copy, Debug)]
struct Before {
    launch: u64,
    settled: u64,
}

impl Plan {
    /// Looks at the log and the checkpoint, and changes nothing.
    pub(super) async fn of(
        resume: &Resume,
        folder: Option<&RunFolder>,
        given: &Manifest,
    ) -> Result<Self, Error> {
        let found = folder.map(look).transpose()?.flatten();
        let noted = found.as_ref().and_then(|found| found.head.origin.clone());
        let goes_by_log = |noted: &&NotedOrigin| match resume {
            Resume::Newest(_) => noted.origin.microbatches > 0,
            Resume::AsBegun(_) => true,
            Resume::At(_) => false,
        };
        if let Some(noted) = noted.as_ref().filter(goes_by_log) {
            return Ok(Self::AsLogged(noted.clone()));
        }
        let (Resume::Newest(location) | Resume::AsBegun(location) | Resume::At(location)) = resume;
        let checkpoint = Store::find(location).await?;
        let noted = noted.filter(|noted| noted.origin == origin(&checkpoint));
        if let Some(noted) = noted {
            return Ok(Self::AsLogged(noted));
        }
        let manifest = check(&checkpoint, given)?;
        checkpoint.verify().await?;
        let before = found
            .filter(|found| !found.facts.is_empty())
            .map(|found| Before { launch: found.facts.launch(), settled: found.facts.settled() });
        Ok(Self::Begin(Box::new(Beginning::new(&checkpoint, manifest, before))))
    }

    /// Where the checkpoint is.
    pub(super) fn origin(&self) -> &NotedOrigin {
        match self {
            Self::AsLogged(noted) => noted,
            Self::Begin(beginning) => &beginning.noted,
        }
    }
}

impl Beginning {
    fn new(checkpoint: &Checkpoint, manifest: Vec<u8>, before: Option<Before>) -> Self {
        let location = checkpoint.location();
        let is_local = !location.contains("://");
        let absolute = std::path::absolute(&location).ok().filter(|_| is_local);
        let tally = |block: &crate::checkpoint::BlockCursor| {
            let &crate::checkpoint::BlockCursor { block, leased, injected, settled } = block;
            BlockTally { block: Block(block), leased, injected, settled }
        };
        Self {
            noted: NotedOrigin {
                location: absolute.map_or(location, |path| path.display().to_string()),
                origin: origin(checkpoint),
            },
            manifest,
            cursor: checkpoint.manifest().cursor.iter().map(tally).collect(),
            before,
        }
    }

    /// Later than every launch before, whatever the clock says.
    pub(super) fn later_launch(&self, drawn: u64) -> u64 {
        let before = self.before.map_or(0, |before| before.launch).max(self.noted.origin.launch);
        drawn.max(before.saturating_add(1))
    }

    /// The machine of the launch.
    pub(super) fn machine(&self, config: Config) -> Coordinator {
        Coordinator::resumed(config, self.noted.origin, &self.cursor)
    }

    /// Puts a log of the launch in the place of the log before. A kill at any point leaves one of the two.
    pub(super) fn begin_log(
        &self,
        folder: &RunFolder,
        peer: PeerId,
        config: &Config,
    ) -> Result<Option<PathBuf>, Error> {
        let head = Head { peer: peer.0, manifest: self.manifest.clone(), origin: Some(self.noted.clone()) };
        let facts = facts(self.machine(config.clone()));
        Ok(Log::replace(folder, &head, &facts, config.launch)?)
    }

    /// What people hear of it.
    pub(super) fn report(&self, aside: Option<&Path>) -> report::Event {
        report::Event::ResumedAt {
            checkpoint: self.noted.location.clone(),
            done: self.noted.origin.microbatches,
            before: self.before.map(|before| before.settled),
            aside: aside.map(|aside| aside.display().to_string()),
        }
    }
}

/// What a launch must not forget before its first table.
fn facts(mut machine: Coordinator) -> Vec<Fact> {
    machine.handle(Time::default(), Event::Timeout);
    let actions = std::iter::from_fn(|| machine.poll_action());
    let facts: Facts = actions
        .filter_map(|action| if let Action::Log(facts) = action { Some(facts) } else { None })
        .flatten()
        .collect();
    facts.into_iter().collect()
}

fn origin(checkpoint: &Checkpoint) -> Origin {
    let manifest = checkpoint.manifest();
    Origin { launch: manifest.launch, microbatches: manifest.microbatches }
}

/// What the log of the folder says. One that is damaged says nothing: the run goes on without it.
fn look(folder: &RunFolder) -> Result<Option<Found>, LogError> {
    match Log::look(folder) {
        Err(LogError { fault: LogFault::Damaged(_), .. }) => Ok(None),
        found => found,
    }
}

/// Checks that the run can go on from the checkpoint; returns the manifest that it goes on with.
fn check(checkpoint: &Checkpoint, given: &Manifest) -> Result<Vec<u8>, Error> {
    let manifest = checkpoint.manifest();
    let theirs = Manifest::from_bytes(manifest.run.as_bytes())?;
    let differences = differences_at_checkpoint(&theirs, given);
    if !differences.is_empty() {
        return Err(Error::ResumeOtherRun { checkpoint: checkpoint.location(), differences });
    }
    check_cut(checkpoint, theirs.run(), given.run())?;
    let run = theirs.run();
    let has = |stage: &u16| manifest.stages.iter().any(|file| file.stage == *stage);
    let missing = run.stages().map(|stage| stage.0).find(|stage| !has(stage));
    // Where weights stay split no checkpoint has all stages: each keeper brings its own.
    if let Some(stage) = missing.filter(|_| run.policy.weights == WeightsPolicy::Open) {
        let has = manifest.stages.iter().map(|file| file.stage).collect();
        let fault = Fault::StageMissing { stage, has };
        return Err(CheckpointError { file: checkpoint.location(), fault }.into());
    }
    if manifest.microbatches >= run.microbatches() {
        return Err(Error::ResumeFinished { checkpoint: checkpoint.location(), total: run.microbatches() });
    }
    // What may change while a run goes on is not for members to know.
    let is_same = fixed_differences(&theirs, given).is_empty();
    Ok(if is_same { theirs.to_bytes() } else { given.to_bytes() })
}

/// Whether the states fit the stages: names of parameters depend on no cut, but at some boundaries shapes do. Where weights
/// stay split no keeper has more than the state of one stage, so the cut stays too.
fn check_cut(checkpoint: &Checkpoint, theirs: &Run, given: &Run) -> Result<(), Error> {
    let unfit = |fault| CheckpointError { file: checkpoint.location(), fault: Fault::Unfit(fault) };
    let is_split = given.policy.weights == WeightsPolicy::Split;
    if is_split && theirs.pipeline.layers_per_stage != given.pipeline.layers_per_stage {
        let fault = "the layers are cut otherwise, and weights stay split";
        return Err(unfit(fault.to_owned()).into());
    }
    let shapes = |run: &Run| {
        let of_stage = |stage| run.parameter_specs(run.layers_of(stage));
        run.stages().flat_map(of_stage).map(|spec| (spec.name, spec.shape)).collect::<BTreeMap<_, _>>()
    };
    let (there, here) = (shapes(theirs), shapes(given));
    let other = here.iter().find(|(name, shape)| there.get(*name) != Some(*shape));
    match other.map(|(name, _)| name).or_else(|| there.keys().find(|name| !here.contains_key(*name))) {
        Some(name) => {
            let shape = |shapes: &BTreeMap<String, Vec<usize>>| {
                shapes.get(name).map_or_else(|| "not there".to_owned(), |shape| format!("of shape {shape:?}"))
            };
            let fault = format!(
                "with another cut {name} is {} in the checkpoint and {} in the run",
                shape(&there),
                shape(&here)
            );
            Err(unfit(fault).into())
        }
        None => Ok(()),
    }
}
