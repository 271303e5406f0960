//! A keeper's process: it takes the states of the stages and writes checkpoints, around the scheduler's
//! [`Keeper`](swarmline_scheduler::Keeper).
//!
//! `keeper_loop` waits for an event, passes it to the machine, and performs the machine's actions; `target` writes the
//! files in the background, so that a slow bucket stops no heartbeat.

mod given;
mod keeper_loop;
mod notes;
mod options;
mod target;

use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::keeper::Config;
use swarmline_scheduler::transfer::SketchSecret;
use swarmline_scheduler::{Instance, Origin, PeerId, Role, StageIndex, Time, WeightsPolicy};

use crate::checkpoint::{Checkpoint, CheckpointError, Lock, Store};
use crate::config::{Manifest, Run, Tokenizer, differences_at_checkpoint};
use crate::data::TextTokenizer;
use crate::error::Error;
use crate::net::control::{Control, Joined, Placement, Registration};
use crate::net::digest::ManifestDigest;
use crate::net::quic::bind_socket;
use crate::outcome::Outcome;
use crate::process::{Heartbeats, Network, NetworkOptions, registration};
use crate::report::{Event, Incident, KeepingReport, Reporter};
use crate::stage::{chunk_digest, chunk_sketch, download_limits};

pub use options::{Every, KeeperOptions};
pub(crate) use target::kept;

use given::Ours;
use keeper_loop::{Handles, KeeperLoop};
use target::{About, Target, within};

/// Microbatches that a keeper has in flight: none, but its queues have room for its requests.
const WINDOW: usize = 16;
/// The purpose of the secret that a keeper compares donors with.
const SKETCHES: &str = "swarmline 2026-11-29 seeds of the sketches of states that are kept";

/// How long the lock of a target is awaited whose keeper has lost its place to this one: it ends what it writes.
const FORMER_ENDS_WITHIN: Duration = Duration::from_secs(30);
/// Pause between two attempts to lock it.
const LOCK_PAUSE: Duration = Duration::from_millis(200);

/// A keeper that has joined a run.
///
/// ```no_run
/// use swarmline::{Identity, Keeper, KeeperOptions, report::{Audience, Reporter}};
///
/// # async fn keep(invite: swarmline::Invite) -> Result<(), Box<dyn std::error::Error>> {
/// let keeper = Keeper::join(KeeperOptions::new(invite, Identity::ephemeral()?, "checkpoints")).await?;
/// let outcome = keeper.run(&Reporter::new(Audience::People), std::future::pending()).await?;
/// # drop(outcome);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Keeper {
    work: Box<KeeperLoop>,
    control: Control,
    peer: PeerId,
    address: SocketAddr,
    report: KeepingReport,
    /// Faults of checkpoints in the target that cannot be used.
    broken: Vec<CheckpointError>,
    /// Keeps other keepers from the target.
    _lock: Lock,
}

impl Keeper {
    /// Opens the target, and joins the run of the coordinator in `options`.
    ///
    /// # Errors
    /// If the target takes no files, has checkpoints of another run or another keeper, the coordinator cannot be reached
    /// or refuses, or the port is taken.
    pub async fn join(options: KeeperOptions) -> Result<Self, Error> {
        let store = open(&options.target).await?;
        // The keeper that loses its place has the lock until it ends.
        let lock = if options.take_over { None } else { Some(lock(&store).await?) };
        let socket = bind_socket(options.listen)?;
        let role = Role::Keeper(options.stage);
        let registration = Registration {
            take_over: options.take_over,
            ..registration(role, socket.local_addr().map_err(Error::Address)?)?
        };
        let (mut control, joined) = Control::join(&options.invite, &options.identity, registration).await?;
        let begun = Self::begin(&options, (&control, joined), socket, (store, lock)).await;
        if begun.is_err() {
            control.leave("its target or its port cannot be used").await;
        }
        begun
    }

    async fn begin(
        options: &KeeperOptions,
        (control, joined): (&Control, Joined),
        socket: UdpSocket,
        (store, lock): (Store, Option<Lock>),
    ) -> Result<Self, Error> {
        let heartbeats = Heartbeats::start(control.clone());
        let lock = match lock {
            Some(lock) => lock,
            None => lock_after_former(&store).await?,
        };
        let kept = Kept::find(&store, &joined, options.resume_from.as_deref()).await?;
        let address = socket.local_addr().map_err(Error::Address)?;
        let entered = (control.clone(), heartbeats, joined);
        let (work, report, broken) = Self::start(options, entered, socket, (store, kept))?;
        let (control, peer) = (control.clone(), options.identity.peer());
        Ok(Self { work: Box::new(work), control, peer, address, report, broken, _lock: lock })
    }

    fn start(
        options: &KeeperOptions,
        (control, heartbeats, joined): (Control, Heartbeats, Joined),
        socket: UdpSocket,
        (store, kept): (Store, Kept),
    ) -> Result<(KeeperLoop, KeepingReport, Vec<CheckpointError>), Error> {
        let manifest = Manifest::from_bytes(&joined.manifest)?;
        let run = Arc::new(manifest.run().clone());
        let me = Instance::new(options.identity.peer(), control.start());
        let stages = kept_stages(&run, options.stage);
        let config = Config {
            stages: stages.iter().map(|&stage| (stage, download_limits(&run, stage))).collect(),
            interval: options.every.into(),
            gradient_accumulation_steps: run.pipeline.gradient_accumulation_steps as u64,
            newest: kept.microbatches(),
            digest: chunk_digest,
            sketch: chunk_sketch,
            secret: SketchSecret(
                options.identity.derive_secret(&format!("{SKETCHES}, start {}", me.incarnation.0)),
            ),
        };
        let network_options = NetworkOptions {
            run: &run,
            digest: joined.digest,
            identity: &options.identity,
            incarnation: me.incarnation,
            window: WINDOW,
        };
        let (network, arrivals) = Network::start(&network_options, socket, &joined.tables.table())?;
        let report = KeepingReport {
            run: run.name.clone(),
            target: store.name().to_owned(),
            stages: stages.iter().map(|stage| stage.0).collect(),
            every: options.every.to_string(),
            newest: kept.microbatches().unwrap_or(0),
        };
        let about = About {
            run_name: run.name.clone(),
            run_digest: joined.digest.to_string(),
            run_text: String::from_utf8_lossy(&joined.manifest).into_owned(),
            launch: joined.tables.launch(),
            tokenizer: tokenizer(&manifest, &joined.placement),
        };
        let handles = Handles {
            network,
            arrivals,
            table: control.follow(joined.tables),
            contact: heartbeats.contact(options.patience),
            heartbeats,
            launch: about.launch,
            ours: Ours { run: Arc::clone(&run), digest: joined.digest.to_string() },
            target: Target::new(store, run, about, options.keep),
            newest: kept.newest,
        };
        let machine = swarmline_scheduler::Keeper::<Bytes>::new(Time(0), config);
        Ok((KeeperLoop::new(machine, handles), report, kept.broken))
    }

    /// Address of the keeper's data plane.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Key of the keeper.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Keeps checkpoints until the run is over and its final states are kept, or `stop` resolves.
    ///
    /// # Errors
    /// If the coordinator dismisses the keeper, or the final states cannot be taken or written.
    pub async fn run(self, reporter: &Reporter, stop: impl Future<Output = ()>) -> Result<Outcome, Error> {
        let Self { work, mut control, report, broken, _lock, .. } = self;
        for fault in broken {
            reporter.tell(&Event::Incident(Incident::CheckpointUnusable { fault: fault.to_string() }));
        }
        reporter.tell(&Event::Keeping(report));
        let ended = Box::pin(work.run(reporter, pin!(stop))).await;
        control.leave("done").await;
        ended
    }
}

/// Opens the target and tries it: better a refusal now than a checkpoint lost later.
async fn open(target: &str) -> Result<Store, CheckpointError> {
    let store = Store::open(target)?;
    within(target, store.try_write()).await?;
    Ok(store)
}

async fn lock(store: &Store) -> Result<Lock, CheckpointError> {
    within(store.name(), store.lock()).await
}

/// Locks the target as soon as the keeper that has lost its place has ended, which it is told at its next heartbeat.
async fn lock_after_former(store: &Store) -> Result<Lock, CheckpointError> {
    let began = Instant::now();
    loop {
        match lock(store).await {
            Err(error) if error.is_locked() && began.elapsed() < FORMER_ENDS_WITHIN => {
                tokio::time::sleep(LOCK_PAUSE).await;
            }
            locked => return locked,
        }
    }
}

/// What a target has of the run already.
#[derive(Debug)]
struct Kept {
    /// The newest checkpoint of this launch, or the one that it goes on from.
    newest: Option<Checkpoint>,
    broken: Vec<CheckpointError>,
}

impl Kept {
    async fn find(store: &Store, joined: &Joined, resume_from: Option<&str>) -> Result<Self, Error> {
        let (ours, launch) = (Manifest::from_bytes(&joined.manifest)?, joined.tables.launch());
        let found = within(store.name(), store.checkpoints()).await?;
        for checkpoint in &found.checkpoints {
            check_run(checkpoint, &ours)?;
        }
        // The newest comes first.
        let newest = found.checkpoints.iter().find(|checkpoint| checkpoint.manifest().launch == launch);
        let newest = match newest {
            Some(newest) => Some(newest.clone()),
            None => origin(&found.checkpoints, joined, resume_from).await?,
        };
        Ok(Self { newest, broken: found.broken })
    }

    /// Watermark of the newest checkpoint; `None` without one.
    fn microbatches(&self) -> Option<u64> {
        self.newest.as_ref().map(|checkpoint| checkpoint.manifest().microbatches)
    }
}

/// The checkpoint that the launch goes on from, if there is one: that which a person has named, or one of the target.
async fn origin(
    kept: &[Checkpoint],
    joined: &Joined,
    named: Option<&str>,
) -> Result<Option<Checkpoint>, Error> {
    let Some(origin) = joined.tables.table().rest().origin else {
        let none = |checkpoint: &str| Err(Error::NoOrigin { checkpoint: checkpoint.to_owned() });
        return named.map_or(Ok(None), none);
    };
    // Keepers of single stages may have taken them at other clocks. What comes after the origin is learned once more, so a
    // newer state would learn it twice.
    let ours = Manifest::from_bytes(&joined.manifest)?;
    let is_split = ours.run().policy.weights == WeightsPolicy::Split;
    let is_meant = |checkpoint: &&Checkpoint| {
        let manifest = checkpoint.manifest();
        let Origin { launch, microbatches } = origin;
        let is_before = is_split && manifest.microbatches < microbatches;
        manifest.launch == launch && (is_before || manifest.microbatches == microbatches)
    };
    let Some(named) = named else { return Ok(kept.iter().find(is_meant).cloned()) };
    let checkpoint = within(named, Store::find(named)).await?;
    check_run(&checkpoint, &ours)?;
    if !is_meant(&&checkpoint) {
        let (checkpoint, microbatches) = (checkpoint.location(), origin.microbatches);
        return Err(Error::OtherOrigin { checkpoint, microbatches });
    }
    Ok(Some(checkpoint))
}

/// Checks that a checkpoint is of the run, or of one that the run can go on from.
fn check_run(checkpoint: &Checkpoint, ours: &Manifest) -> Result<(), CheckpointError> {
    let theirs = Manifest::from_bytes(checkpoint.manifest().run.as_bytes());
    let is_sound = theirs.is_ok_and(|theirs| differences_at_checkpoint(&theirs, ours).is_empty());
    if is_sound { Ok(()) } else { checkpoint.check_run(&ManifestDigest(ours.digest()).to_string()) }
}

fn kept_stages(run: &Run, only: Option<StageIndex>) -> Vec<StageIndex> {
    only.map_or_else(|| run.stages().collect(), |stage| vec![stage])
}

/// The tokenizer file of the run, if it is within reach: on the coordinator's machine.
fn tokenizer(manifest: &Manifest, placement: &Placement) -> Option<Bytes> {
    let Placement::Keeper { tokenizer: Some(path) } = placement else { return None };
    let loaded = TextTokenizer::load(&Tokenizer::File(PathBuf::from(path)), Path::new(""));
    if !loaded.is_ok_and(|loaded| loaded.digest() == manifest.tokenizer_digest()) {
        tracing::info!(?path, "the tokenizer of the run is not on this machine; checkpoints lack it");
        return None;
    }
    std::fs::read(path).ok().map(Bytes::from)
}
