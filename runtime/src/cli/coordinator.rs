//! `swarmline coordinator --run FILE`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use swarmline_scheduler::{StageIndex, WeightsPolicy};
use tokio::sync::oneshot;

use super::own_keeper::{Left, OwnKeeper};
use super::{Failure, Leash, StopRequest, block_on, folder_of, unhindered_reporter};
use crate::checkpoint::Store;
use crate::config::{Manifest, Run};
use crate::coordinator::{Begun, Coordinator, CoordinatorOptions, Resume, RunFolder};
use crate::error::Error;
use crate::import::Import;
use crate::keeper::Every;
use crate::net::Identity;
use crate::outcome::Outcome;
use crate::report::{Event, Reporter};

/// Arguments of `swarmline coordinator`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// The run file; `swarmline check FILE` explains it
    #[arg(long, value_name = "FILE")]
    run: PathBuf,
    /// Address to listen on; port 0 takes any free port
    #[arg(long, value_name = "IP:PORT", default_value = "127.0.0.1:7700")]
    listen: SocketAddr,
    /// Folder of the run: key and log, so that the same command goes on after a crash. Default: NAME.run beside NAME.toml
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Take the key of a file, not that of the folder of the run
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Go on from a checkpoint, in a new launch of the run: the newest of the folder of the run, or CHECKPOINT (its folder,
    /// or a target of `swarmline keep`)
    #[arg(long, value_name = "CHECKPOINT", num_args = 0..=1)]
    resume: Option<Option<String>>,
    /// Begin with the weights in a folder that `swarmline export` has written, or another LlamaForCausalLM. The boundary of
    /// the run must be `identity`
    #[arg(long, value_name = "FOLDER", conflicts_with = "resume")]
    init_from: Option<PathBuf>,
    /// Start no keeper: the run leaves no model behind, unless `swarmline keep` joins it
    #[arg(long)]
    no_keeper: bool,
    /// Time between two checkpoints of the keeper: a number of microbatches, or 30s, 10m, 2h
    #[arg(long, value_name = "N|TIME", default_value = "10m", conflicts_with = "no_keeper")]
    keep_every: Every,
    #[command(flatten)]
    leash: Leash,
    /// Print one JSON object a line
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let run = Run::load(&arguments.run)?;
    let beside = || RunFolder::beside(&arguments.run);
    let folder = RunFolder::open(arguments.state.clone().unwrap_or_else(beside))?;
    let identity = match &arguments.identity {
        Some(file) => Identity::load_or_create(file)?,
        None => folder.identity()?,
    };
    let keeping = Keeping::of(arguments, &run, &folder)?;
    let checkpoints = folder.path().join(CHECKPOINTS).to_string_lossy().into_owned();
    let resume = match &arguments.init_from {
        Some(model) => Some(import(model, &run, &folder_of(&arguments.run), &folder, checkpoints)?),
        None => arguments.resume.clone().map(|named| named.map_or(Resume::Newest(checkpoints), Resume::At)),
    };
    let total = run.microbatches();
    let split = (run.policy.weights == WeightsPolicy::Split).then(|| run.last_stage());
    let options = CoordinatorOptions::new(run, identity)
        .with_folder(folder)
        .with_resume(resume)
        .with_base(folder_of(&arguments.run))
        .with_listen(arguments.listen)
        .with_keeper(keeping.as_ref().map(|keeping| keeping.identity.peer()));
    let reporter = unhindered_reporter(arguments.json);
    let stop = StopRequest::listen(arguments.leash)?;
    block_on(async {
        let coordinator = Coordinator::bind(options).await?;
        let keeper = keeping.map(|keeping| keeping.keeper(&coordinator, arguments));
        if keeper.is_none() {
            keepers_needed(&coordinator, split).iter().for_each(|event| reporter.tell(event));
        }
        let coordinating = coordinate(coordinator, keeper.as_ref(), &reporter, stop.requested());
        let (outcome, left) = Box::pin(coordinating).await;
        match (outcome?, left) {
            (Outcome::Stopped, left) => Err(stopped(left)),
            (Outcome::Finished, None) => Ok(()),
            (Outcome::Finished, Some(left)) => {
                let kept = left.final_states(total).map_err(Failure::failed)?;
                reporter.tell(&Event::Kept(kept));
                Ok(())
            }
        }
    })
}

/// What is said where no keeper is started: which keepers a person may start. `split` is the last stage where weights stay
/// split.
fn keepers_needed(coordinator: &Coordinator, split: Option<StageIndex>) -> Vec<Event> {
    let invite = coordinator.invite();
    let stage = if split.is_some() { " --stage S" } else { "" };
    let origin = coordinator.origin().map(|origin| format!(" --resume-from {origin}"));
    let command =
        format!("swarmline keep {invite} --to FOLDER{stage}{}", origin.as_deref().unwrap_or_default());
    let of_stages =
        split.map(|last| Event::WeightsStaySplit { last_stage: last.0, command: command.clone() });
    let of_origin = origin.map(|_| Event::KeeperNeeded { command });
    of_stages.into_iter().chain(of_origin).collect()
}

/// Makes a model the checkpoint that the run begins at, unless it has begun there before.
fn import(
    model: &Path,
    run: &Run,
    base: &Path,
    folder: &RunFolder,
    target: String,
) -> Result<Resume, Failure> {
    match Begun::of(folder)? {
        Begun::AtCheckpoint => return Ok(Resume::AsBegun(target)),
        Begun::WithInitialWeights => {
            return Err(Error::HasBegun { folder: folder.path().to_owned() }.into());
        }
        Begun::Not => {}
    }
    let mut import = Import::open(model, run, base)?;
    let manifest = Manifest::of(run, base).map_err(Error::from)?;
    let store = Store::open(&target).map_err(Error::from)?;
    let checkpoint = block_on(async { Ok(import.write_checkpoint(&manifest, &store).await?) })?;
    Ok(Resume::At(checkpoint.location()))
}

/// Coordinates the run, beside its keeper. Returns what that leaves behind too.
async fn coordinate(
    coordinator: Coordinator,
    keeper: Option<&OwnKeeper>,
    reporter: &Reporter,
    stop: impl Future<Output = ()>,
) -> (Result<Outcome, Error>, Option<Left>) {
    let (end, ended) = oneshot::channel::<()>();
    let coordinating = async {
        let outcome = coordinator.run(reporter, stop).await;
        drop(end);
        outcome
    };
    let keeping = async {
        let ended = async { drop(ended.await) };
        match keeper {
            Some(keeper) => Some(keeper.run(reporter, ended).await),
            None => None,
        }
    };
    tokio::join!(coordinating, keeping)
}

fn stopped(left: Option<Left>) -> Failure {
    let kept =
        left.and_then(|left| left.newest).map(|kept| format!("; the newest checkpoint is {}", kept.path));
    Failure::interrupted(format!("stopped before the run was finished{}", kept.unwrap_or_default()))
}

/// What the keeper of this coordinator needs before the port is open.
struct Keeping {
    folder: RunFolder,
    identity: Identity,
}

/// Name of the key of the keeper in the folder of the run.
const KEY: &str = "keeper.key";
/// Name of the folder with its checkpoints there.
pub(super) const CHECKPOINTS: &str = "checkpoints";

impl Keeping {
    /// `None` if a person, or the policy of the run, wants no keeper that has the whole model.
    fn of(arguments: &Arguments, run: &Run, folder: &RunFolder) -> Result<Option<Self>, Failure> {
        if arguments.no_keeper || run.policy.weights == WeightsPolicy::Split {
            return Ok(None);
        }
        let identity = Identity::load_or_create(&folder.path().join(KEY))?;
        Ok(Some(Self { folder: folder.clone(), identity }))
    }

    fn keeper(&self, coordinator: &Coordinator, arguments: &Arguments) -> OwnKeeper {
        OwnKeeper {
            invite: coordinator.invite().clone(),
            resume_from: coordinator.origin().map(str::to_owned),
            identity: self.folder.path().join(KEY),
            target: self.folder.path().join(CHECKPOINTS),
            every: arguments.keep_every,
            listen: SocketAddr::new(arguments.listen.ip(), 0),
        }
    }
}
