//! The loop around a feeder: it waits for an event, passes it to the machine, and performs the machine's actions. All
//! rules are in the machine.

use std::collections::VecDeque;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::feeder::{
    Action, Divergence, End, Event, Measured, Outcome as MicrobatchOutcome, Record,
};
use swarmline_scheduler::{
    Directive, Envelope, Evidence, Feeder, Hop, Lease, Loss, MicrobatchId, PeerId, Purpose, RunTally,
    StageIndex,
};
use tokio::sync::mpsc;

use super::journal::Journal;
use super::throughput::Throughput;
use crate::data::Batches;
use crate::error::Error;
use crate::net::control::{Control, ControlError, MemberStats, Work};
use crate::net::held_out::HeldOut;
use crate::net::quic::NetEvent;
use crate::net::table_log::TableReader;
use crate::outcome::Outcome;
use crate::packing::TokenCodec;
use crate::process::{Clock, Contact, Heartbeats, Network, Notices, lost_instance};
use crate::report::{self, Incident, RateLimit, Reporter};
use crate::telemetry;

/// Time between two lines of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// Time between two reports of a stage without a replica, which halts the run.
const UNSERVED_INTERVAL: Duration = Duration::from_secs(10);

/// What remains of the work of a feeder that gives its coordinator up.
const GIVEN_UP: &str = "started again with the same --identity and --journal, the feeder goes on";

/// Actions that are withheld at most while the disk does not take the journal; then messages are left to wait.
const WITHHELD_MAX: usize = 65_536;

/// Messages that one write of the journal serves at most.
const EVENTS_PER_COMMIT: usize = 64;

/// Handles of the loop: network, coordinator, text and files.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) network: Network,
    pub(super) arrivals: mpsc::Receiver<NetEvent>,
    pub(super) table: TableReader,
    pub(super) heartbeats: Heartbeats,
    pub(super) contact: Contact,
    pub(super) control: Control,
    pub(super) batches: Batches,
    pub(super) tokens: TokenCodec,
    pub(super) journal: Journal,
    pub(super) throughput: Throughput,
    /// The launch that this feeder has joined.
    pub(super) launch: u64,
}

/// The coordinator's reply to a request for microbatch ids.
type LeaseReply = Result<(Lease, RunTally), ControlError>;

/// The state of the loop.
#[derive(Debug)]
pub(super) struct FeederLoop {
    machine: Feeder<Bytes>,
    handles: Handles,
    clock: Clock,
    lease_sender: mpsc::Sender<LeaseReply>,
    leases: mpsc::Receiver<LeaseReply>,
    /// Replies to reports: the progress of other feeders.
    others_sender: mpsc::Sender<RunTally>,
    others: mpsc::Receiver<RunTally>,
    /// Time of the last report of an unserved stage, or of the last moment when all stages were served.
    unserved_told: Instant,
    refusals: RateLimit,
    notices: Notices,
    /// The time of training in the journal.
    noted: Duration,
    /// Actions that wait until the journal is on disk.
    withheld: Vec<Action<Bytes>>,
    /// The disk does not take the journal.
    disk_is_full: bool,
    /// The feeder was asked to stop.
    stopping: bool,
    /// The coordinator was silent for longer than the patience of this process.
    gave_up: bool,
    /// The newest loss on held-out text.
    heldout: Option<HeldOut>,
    end: Option<End>,
}

impl FeederLoop {
    pub(super) fn new(machine: Feeder<Bytes>, handles: Handles) -> Self {
        telemetry::describe();
        let (lease_sender, leases) = mpsc::channel(1);
        let (others_sender, others) = mpsc::channel(1);
        Self {
            machine,
            handles,
            clock: Clock::start(),
            lease_sender,
            leases,
            others_sender,
            others,
            unserved_told: Instant::now(),
            refusals: RateLimit::default(),
            notices: Notices::default(),
            noted: Duration::ZERO,
            withheld: Vec::new(),
            disk_is_full: false,
            stopping: false,
            gave_up: false,
            heldout: None,
            end: None,
        }
    }

    pub(super) async fn run(
        mut self,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, Error> {
        let ended = self.work(reporter, stop.as_mut()).await;
        let outcome = match ended {
            Ok(end) => self.close(end, reporter, stop).await,
            Err(error) => Err(error),
        };
        self.handles.network.close().await;
        self.handles.control.leave("done").await;
        outcome
    }

    async fn work(
        &mut self,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<End, Error> {
        let mut tick = tokio::time::interval(PROGRESS_INTERVAL);
        self.follow_table(reporter)?;
        loop {
            if let Some(end) = self.end.take() {
                return Ok(end);
            }
            let deadline = self.machine.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                Some(event) = self.handles.arrivals.recv(), if self.withheld.len() < WITHHELD_MAX => {
                    self.on_arrivals(event, reporter)?;
                }
                Some(reply) = self.leases.recv() => {
                    let (lease, others) = reply?;
                    self.handle(Event::RunProgress(others), reporter)?;
                    self.handle(Event::Lease(lease), reporter)?;
                }
                Some(others) = self.others.recv() => self.handle(Event::RunProgress(others), reporter)?,
                Ok(()) = self.handles.table.changed() => self.follow_table(reporter)?,
                () = self.clock.sleep_until(deadline) => self.handle(Event::Timeout, reporter)?,
                _ = tick.tick() => self.on_tick(reporter)?,
                directive = self.handles.heartbeats.directive() => {
                    self.on_directive(directive?, reporter)?;
                }
                () = self.handles.contact.patience_ends(reporter) => {
                    self.gave_up = true;
                    self.handle(Event::Stop, reporter)?;
                }
                () = stop.as_mut(), if !self.stopping => {
                    self.stopping = true;
                    self.handle(Event::Stop, reporter)?;
                }
            }
        }
    }

    /// Reports the outcomes; the coordinator ends the run after every feeder's report.
    async fn close(
        &mut self,
        end: End,
        reporter: &Reporter,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, Error> {
        let work = match end {
            End::Finished => Work::Done,
            End::Stopped => Work::UnderWay,
            End::RunFinished => return Err(Error::RunFinished),
            End::Dismissed(reason) => return Err(Error::Dismissed(reason)),
            End::Succeeded { by } => return Err(Error::Succeeded { by }),
            End::Diverged { at, sign: sign @ Divergence::Reported } => {
                return Err(Error::Diverged { at, sign });
            }
            End::Diverged { at, .. } => Work::Diverged { at },
        };
        let is_heard = self.report_end(work, reporter, stop).await?;
        match end {
            End::Diverged { at, sign } => Err(Error::Diverged { at, sign }),
            End::Finished => {
                if !is_heard {
                    tell(reporter, Incident::EndUnreported);
                }
                Ok(Outcome::Finished)
            }
            _ if self.gave_up => Err(self.handles.contact.given_up(GIVEN_UP)),
            _ => Ok(Outcome::Stopped),
        }
    }

    /// Tells people the account of this feeder, and the coordinator: until it replies, until the patience is over, or until
    /// this process is asked to stop. Returns whether the coordinator has heard it.
    async fn report_end(
        &mut self,
        work: Work,
        reporter: &Reporter,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<bool, Error> {
        let counts = self.machine.counts();
        telemetry::record_feeder(&counts);
        let bytes_sent = self.handles.network.bytes_sent().total();
        reporter.tell(&report::Event::Feeder(self.handles.throughput.report(&counts, bytes_sent)));
        let (stopping, tallies, heldout) = (self.stopping, self.machine.tallies(), self.heldout);
        let Handles { control, contact, .. } = &mut self.handles;
        let asked_to_stop = async { if stopping { std::future::pending().await } else { stop.await } };
        let reported = tokio::select! {
            reported = control.report(&counts, &tallies, heldout, work) => reported,
            () = contact.patience_ends(reporter) => return Ok(false),
            () = asked_to_stop => return Ok(false),
        };
        match reported {
            Ok(_) => Ok(true),
            Err(error) if work == Work::Done => Err(error.into()),
            Err(error) => {
                tracing::debug!(%error, "the coordinator did not get the outcomes of this feeder");
                Ok(false)
            }
        }
    }

    // --- Events ---------------------------------------------------------------------------------------------

    /// Takes `first`, and all that has arrived behind it, so that one write of the journal serves them.
    fn on_arrivals(&mut self, first: NetEvent, reporter: &Reporter) -> Result<(), Error> {
        let now = Instant::now();
        let mut events = VecDeque::new();
        let mut next = Some(first);
        while let Some(event) = next {
            self.notices.on_event(now, &event, self.machine.table());
            events.extend(self.event_of(event));
            let room = events.len() < EVENTS_PER_COMMIT;
            next = if room { self.handles.arrivals.try_recv().ok() } else { None };
        }
        self.notices.tell(now, reporter);
        self.handle_all(events, reporter)
    }

    fn event_of(&self, event: NetEvent) -> Option<Event<Bytes>> {
        match event {
            NetEvent::Received { from, envelope } => Some(Event::Received { from, envelope }),
            NetEvent::Arriving(instance) => Some(Event::Arriving(instance)),
            other => lost_instance(&other, self.machine.table()).map(Event::PeerLost),
        }
    }

    fn follow_table(&mut self, reporter: &Reporter) -> Result<(), Error> {
        for update in self.handles.table.read() {
            self.handles.network.trust_members(&update);
            self.handle(Event::Membership(update), reporter)?;
        }
        // Its ids are those of no feeder there.
        let is_member = self.machine.table().launch() == self.handles.launch;
        if is_member { Ok(()) } else { Err(Error::OtherLaunch) }
    }

    fn on_directive(&mut self, directive: Directive, reporter: &Reporter) -> Result<(), Error> {
        if directive == Directive::Finished {
            self.notices.run_finished();
        }
        self.handle(Event::Directive(directive), reporter)
    }

    fn on_tick(&mut self, reporter: &Reporter) -> Result<(), Error> {
        for (instance, round_trip) in self.handles.network.round_trips() {
            self.handle(Event::RoundTrip(instance, round_trip), reporter)?;
        }
        self.report_progress();
        self.tell_progress(reporter);
        self.note_time();
        if self.disk_is_full {
            self.handle(Event::Timeout, reporter)?;
        }
        Ok(())
    }

    /// Notes in the journal how long training has taken: with the next records, or with those of this second.
    fn note_time(&mut self) {
        let training = self.handles.throughput.training();
        if training > self.noted {
            self.noted = training;
            let milliseconds = u64::try_from(training.as_millis()).unwrap_or(u64::MAX);
            self.handles.journal.write(&Record::Trained { milliseconds });
        }
    }

    fn handle(&mut self, event: Event<Bytes>, reporter: &Reporter) -> Result<(), Error> {
        self.handle_all(VecDeque::from([event]), reporter)
    }

    /// Passes events to the machine and performs its actions, with the events that follow from them. No action leaves
    /// this process before the records of the journal are on disk.
    fn handle_all(&mut self, mut events: VecDeque<Event<Bytes>>, reporter: &Reporter) -> Result<(), Error> {
        while !events.is_empty() {
            self.decide(&mut events)?;
            if !self.commit(reporter) {
                return Ok(());
            }
            for action in std::mem::take(&mut self.withheld) {
                events.extend(self.act(action, reporter)?);
            }
        }
        Ok(())
    }

    /// Writes the journal to disk. While the disk does not take it, all that must not leave before is withheld: the run
    /// stands still and loses nothing. An end needs no record, so that a person can stop the feeder.
    fn commit(&mut self, reporter: &Reporter) -> bool {
        match self.handles.journal.commit() {
            Ok(()) => {
                if std::mem::take(&mut self.disk_is_full) {
                    tell(reporter, Incident::JournalWritten);
                }
                true
            }
            Err(error) => {
                if !std::mem::replace(&mut self.disk_is_full, true) {
                    tell(reporter, Incident::JournalUnwritten { error: error.to_string() });
                }
                let ends = self.withheld.iter().find_map(|action| match action {
                    Action::End(end) => Some(end.clone()),
                    _ => None,
                });
                self.end = ends.or(self.end.take());
                false
            }
        }
    }

    /// Passes all events to the machine, gathers its records, and the actions that wait for them.
    fn decide(&mut self, events: &mut VecDeque<Event<Bytes>>) -> Result<(), Error> {
        while let Some(event) = events.pop_front() {
            self.machine.handle(self.clock.now(), event);
            while let Some(action) = self.machine.poll_action() {
                match action {
                    Action::Journal(record) => self.handles.journal.write(&record),
                    Action::Draw { microbatch, purpose } => {
                        let ids = self.draw(microbatch, purpose)?;
                        events.push_back(Event::Drawn { microbatch, ids });
                    }
                    action => self.withheld.push(action),
                }
            }
        }
        Ok(())
    }

    // --- Actions --------------------------------------------------------------------------------------------

    /// Performs an action; returns the event that follows at once, if any.
    fn act(&mut self, action: Action<Bytes>, reporter: &Reporter) -> Result<Option<Event<Bytes>>, Error> {
        match action {
            // Done before any action that leaves.
            Action::Journal(_) | Action::Draw { .. } => {}
            Action::Send { to, envelope } => return Ok(self.send(to, envelope)),
            Action::RequestLease { next, count } => self.request_lease(next, count),
            Action::Outcome { microbatch, outcome } => self.count(microbatch, &outcome, reporter),
            Action::Evaluated(measured) => self.measured(&measured, reporter),
            Action::Struck { replica, evidence } => self.strike(replica, evidence, reporter),
            Action::EvaluationDeclined => tracing::debug!("an evaluation was left out"),
            Action::End(end) => self.end = Some(end),
        }
        Ok(None)
    }

    fn draw(&self, microbatch: MicrobatchId, purpose: Purpose) -> Result<Bytes, Error> {
        let ids = match purpose {
            Purpose::Train => self.handles.batches.train(microbatch),
            Purpose::Evaluate | Purpose::EvaluateCut => self.handles.batches.heldout(microbatch.index()),
        };
        let packed = self.handles.tokens.encode(&ids);
        Ok(packed.map_err(|source| Error::Tokens { microbatch, source })?.into())
    }

    fn send(&mut self, to: PeerId, envelope: Envelope<Bytes>) -> Option<Event<Bytes>> {
        self.handles.throughput.started();
        let unsent = self.handles.network.send(self.machine.table(), to, envelope);
        unsent.map(|message| Event::SendQueueFull { to, message })
    }

    /// Requests a lease in the background: training goes on with the ids left.
    fn request_lease(&self, next: Option<MicrobatchId>, count: u64) {
        let (mut control, sender) = (self.handles.control.clone(), self.lease_sender.clone());
        let tallies = self.machine.tallies();
        tokio::spawn(async move {
            let lease = control.lease(next, count, &tallies).await;
            if let Err(ControlError::Silent { .. } | ControlError::Unknown(_)) = lease {
                // The machine retries.
                return;
            }
            let _ = sender.send(lease).await;
        });
    }

    /// Reports the progress in the background, and takes the progress of others from the reply. A report that fails is
    /// made up for by the next.
    fn report_progress(&self) {
        let (mut control, sender) = (self.handles.control.clone(), self.others_sender.clone());
        let (counts, tallies, heldout) = (self.machine.counts(), self.machine.tallies(), self.heldout);
        tokio::spawn(async move {
            match control.report(&counts, &tallies, heldout, Work::UnderWay).await {
                // While a reply waits for the loop, a newer one may be dropped: the next second brings another.
                Ok(others) => drop(sender.try_send(others)),
                Err(error) => tracing::debug!(%error, "the coordinator did not get the progress"),
            }
        });
    }

    /// Reports a liar in the background. Its claims count no more, whatever the coordinator replies.
    fn strike(&self, replica: Hop, evidence: Evidence, reporter: &Reporter) {
        let (peer, stage) = (format!("{:?}", replica.peer()), replica.stage.map_or(0, |stage| stage.0));
        let Evidence { false_ones, sound } = evidence;
        tell(reporter, Incident::ReplicaLies { peer, stage, false_ones, sound });
        let mut control = self.handles.control.clone();
        tokio::spawn(async move {
            if let Err(error) = control.strike(replica.instance, evidence).await {
                tracing::warn!(%error, ?replica, "the coordinator did not hear of a liar");
            }
        });
    }

    // --- Reports --------------------------------------------------------------------------------------------

    fn count(&mut self, id: MicrobatchId, outcome: &MicrobatchOutcome, reporter: &Reporter) {
        let microbatch = id.to_string();
        match outcome {
            MicrobatchOutcome::Finished { loss } => self.handles.throughput.finished(*loss),
            MicrobatchOutcome::Evaluated { .. } => {}
            MicrobatchOutcome::Refused { by, reason } => {
                if let Some(times) = self.refusals.happened() {
                    let (by, reason) = (Some(format!("{:?}", by.peer())), reason.to_string());
                    tell(reporter, Incident::MicrobatchRefused { microbatch, by, reason, times });
                }
            }
            MicrobatchOutcome::Unanswered => tell(reporter, Incident::EvaluationUnanswered { microbatch }),
        }
    }

    /// Reports an evaluation; its time does not count as training time.
    fn measured(&mut self, measured: &Measured, reporter: &Reporter) {
        self.handles.throughput.paused();
        let done = self.machine.settled_of_run();
        match measured.mean() {
            Some(loss) => {
                let upstream_cut = measured.purpose == Purpose::EvaluateCut;
                if !upstream_cut {
                    let tokens = u32::try_from(measured.tokens).unwrap_or(u32::MAX);
                    let loss = Loss { sum: measured.sum, tokens };
                    self.heldout = Some(HeldOut { loss, after: Some(done) });
                }
                reporter.tell(&report::Event::Evaluation { done, loss, upstream_cut });
            }
            None => tell(reporter, Incident::EvaluationMissing),
        }
    }

    fn tell_progress(&mut self, reporter: &Reporter) {
        let counts = self.machine.counts();
        let stats = MemberStats {
            done: counts.finished,
            refused: counts.refused,
            tokens: self.handles.throughput.tokens(),
            bytes_sent: self.handles.network.bytes_sent().total(),
            ..MemberStats::default()
        };
        self.handles.heartbeats.set_stats(stats);
        telemetry::record_member(&stats);
        telemetry::record_feeder(&counts);
        if let Some(progress) = self.handles.throughput.progress(&counts, self.machine.settled_of_run()) {
            reporter.tell(&report::Event::Progress(progress));
        }
        self.notices.tell(Instant::now(), reporter);
        self.tell_if_unserved(reporter);
    }

    fn tell_if_unserved(&mut self, reporter: &Reporter) {
        let (stages, table) = (self.machine.config().stages, self.machine.table());
        if table.serves_all(stages) || self.machine.is_trained() {
            self.unserved_told = Instant::now();
        } else if self.unserved_told.elapsed() >= UNSERVED_INTERVAL {
            self.unserved_told = Instant::now();
            let unserved = (0..stages).filter(|&stage| !table.serves(StageIndex(stage)));
            tell(reporter, Incident::StagesUnserved { stages: unserved.collect() });
        }
    }
}

fn tell(reporter: &Reporter, incident: Incident) {
    reporter.tell(&report::Event::Incident(incident));
}
