//! The coordinator's process: a loop around the scheduler's [`Coordinator`](swarmline_scheduler::Coordinator), and the
//! gRPC service in front of it.
//!
//! All its messages are small: members and their stages, leases of ids. A tensor never passes a coordinator.

mod coordinator_loop;
mod log;
mod opened;
mod options;
mod resume;
mod run_folder;
mod service;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use swarmline_scheduler::coordinator::{Config, Facts, FeedPolicy, Policy};
use swarmline_scheduler::{Membership, PeerId};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::{Feed, Join, Manifest, Run, Tokenizer, fixed_differences};
use crate::error::Error;
use crate::net::address::parse_peer;
use crate::net::digest::ManifestDigest;
use crate::net::held_out::HeldOut;
use crate::net::membership::SignedTable;
use crate::net::table_log::{TableReader, TableWriter};
use crate::net::trust::Trust;
use crate::net::{Identity, Invite, grpc};
use crate::outcome::Outcome;
use crate::process::{Clock, incarnation};
use crate::report::{Event, Reporter, Totals};

pub use log::LogError;
pub use options::CoordinatorOptions;
pub(crate) use resume::Begun;
pub use resume::Resume;
pub use run_folder::RunFolder;

use coordinator_loop::{CoordinatorLoop, Signer};
use log::{Found, Head, Log, NotedOrigin};
use opened::Opened;
use resume::{Beginning, Plan};
use service::Service;

/// Limit of the requests in the channel to the loop; beyond it, callers wait.
const REQUESTS_MAX: usize = 256;
/// A replica has found a donor for its state after this time.
const LOADING_BEGINS_WITHIN: Duration = Duration::from_secs(60);
/// Bytes a second of the slowest link over which a state is loaded while another replica waits for the place.
const LOADING_BYTES_PER_SECOND: u64 = 128 << 10;

/// A request, and the channel for its reply.
#[derive(Debug)]
struct Request {
    event: swarmline_scheduler::coordinator::Event,
    reply: oneshot::Sender<Reply>,
}

/// The machine's reply, and whether the run is over.
#[derive(Debug)]
struct Reply {
    reply: swarmline_scheduler::coordinator::Reply,
    finished: bool,
    /// The run is over by a divergence, after this many microbatches.
    diverged: Option<u64>,
}

/// State that the service replies with, published by the loop.
#[derive(Clone, Debug)]
struct Published {
    manifest: String,
    digest: ManifestDigest,
    data_paths: Vec<String>,
    tokenizer_path: String,
    table: TableReader,
    totals: mpsc::Sender<Totals>,
    /// The newest loss on held-out text that a feeder has reported.
    heldout: watch::Sender<Option<HeldOut>>,
}

/// A coordinator whose port is open.
///
/// ```no_run
/// use std::path::Path;
///
/// use swarmline::{Coordinator, CoordinatorOptions, Identity, Run, report::Reporter};
///
/// # async fn coordinate() -> Result<(), Box<dyn std::error::Error>> {
/// let run = Run::load(Path::new("run.toml"))?;
/// let coordinator = Coordinator::bind(CoordinatorOptions::new(run, Identity::ephemeral()?)).await?;
/// println!("swarmline join {}", coordinator.invite());
/// let outcome = coordinator.run(&Reporter::silent(), std::future::pending()).await?;
/// # drop(outcome);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Coordinator {
    listener: TcpListener,
    invite: Invite,
    identity: Identity,
    digest: ManifestDigest,
    published: Published,
    config: Config,
    table: TableWriter,
    totals: mpsc::Receiver<Totals>,
    log: Option<Log>,
    start: Start,
    /// The checkpoint that the launch began at.
    origin: Option<NotedOrigin>,
    /// What people hear of it.
    news: Option<Event>,
}

/// What a start knows of its run.
#[derive(Debug)]
enum Start {
    /// The run begins: no peer knows the key.
    First,
    /// The run goes on from a checkpoint.
    AtCheckpoint(Box<Beginning>),
    /// Members may know the key, and return the newest table.
    WithKey,
    /// All that was decided.
    WithLog(Facts),
    /// What was decided until the log was out of date; members know the rest.
    WithOldLog(Facts),
}

impl Coordinator {
    /// Opens the port. A peer that calls before [`Coordinator::run`] is polled waits for it, 5 s at most. So poll it
    /// beside `join` and `open` in the same program, or spawn it first.
    ///
    /// # Errors
    /// If the tokenizer of the run cannot be read, its policy has a malformed key, or the port is taken. If the folder of the
    /// run has a log that cannot be used, or that of another run or key. If the checkpoint to go on from cannot be used: then
    /// nothing has changed.
    pub async fn bind(options: CoordinatorOptions) -> Result<Self, Error> {
        let given = Manifest::of(&options.run, &options.base)?;
        let mut config = config(&options.run)?;
        if let Policy::Keys(keys) = &mut config.policy {
            keys.extend(options.keeper);
        }
        let opened = Opened::open(&options, &given, &mut config).await?;
        let (origin, manifest) = (opened.origin(), opened.manifest(given)?);
        let address = opened.note(&options, &manifest)?;
        let Opened { listener, log, found, plan, news } = opened;
        let CoordinatorOptions { run, base, identity, .. } = options;
        let start = match plan {
            Some(Plan::Begin(beginning)) => Start::AtCheckpoint(beginning),
            Some(Plan::AsLogged(_)) | None => Start::of(found, identity.is_new()),
        };
        let digest = ManifestDigest(manifest.digest());
        let invite = Invite { peer: identity.peer(), host: address.ip().to_string(), port: address.port() };
        let table = TableWriter::new(SignedTable::sign(&identity, &digest, Membership::default()));
        let (totals_sender, totals) = mpsc::channel(REQUESTS_MAX);
        let published = Published {
            manifest: String::from_utf8_lossy(&manifest.to_bytes()).into_owned(),
            digest,
            data_paths: absolute(&base, &run.data.paths),
            tokenizer_path: tokenizer_path(&run, &base),
            table: table.reader(),
            totals: totals_sender,
            heldout: watch::Sender::default(),
        };
        Ok(Self {
            listener,
            invite,
            identity,
            digest,
            published,
            config,
            table,
            totals,
            log,
            start,
            origin,
            news,
        })
    }

    /// The address that peers call, with the key that they pin.
    #[must_use]
    pub fn invite(&self) -> &Invite {
        &self.invite
    }

    /// Digest of the run manifest, hexadecimal.
    #[must_use]
    pub fn manifest_digest(&self) -> String {
        self.digest.to_string()
    }

    /// Where the checkpoint is that the launch began at: a path or a URL. `None` if it began with initial weights.
    #[must_use]
    pub fn origin(&self) -> Option<&str> {
        self.origin.as_ref().map(|origin| &*origin.location)
    }

    /// Coordinates the run until every feeder is done and every member has left, or `stop` resolves.
    ///
    /// # Errors
    /// If the server fails, or training diverges.
    pub async fn run(self, reporter: &Reporter, stop: impl Future<Output = ()>) -> Result<Outcome, Error> {
        let (invite, manifest) = (self.invite.to_string(), self.digest.to_string());
        reporter.tell(&Event::Listening { invite, manifest });
        self.news.iter().for_each(|news| reporter.tell(news));
        let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
        let service = Service::new(self.published, self.identity.peer(), requests);
        let (stop_serving, serving_stopped) = oneshot::channel::<()>();
        // The state machine decides which peers join; the transport only demands a key.
        let serving = grpc::serve(self.listener, &self.identity, Trust::anyone(), service, async {
            let _ = serving_stopped.await;
        });
        let clock = Clock::start();
        let (machine, resumes) = self.start.machine(&clock, self.config);
        if resumes {
            reporter.tell(&resumed(&machine));
        }
        let signer = Signer { identity: self.identity.clone(), digest: self.digest, table: self.table };
        let work = CoordinatorLoop::new(machine, clock, signer, self.log, reporter);
        let working = async {
            let outcome = work.run(request_queue, self.totals, stop).await;
            drop(stop_serving);
            outcome
        };
        let (served, outcome) = tokio::join!(serving, working);
        served?;
        outcome
    }
}

impl Start {
    fn of(found: Option<Found>, is_new_key: bool) -> Self {
        match found {
            Some(found) if !found.facts.is_empty() && found.is_complete => Self::WithLog(found.facts),
            Some(found) if !found.facts.is_empty() => Self::WithOldLog(found.facts),
            _ if is_new_key => Self::First,
            _ => Self::WithKey,
        }
    }

    /// The machine of this start, and whether it goes on with a run by its log.
    fn machine(self, clock: &Clock, config: Config) -> (swarmline_scheduler::Coordinator, bool) {
        use swarmline_scheduler::Coordinator;
        let now = clock.now();
        match self {
            Self::First => (Coordinator::new(config), false),
            Self::AtCheckpoint(beginning) => (beginning.machine(config), false),
            Self::WithKey => (Coordinator::restarted(config), false),
            Self::WithLog(facts) => (Coordinator::restored(now, config, facts), true),
            Self::WithOldLog(facts) => (Coordinator::restored_from_old(now, config, facts), true),
        }
    }
}

fn resumed(machine: &swarmline_scheduler::Coordinator) -> Event {
    Event::Resumed {
        members: machine.membership().members.len(),
        done: machine.run_progress().settled,
        finished: machine.is_finished(),
    }
}

/// Refuses a run file, or a key, that the members of a run do not have.
fn check_same_run(folder: &RunFolder, head: &Head, given: &Manifest, ours: PeerId) -> Result<(), Error> {
    let (folder, theirs) = (folder.path().to_owned(), PeerId(head.peer));
    if theirs != ours {
        return Err(Error::OtherKey { folder, theirs, ours });
    }
    let differences = fixed_differences(&Manifest::from_bytes(&head.manifest)?, given);
    if differences.is_empty() { Ok(()) } else { Err(Error::OtherRun { folder, differences }) }
}

fn config(run: &Run) -> Result<Config, Error> {
    let mut config = Config::new(run.last_stage().0 + 1);
    config.launch = incarnation().0;
    config.total = run.microbatches();
    config.policy = policy(run)?;
    config.feed = feed_policy(run)?;
    config.weights = run.policy.weights;
    config.loading_max = loading_max(run);
    config.replicas_per_stage = u32::try_from(run.pipeline.replicas).unwrap_or(u32::MAX);
    Ok(config)
}

/// The time in which a replica has loaded the state of any stage over the slowest link that is of use.
fn loading_max(run: &Run) -> Duration {
    let bytes = run.stages().map(|stage| run.state_bytes(stage)).max().unwrap_or(0);
    LOADING_BEGINS_WITHIN + Duration::from_secs(bytes / LOADING_BYTES_PER_SECOND)
}

fn policy(run: &Run) -> Result<Policy, Error> {
    match &run.policy.join {
        Join::Anyone => Ok(Policy::Anyone),
        Join::Keys(keys) => Ok(Policy::Keys(peers(keys)?)),
    }
}

fn feed_policy(run: &Run) -> Result<FeedPolicy, Error> {
    Ok(match &run.policy.feed {
        Feed::First => FeedPolicy::First,
        Feed::Members => FeedPolicy::Members,
        Feed::Keys(keys) => FeedPolicy::Keys(peers(keys)?),
    })
}

fn peers(keys: &[String]) -> Result<BTreeSet<PeerId>, Error> {
    Ok(keys.iter().map(|key| parse_peer(key)).collect::<Result<_, _>>()?)
}

fn absolute(base: &Path, paths: &[PathBuf]) -> Vec<String> {
    let absolute = |path: &PathBuf| {
        let path = base.join(path);
        std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
    };
    paths.iter().map(absolute).collect()
}

fn tokenizer_path(run: &Run, base: &Path) -> String {
    match &run.data.tokenizer {
        Tokenizer::Bytes => String::new(),
        Tokenizer::File(path) => absolute(base, std::slice::from_ref(path)).remove(0),
    }
}
