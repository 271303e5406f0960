//! The feeder's process: draws text, lets the scheduler's `Feeder` inject it, and is the one place where outcomes are
//! counted.

mod account;
mod evaluations;
mod journal;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::feeder::{Action, Carrying, Config, Event as Happened, Measured, Outcome};
use swarmline_scheduler::router::{Policy, RouterFactory as _};
use swarmline_scheduler::{
    Admission, Feeder, Lease, Membership, Message, MicrobatchId, PeerId, Purpose, Role,
};
use tokio::sync::{mpsc, watch};

use crate::clock::{self, Clock};
use crate::config::{Manifest, Mode, Run, Tokenizer};
use crate::data::{Batches, Corpus};
use crate::error::Error;
use crate::incidents::Incidents;
use crate::member::{Heart, Plan, lost_peer, member, start_plane};
use crate::net::control::{
    Applicant, Control, ControlError, Directive, Entrance, FeederTotals, Placement, Vitals,
};
use crate::net::quic::{DataPlane, NetEvent, bind_socket};
use crate::net::trust::Trust;
use crate::net::{Identity, Invite};
use crate::packing::TokenCodec;
use crate::report::{Event, Repeated, Reporter};
use account::Account;
use evaluations::Evaluations;
use journal::Journal;

/// Lines of progress come this often.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);
/// A stop waits this long for the microbatches in flight.
const STOP_WITHIN: Duration = Duration::from_secs(10);
/// A stage without a replica holds the run; a person hears of it this often.
const HOLDING_LINE_EVERY: Duration = Duration::from_secs(10);

/// How to feed a run.
#[derive(Clone, Debug)]
pub struct FeedOptions {
    /// The coordinator.
    pub invite: Invite,
    /// This peer's key.
    pub identity: Identity,
    /// Where the data plane listens.
    pub listen: SocketAddr,
    /// Text to read; empty takes the coordinator's paths, for feeders on the same machine.
    pub data: Vec<PathBuf>,
    /// Microbatches between two evaluations, besides those at the start and the end.
    pub evaluate_every: Option<u64>,
    /// Where to keep what must survive this process; a feeder that is started again with it and the same key goes on
    /// where this one died.
    pub journal: Option<PathBuf>,
    /// Take over the ids of feeders that are gone for good.
    pub succeed: bool,
}

impl FeedOptions {
    /// On loopback with any free port; reads the coordinator's paths and evaluates at the start and the end.
    #[must_use]
    pub fn new(invite: Invite, identity: Identity) -> Self {
        Self {
            invite,
            identity,
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            data: Vec::new(),
            evaluate_every: None,
            journal: None,
            succeed: false,
        }
    }

    /// A successor that is started again finds in its journal what it has taken over.
    fn role(&self) -> Role {
        let resumes =
            self.journal.as_deref().is_some_and(|path| path.metadata().is_ok_and(|file| file.len() > 0));
        if self.succeed && !resumes { Role::Successor } else { Role::Feeder }
    }
}

/// How feeding ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Every microbatch of the run has its outcome.
    Finished,
    /// It was asked to stop; what was in flight has its outcome.
    Stopped,
}

/// Feeds a run until every microbatch has its outcome, or `stop` resolves.
///
/// # Errors
/// If the coordinator cannot be reached or says no, or the text cannot be used.
pub async fn feed(
    options: FeedOptions,
    reporter: &Reporter,
    stop: impl Future<Output = ()>,
) -> Result<End, Error> {
    let mut stop = pin!(stop);
    tokio::select! {
        () = &mut stop => Ok(End::Stopped),
        desk = Desk::open(&options, reporter) => {
            let mut desk = desk?;
            let outcome = desk.work(reporter, stop.as_mut()).await;
            desk.plane.close().await;
            desk.control.leave("done").await;
            outcome
        }
    }
}

/// What the coordinator said to a request for microbatch ids.
type LeaseAnswer = Result<Lease, ControlError>;

/// Everything a feeder works with.
struct Desk {
    feeder: Feeder<Bytes>,
    control: Control,
    heart: Heart,
    table: watch::Receiver<Membership>,
    plane: DataPlane,
    arrivals: mpsc::Receiver<NetEvent>,
    trust: Trust,
    lease_answers: mpsc::Sender<LeaseAnswer>,
    leases: mpsc::Receiver<LeaseAnswer>,
    clock: Clock,
    batches: Batches,
    tokens: TokenCodec,
    evaluations: Evaluations,
    journal: Journal,
    account: Account,
    done: bool,
    /// When a person was last told that a stage is unserved; the first wait is ordinary.
    holding_told: Instant,
    refusals: Repeated,
    incidents: Incidents,
}

impl Desk {
    async fn open(options: &FeedOptions, reporter: &Reporter) -> Result<Self, Error> {
        let socket = bind_socket(options.listen)?;
        let data_address = socket.local_addr().map_err(|error| Error::Network(error.to_string()))?;
        let role = options.role();
        let applicant = Applicant { incarnation: clock::incarnation(), role, data_address };
        let (control, entrance) = Control::enter(&options.invite, &options.identity, applicant).await?;
        let heart = Heart::start(control.clone());
        let run = run_with_text(options, &entrance)?;
        let corpus = Arc::new(open_corpus(run.clone()).await?);
        reporter.tell(&Event::corpus(&corpus));

        let config = Config {
            lease_count: run.microbatches().clamp(1, 1024),
            carrying: carrying(&run),
            ..Config::new(
                options.identity.peer(),
                applicant.incarnation,
                run.last_stage().0 + 1,
                run.microbatches(),
                admission(&run),
            )
        };
        let plan = Plan {
            run: &run,
            digest: entrance.digest,
            incarnation: applicant.incarnation,
            identity: &options.identity,
            window: run.pipeline.max_in_flight.max(run.pipeline.gradient_accumulation_steps),
        };
        let (plane, arrivals, trust) = start_plane(&plan, socket, &entrance.membership)?;
        let (table, _) = control.follow(entrance.membership);
        let (lease_answers, leases) = mpsc::channel(1);
        let (journal, records) = Journal::open(options.journal.as_deref(), &entrance.digest)?;
        Ok(Self {
            feeder: Feeder::resume(config, Policy::Resident.build(run.seed), records),
            journal,
            control,
            heart,
            table,
            plane,
            arrivals,
            trust,
            lease_answers,
            leases,
            clock: Clock::start(),
            batches: Batches::new(&run, corpus),
            tokens: TokenCodec::new(&run),
            evaluations: Evaluations::new(&run, options.evaluate_every),
            account: Account::new(run.microbatches()),
            done: false,
            holding_told: Instant::now(),
            refusals: Repeated::default(),
            incidents: Incidents::default(),
        })
    }

    /// The loop: one message, one lease, one table, one timeout at a time.
    async fn work(
        &mut self,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, Error> {
        let mut progress = tokio::time::interval(PROGRESS_EVERY);
        let mut stopping = None;
        let table = self.table.borrow_and_update().clone();
        self.evaluate(Purpose::Evaluate, reporter)?;
        self.adopt(table, reporter)?;
        while !self.over(stopping.is_some()) {
            let deadline = self.feeder.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                Some(event) = self.arrivals.recv() => self.hear(event, reporter)?,
                Some(lease) = self.leases.recv() => self.handle(Happened::Lease(lease?), reporter)?,
                Ok(()) = self.table.changed() => {
                    let table = self.table.borrow_and_update().clone();
                    self.adopt(table, reporter)?;
                }
                () = self.clock.sleep_until(deadline) => self.handle(Happened::Timeout, reporter)?,
                _ = progress.tick() => self.tell_progress(reporter),
                directive = self.heart.directive(), if stopping.is_none() => {
                    match directive? {
                        Directive::Continue | Directive::Serve(_) => self.handle(Happened::Reached, reporter)?,
                        Directive::Finished => return Err(Error::Refused("the run is finished".to_owned())),
                        Directive::Leave(reason) => return Err(Error::Refused(reason)),
                    }
                }
                () = stop.as_mut(), if stopping.is_none() => {
                    stopping = Some(self.clock.now() + STOP_WITHIN);
                    self.handle(Happened::Stop, reporter)?;
                }
                () = self.clock.sleep_until(stopping), if stopping.is_some() => break,
            }
        }
        self.settle(reporter, stopping.is_some()).await
    }

    /// Whether there is nothing left to wait for: training is done and so are the evaluations after it.
    fn over(&self, stopping: bool) -> bool {
        self.done && (stopping || self.evaluations.over())
    }

    async fn settle(&mut self, reporter: &Reporter, stopped: bool) -> Result<End, Error> {
        let counts = self.feeder.counts();
        let report = self.account.report(&counts, self.plane.bytes_sent().total());
        reporter.tell(&Event::Feeder(report));
        let totals = FeederTotals {
            injected: counts.injected,
            finished: counts.finished,
            refused: counts.refused,
            lost: counts.lost,
            ungranted: counts.ungranted,
            done: !stopped,
        };
        self.control.report(&totals).await?;
        Ok(if stopped { End::Stopped } else { End::Finished })
    }

    fn hear(&mut self, event: NetEvent, reporter: &Reporter) -> Result<(), Error> {
        self.incidents.heard(Instant::now(), &event, self.feeder.table());
        self.incidents.tell(Instant::now(), reporter);
        match event {
            NetEvent::Message { from, incarnation, message } => {
                self.handle(Happened::Received { from, incarnation, message }, reporter)
            }
            other => match lost_peer(&other, self.feeder.table()) {
                Some((peer, incarnation)) => self.handle(Happened::PeerLost { peer, incarnation }, reporter),
                None => Ok(()),
            },
        }
    }

    fn adopt(&mut self, table: Membership, reporter: &Reporter) -> Result<(), Error> {
        self.trust.set_keys(table.members.iter().map(|member| member.peer));
        self.handle(Happened::Membership(table), reporter)
    }

    /// Hands events to the scheduler and does what it asks; draws are answered at once.
    fn handle(&mut self, event: Happened<Bytes>, reporter: &Reporter) -> Result<(), Error> {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.feeder.handle(self.clock.now(), event);
            while let Some(action) = self.feeder.poll_action() {
                match action {
                    Action::Journal(record) => self.journal.write(&record)?,
                    Action::Draw { microbatch, purpose } => {
                        let ids = self.draw(microbatch, purpose)?;
                        events.push_back(Happened::Drawn { microbatch, ids });
                    }
                    Action::Send { to, message } => {
                        events.extend(self.send(to, message));
                        events.extend(self.evaluations.due(self.feeder.counts().injected));
                    }
                    Action::RequestLease { count } => self.request_lease(count),
                    Action::Outcome { microbatch, outcome } => {
                        self.count(microbatch, &outcome, reporter);
                    }
                    Action::EvaluationDone(measured) => self.measured(&measured, reporter),
                    Action::EvaluationDeclined => self.evaluations.declined(),
                    Action::Succeeded { by } => return Err(Error::Refused(succeeded(by))),
                    Action::Done => {
                        self.done = true;
                        events.extend(self.evaluations.at_the_end());
                    }
                }
            }
        }
        Ok(())
    }

    fn draw(&self, id: MicrobatchId, purpose: Purpose) -> Result<Bytes, Error> {
        let ids = match purpose {
            Purpose::Train => self.batches.train(id),
            Purpose::Evaluate | Purpose::EvaluateCut => {
                self.batches.heldout(id.0 & !MicrobatchId::EVALUATION_BIT)
            }
        };
        let packed = self.tokens.encode(&ids).map_err(|error| Error::Defect(format!("{id}: {error}")))?;
        Ok(packed.into())
    }

    /// A message that cannot even be queued is as undeliverable as one that came back.
    fn send(&mut self, to: PeerId, message: Message<Bytes>) -> Option<Happened<Bytes>> {
        let address = self.feeder.table().address(to)?;
        self.account.started();
        let error = self.plane.send(to, address, message).err()?;
        tracing::warn!(%error, "not sent");
        let (peer, incarnation) = member(self.feeder.table(), to)?;
        Some(Happened::PeerLost { peer, incarnation })
    }

    /// Asks in the background: training goes on with the ids still left.
    fn request_lease(&self, count: u64) {
        let (mut control, answer) = (self.control.clone(), self.lease_answers.clone());
        tokio::spawn(async move {
            let lease = control.lease(count).await;
            if let Err(ControlError::Silent { .. }) = lease {
                // The scheduler asks again.
                return;
            }
            let _ = answer.send(lease).await;
        });
    }

    fn count(&mut self, id: MicrobatchId, outcome: &Outcome, reporter: &Reporter) {
        match outcome {
            Outcome::Finished { loss } => self.account.finished(*loss),
            Outcome::Evaluated { .. } => {}
            Outcome::Refused { by, reason } => {
                if let Some(times) = self.refusals.happened() {
                    let by = by.peer;
                    let message = format!(
                        "{id} was refused by peer {by:?}: {reason:?}; {times} since the last such line, all counted"
                    );
                    reporter.tell(&Event::Incident { message });
                }
            }
            Outcome::Unanswered => reporter.tell(&Event::Incident {
                message: format!("held-out {id} was never answered; the figure does without it"),
            }),
        }
    }

    fn evaluate(&mut self, purpose: Purpose, reporter: &Reporter) -> Result<(), Error> {
        let event = self.evaluations.start(purpose);
        self.handle(event, reporter)
    }

    /// Tells a measurement; the time it took is no training time.
    fn measured(&mut self, measured: &Measured, reporter: &Reporter) {
        self.account.paused();
        let done = self.feeder.counts();
        let done = done.finished + done.refused + done.inherited;
        match measured.mean() {
            Some(loss) => {
                let upstream_cut = measured.purpose == Purpose::EvaluateCut;
                reporter.tell(&Event::Evaluation { done, loss, upstream_cut });
            }
            None => reporter.tell(&Event::Incident {
                message: "an evaluation had no answer; the held-out loss is missing there".to_owned(),
            }),
        }
        self.evaluations.finished();
    }

    fn tell_progress(&mut self, reporter: &Reporter) {
        let counts = self.feeder.counts();
        self.heart.set_vitals(Vitals {
            done: counts.finished,
            refused: counts.refused,
            tokens: self.account.tokens,
            bytes_sent: self.plane.bytes_sent().total(),
            ..Vitals::default()
        });
        if let Some(report) = self.account.progress(&counts) {
            reporter.tell(&Event::Progress(report));
        }
        self.incidents.tell(Instant::now(), reporter);
        self.tell_if_holding(reporter);
    }

    fn tell_if_holding(&mut self, reporter: &Reporter) {
        let stages = self.feeder.config().stages;
        if self.feeder.table().serves_all(stages) || self.done {
            self.holding_told = Instant::now();
            return;
        }
        if self.holding_told.elapsed() < HOLDING_LINE_EVERY {
            return;
        }
        self.holding_told = Instant::now();
        let unserved: Vec<_> = (0..stages)
            .filter(|&stage| {
                self.feeder.table().serving(swarmline_scheduler::StageIndex(stage)).next().is_none()
            })
            .collect();
        reporter.tell(&Event::Incident {
            message: format!("stages {unserved:?} have no replica; nothing is injected until somebody joins"),
        });
    }
}

fn succeeded(by: PeerId) -> String {
    format!(
        "feeder {by} has taken over the ids of this one; what it does with them is in its own account. To feed the \
         run beside it, start without this journal"
    )
}

/// Replicas carry their contributions on where a stage has several of them.
fn carrying(run: &Run) -> Option<Carrying> {
    let averages = run.pipeline.replicas > 1 && run.averaging.interval > 0;
    averages.then(|| Carrying { every: run.averaging.interval, sets: u64::from(run.averaging.fragments) })
}

fn admission(run: &Run) -> Admission {
    let limit = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    match run.pipeline.mode {
        Mode::Synchronous => Admission::Synchronous(limit(run.pipeline.gradient_accumulation_steps)),
        Mode::Asynchronous => Admission::Asynchronous(limit(run.pipeline.max_in_flight)),
    }
}

/// The manifest's run with the paths this feeder reads.
fn run_with_text(options: &FeedOptions, entrance: &Entrance) -> Result<Run, Error> {
    let manifest = Manifest::from_bytes(&entrance.manifest)?;
    let mut run = manifest.run().clone();
    let Placement::Feeder { data_paths, tokenizer } = &entrance.placement else {
        return Err(Error::Network("the coordinator takes this feeder for a replica".to_owned()));
    };
    run.data.paths = if options.data.is_empty() { data_paths.clone() } else { options.data.clone() };
    if let (Tokenizer::File(path), Some(theirs)) = (&mut run.data.tokenizer, tokenizer) {
        path.clone_from(theirs);
    }
    Ok(run)
}

/// Reading and tokenising megabytes takes a while; signs of life go on meanwhile.
async fn open_corpus(run: Run) -> Result<Corpus, Error> {
    let opened = tokio::task::spawn_blocking(move || Corpus::open(&run, std::path::Path::new("")));
    let corpus = opened.await.map_err(|error| Error::Defect(format!("reading the text: {error}")))?;
    Ok(corpus?)
}
