//! A feeder's process: it draws text, the scheduler's [`Feeder`](swarmline_scheduler::Feeder) injects it as
//! microbatches, and the process counts their outcomes.

mod feeder_loop;
mod journal;
mod options;
mod throughput;

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::feeder::{AveragingSchedule, Config, EvaluationSchedule};
use swarmline_scheduler::router::RouterFactory as _;
use swarmline_scheduler::{Admission, Instance, PeerId, RouteSecret};

use crate::config::{Manifest, Mode, Run, Tokenizer};
use crate::data::{Batches, Corpus};
use crate::error::Error;
use crate::net::control::{Control, ControlError, Joined, Placement, Registration};
use crate::net::quic::bind_socket;
use crate::outcome::Outcome;
use crate::packing::TokenCodec;
use crate::process::{Heartbeats, Network, NetworkOptions, registration};
use crate::report::{Event, Reporter};

pub use options::FeederOptions;

use feeder_loop::{FeederLoop, Handles};
use journal::{Journal, Launch};
use throughput::Throughput;

/// Ids of a lease at least and at most; the feeder asks for more as its window grows.
const LEASE_COUNT: RangeInclusive<u64> = 16..=65_536;

/// A lease is this part of the run: ids enough to go on while the coordinator is away, and few enough that feeders who
/// share a run end it together.
const LEASES_A_RUN: u64 = 32;

/// A feeder that has joined a run and opened its text.
///
/// ```no_run
/// use swarmline::{Feeder, FeederOptions, Identity, report::Reporter};
///
/// # async fn feed(invite: swarmline::Invite) -> Result<(), Box<dyn std::error::Error>> {
/// let options = FeederOptions::new(invite, Identity::ephemeral()?).with_data(vec!["book.txt".into()]);
/// let outcome = Feeder::open(options).await?.run(&Reporter::silent(), std::future::pending()).await?;
/// # drop(outcome);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Feeder {
    work: Box<FeederLoop>,
    corpus: Arc<Corpus>,
    address: SocketAddr,
    peer: PeerId,
    /// The journal of the launch before, and its new name.
    put_aside: Option<(PathBuf, PathBuf)>,
}

impl Feeder {
    /// Joins the run of the coordinator in `options`, and opens text and journal.
    ///
    /// # Errors
    /// If the coordinator cannot be reached or refuses, the port is taken, or the text or the journal cannot be used.
    pub async fn open(options: FeederOptions) -> Result<Self, Error> {
        let began = Instant::now();
        options.journal.as_deref().map_or(Ok(()), Journal::try_place)?;
        let socket = bind_socket(options.listen)?;
        let address = socket.local_addr().map_err(Error::Address)?;
        let registration =
            Registration { take_over: options.take_over, ..registration(options.role(), address)? };
        let (control, joined) = Control::join(&options.invite, &options.identity, registration).await?;
        let heartbeats = Heartbeats::start(control.clone());
        let run = run_with_text(&options, &joined)?;
        let corpus = Arc::new(open_corpus(run.clone()).await?);
        let (number, digest) = (joined.tables.launch(), corpus.digest());
        let before = joined.tables.table().rest().origin.map(|origin| origin.launch);
        let launch = Launch { manifest: joined.digest, number, before, corpus: digest };
        let put_aside = match &options.journal {
            Some(path) => Journal::put_aside(path, launch)?.map(|aside| (path.clone(), aside)),
            None => None,
        };
        let (journal, before) = Journal::open(options.journal.as_deref(), launch, averaging(&run))?;

        let totals = before.totals;
        let trained = Duration::from_millis(totals.trained_ms);
        let peer = options.identity.peer();
        let config = config(&run, Instance::new(peer, control.start()), &options);
        let router = run.pipeline.router.build(run.seed);
        let network_options = NetworkOptions {
            run: &run,
            digest: joined.digest,
            identity: &options.identity,
            incarnation: control.start(),
            window: run.pipeline.max_in_flight.max(run.pipeline.gradient_accumulation_steps),
        };
        let (network, arrivals) = Network::start(&network_options, socket, &joined.tables.table())?;
        let handles = Handles {
            network,
            arrivals,
            table: control.follow(joined.tables),
            contact: heartbeats.contact(options.patience),
            heartbeats,
            control,
            batches: Batches::new(&run, Arc::clone(&corpus)),
            tokens: TokenCodec::new(&run),
            throughput: Throughput::new(began, run.microbatches(), totals.tokens, trained),
            journal,
            launch: number,
        };
        let machine = swarmline_scheduler::Feeder::<Bytes>::resume(config, router, &before);
        Ok(Self { work: Box::new(FeederLoop::new(machine, handles)), corpus, address, peer, put_aside })
    }

    /// Address of the feeder's data plane.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Key of the feeder.
    #[must_use]
    pub fn peer(&self) -> PeerId {
        self.peer
    }

    /// Feeds the run until every microbatch has its outcome, or `stop` resolves.
    ///
    /// # Errors
    /// If the coordinator refuses, another feeder takes over, or the journal cannot be written.
    pub async fn run(self, reporter: &Reporter, stop: impl Future<Output = ()>) -> Result<Outcome, Error> {
        if let Some((path, aside)) = &self.put_aside {
            let [path, aside] = [path, aside].map(|path| path.display().to_string());
            reporter.tell(&Event::JournalPutAside { path, aside });
        }
        reporter.tell(&Event::corpus(&self.corpus));
        let stop = pin!(stop);
        Box::pin(self.work.run(reporter, stop)).await
    }
}

/// The purpose of the secret that the keys of routes are made from.
const ROUTE_KEYS: &str = "swarmline 2026-11-28 keys of the routes of microbatches";

fn config(run: &Run, me: Instance, options: &FeederOptions) -> Config {
    let mut config = Config::new(me, run.last_stage().0 + 1, run.microbatches(), admission(run));
    config.secret = RouteSecret(options.identity.derive_secret(ROUTE_KEYS));
    config.lease_count = (run.microbatches() / LEASES_A_RUN).clamp(*LEASE_COUNT.start(), *LEASE_COUNT.end());
    config.averaging = averaging(run);
    config.gradient_accumulation_steps = run.pipeline.gradient_accumulation_steps as u64;
    config.evaluation = Some(EvaluationSchedule {
        microbatches: run.data.heldout_microbatches as u64,
        interval: options.evaluate_every,
    });
    config
}

/// The averaging schedule; `None` if each stage has one replica, or the run does not average.
fn averaging(run: &Run) -> Option<AveragingSchedule> {
    let averages = run.pipeline.replicas > 1 && run.averaging.interval > 0;
    let (interval, fragments) = (run.averaging.interval, u64::from(run.averaging.fragments));
    averages.then_some(AveragingSchedule { interval, fragments })
}

fn admission(run: &Run) -> Admission {
    let limit = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    match run.pipeline.mode {
        Mode::Synchronous => Admission::Synchronous(limit(run.pipeline.gradient_accumulation_steps)),
        Mode::Asynchronous => Admission::Adaptive {
            start: limit(run.pipeline.initial_in_flight),
            max: limit(run.pipeline.max_in_flight),
        },
    }
}

/// The run of the manifest, with this feeder's paths of text and tokenizer.
fn run_with_text(options: &FeederOptions, joined: &Joined) -> Result<Run, Error> {
    let manifest = Manifest::from_bytes(&joined.manifest)?;
    let mut run = manifest.run().clone();
    let Placement::Feeder { data_paths, tokenizer } = &joined.placement else {
        return Err(ControlError::Reply("it takes this feeder for a replica".to_owned()).into());
    };
    run.data.paths = if options.data.is_empty() { data_paths.clone() } else { options.data.clone() };
    if let (Tokenizer::File(path), Some(theirs)) = (&mut run.data.tokenizer, tokenizer) {
        path.clone_from(theirs);
    }
    Ok(run)
}

/// Reads and tokenises the text on a thread of its own, so that heartbeats go on.
async fn open_corpus(run: Run) -> Result<Corpus, Error> {
    let opened = tokio::task::spawn_blocking(move || Corpus::open(&run, Path::new("")));
    Ok(opened.await.map_err(|_| Error::Panicked { work: "reading the text" })??)
}
