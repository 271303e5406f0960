//! The coordinator's process: a loop around the scheduler's `Coordinator`, and the gRPC service in front of it.
//!
//! Only small messages pass here: who takes part, who serves what, which ids are leased. Never a tensor.

mod service;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use swarmline_proto::v1;
use swarmline_scheduler::coordinator::{Action, Answer, Config, Event as Asked, Policy, RunState};
use swarmline_scheduler::{Membership, StageIndex, Standing};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::Clock;
use crate::config::{Join, Manifest, Run, Tokenizer};
use crate::error::Error;
use crate::net::address::parse_peer;
use crate::net::digest::ManifestDigest;
use crate::net::trust::Trust;
use crate::net::{Identity, Invite, grpc, membership};
use crate::report::{Event, FeederReport, Reporter};
use service::Service;

/// Requests that wait for the loop; more make their callers wait.
const REQUESTS_MAX: usize = 256;
/// After the last microbatch members get this long to drain and say goodbye.
const FAREWELL_MAX: Duration = Duration::from_secs(20);

/// What to coordinate, and where.
#[derive(Debug)]
pub struct Options {
    /// The run.
    pub run: Run,
    /// Folder that relative paths of the run start from.
    pub base: PathBuf,
    /// The key peers pin.
    pub identity: Identity,
    /// Where to listen.
    pub listen: SocketAddr,
}

/// How a coordinator ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The feeders were done, and everybody left.
    Finished,
    /// It was asked to stop.
    Stopped,
}

/// A request, and where its answer goes.
#[derive(Debug)]
struct Request {
    event: Asked,
    answer: oneshot::Sender<Reply>,
}

/// The scheduler's answer, with what the run is doing.
#[derive(Debug)]
struct Reply {
    answer: Answer,
    finished: bool,
}

/// What the service and the loop share.
#[derive(Clone, Debug)]
struct Published {
    manifest: String,
    digest: ManifestDigest,
    data_paths: Vec<String>,
    tokenizer_path: String,
    table: watch::Receiver<v1::SignedMembership>,
    reports: mpsc::Sender<FeederReport>,
}

/// Coordinates a run until its feeders are done or `stop` resolves.
///
/// # Errors
/// If the run file's tokenizer cannot be read, the port is taken, or the server fails.
pub async fn coordinate(
    options: Options,
    reporter: &Reporter,
    stop: impl Future<Output = ()>,
) -> Result<End, Error> {
    let manifest = Manifest::of(&options.run, &options.base)?;
    let digest = ManifestDigest(manifest.digest());
    let policy = policy(&options.run)?;
    let listener = listen(options.listen).await?;
    let (table_sender, table) =
        watch::channel(membership::sign(&options.identity, &digest, &Membership::default()));
    let (reports, report_queue) = mpsc::channel(REQUESTS_MAX);
    let published = Published {
        manifest: String::from_utf8_lossy(&manifest.to_bytes()).into_owned(),
        digest,
        data_paths: absolute(&options.base, &options.run.data.paths),
        tokenizer_path: tokenizer_path(&options),
        table,
        reports,
    };
    announce(&options, &listener, &digest, reporter)?;

    let (requests, request_queue) = mpsc::channel(REQUESTS_MAX);
    let service = Service::new(published, requests);
    let (stop_serving, serving_stopped) = oneshot::channel::<()>();
    // Who may join is the scheduler's rule; the transport only demands a key.
    let serving = grpc::serve(listener, &options.identity, Trust::anyone(), service, async {
        let _ = serving_stopped.await;
    });
    let desk = Desk {
        scheduler: swarmline_scheduler::Coordinator::new(Config {
            policy,
            replicas_per_stage: u32::try_from(options.run.pipeline.replicas).unwrap_or(u32::MAX),
            ..Config::new(stages(&options.run))
        }),
        clock: Clock::start(),
        identity: options.identity.clone(),
        digest,
        table: table_sender,
        reporter,
        waiting: VecDeque::new(),
    };
    let working = async {
        let end = desk.work(request_queue, report_queue, stop).await;
        drop(stop_serving);
        end
    };
    let (served, end) = tokio::join!(serving, working);
    served.map_err(|error| Error::Network(error.to_string()))?;
    Ok(end)
}

/// The loop: one request, one timeout or one wish to stop at a time.
struct Desk<'a> {
    scheduler: swarmline_scheduler::Coordinator,
    clock: Clock,
    identity: Identity,
    digest: ManifestDigest,
    table: watch::Sender<v1::SignedMembership>,
    reporter: &'a Reporter,
    /// Whoever the next answer of the scheduler is for.
    waiting: VecDeque<oneshot::Sender<Reply>>,
}

impl Desk<'_> {
    async fn work(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut reports: mpsc::Receiver<FeederReport>,
        stop: impl Future<Output = ()>,
    ) -> End {
        let mut stop = pin!(stop);
        let mut farewell = None;
        loop {
            let deadline = self.scheduler.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                Some(request) = requests.recv() => {
                    self.waiting.push_back(request.answer);
                    self.handle(request.event);
                }
                Some(report) = reports.recv() => self.reporter.tell(&Event::Feeder(report)),
                () = self.clock.sleep_until(deadline) => self.handle(Asked::Timeout),
                () = self.clock.sleep_until(farewell) => return End::Finished,
                () = &mut stop => return End::Stopped,
            }
            if self.scheduler.state() == RunState::Finished {
                farewell = farewell.or_else(|| Some(self.clock.now() + FAREWELL_MAX));
                if self.scheduler.membership().members.is_empty() {
                    return End::Finished;
                }
            }
        }
    }

    fn handle(&mut self, event: Asked) {
        self.scheduler.handle(self.clock.now(), event);
        while let Some(action) = self.scheduler.poll_action() {
            match action {
                Action::Answer { answer, .. } => {
                    let finished = self.scheduler.state() == RunState::Finished;
                    if let Some(waiting) = self.waiting.pop_front() {
                        let _ = waiting.send(Reply { answer, finished });
                    }
                }
                Action::Membership(membership) => self.publish(&membership),
                Action::Finished => {}
            }
        }
    }

    fn publish(&self, table: &Membership) {
        self.table.send_replace(membership::sign(&self.identity, &self.digest, table));
        let count = |wanted: &dyn Fn(Standing) -> bool| {
            table.members.iter().filter(|member| wanted(member.standing)).count()
        };
        let stages = self.scheduler.config().stages;
        self.reporter.tell(&Event::Members {
            version: table.version,
            serving: (0..stages)
                .map(|stage| count(&|standing| standing == Standing::Serving(StageIndex(stage))))
                .collect(),
            standby: count(&|standing| standing == Standing::Standby),
            feeders: count(&|standing| standing == Standing::Feeding),
        });
    }
}

fn announce(
    options: &Options,
    listener: &TcpListener,
    digest: &ManifestDigest,
    reporter: &Reporter,
) -> Result<(), Error> {
    let address =
        listener.local_addr().map_err(|error| Error::Network(format!("no local address: {error}")))?;
    let invite =
        Invite { peer: options.identity.peer(), host: address.ip().to_string(), port: address.port() };
    reporter.tell(&Event::Listening { invite: invite.to_string(), manifest: digest.to_string() });
    Ok(())
}

async fn listen(address: SocketAddr) -> Result<TcpListener, Error> {
    TcpListener::bind(address).await.map_err(|error| {
        Error::Network(format!(
            "cannot listen on {address}: {error}; choose another with --listen IP:PORT, port 0 takes any free one"
        ))
    })
}

fn policy(run: &Run) -> Result<Policy, Error> {
    match &run.policy.join {
        Join::Anyone => Ok(Policy::Anyone),
        Join::Keys(keys) => {
            let keys = keys.iter().map(|key| parse_peer(key));
            let keys = keys.collect::<Result<_, _>>().map_err(|error| Error::Network(error.to_string()))?;
            Ok(Policy::Keys(keys))
        }
    }
}

fn stages(run: &Run) -> u16 {
    run.last_stage().0 + 1
}

fn absolute(base: &std::path::Path, paths: &[PathBuf]) -> Vec<String> {
    let absolute = |path: &PathBuf| {
        let path = base.join(path);
        std::path::absolute(&path).unwrap_or(path).to_string_lossy().into_owned()
    };
    paths.iter().map(absolute).collect()
}

fn tokenizer_path(options: &Options) -> String {
    match &options.run.data.tokenizer {
        Tokenizer::Bytes => String::new(),
        Tokenizer::File(path) => absolute(&options.base, std::slice::from_ref(path)).remove(0),
    }
}
