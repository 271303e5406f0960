//! The loop around a replica: it waits for an event, passes it to the machine, and performs the machine's actions. All
//! rules are in the machine.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::replica::{
    Action, Confirmation, DRAIN_WITHIN, End, Event, HAND_OVER_WITHIN, InitialState, Note,
};
use swarmline_scheduler::transfer::{StateId, TransferMessage};
use swarmline_scheduler::{Directive, Envelope, Message, PeerId, Replica, averaging};
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::copies::Copies;
use super::notes::Notes;
use super::reductions::{Reduction, Reductions};
use super::traffic::Traffic;
use crate::config::Run;
use crate::error::Error;
use crate::net::control::{Control, ControlError, HEARTBEAT_INTERVAL, MemberStats};
use crate::net::quic::NetEvent;
use crate::net::table_log::TableReader;
use crate::outcome::Outcome;
use crate::process::{Clock, Contact, Heartbeats, Network, lost_instance};
use crate::report::{self, ReplicaReport, Reporter};
use crate::stage::{Executor, ExecutorEvent};
use crate::telemetry;

/// Time between two reports of a replica.
const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// Longest departure of a replica.
const LEAVE_WITHIN: Duration = DRAIN_WITHIN.saturating_add(HAND_OVER_WITHIN);

/// Handles of the loop: executor, network, coordinator, notes.
#[derive(Debug)]
pub(super) struct Handles {
    pub(super) executor: Executor,
    pub(super) network: Network,
    pub(super) arrivals: mpsc::Receiver<NetEvent>,
    pub(super) table: TableReader,
    pub(super) heartbeats: Heartbeats,
    pub(super) contact: Contact,
    pub(super) control: Control,
    pub(super) notes: Notes,
}

/// The state of the loop.
#[derive(Debug)]
pub(super) struct Serving {
    machine: Replica<Bytes>,
    handles: Handles,
    reductions: Reductions,
    copies: Copies,
    clock: Clock,
    traffic: Traffic,
    tokens_per_microbatch: u64,
    /// The coordinator's reply to the question whether this start is still a member.
    confirmation: Option<oneshot::Receiver<Result<Directive, ControlError>>>,
    /// The coordinator's reason to take this process for no member any more.
    expelled: Option<ControlError>,
    /// People know that the replica waits for a keeper.
    told_to_wait: bool,
    /// The process was expelled and has a state of its stage.
    keeps_state: bool,
    /// The coordinator was silent for longer than the patience of this process.
    gave_up: bool,
    reported: Instant,
    end: Option<End>,
    failure: Option<Error>,
}

impl Serving {
    pub(super) fn new(machine: Replica<Bytes>, run: &Run, handles: Handles) -> Self {
        telemetry::describe();
        Self {
            traffic: Traffic::new(run, machine.config().stage.stage),
            machine,
            handles,
            reductions: Reductions::default(),
            copies: Copies::default(),
            clock: Clock::start(),
            tokens_per_microbatch: run.tokens_per_microbatch() as u64,
            confirmation: None,
            expelled: None,
            told_to_wait: false,
            keeps_state: false,
            gave_up: false,
            reported: Instant::now(),
            end: None,
            failure: None,
        }
    }

    /// Takes the state of the stage, serves it, and leaves; then writes the weights to `save`. A replica that cannot go on
    /// leaves at once. A replica that is expelled puts its state into `kept`.
    pub(super) async fn run(
        mut self,
        reporter: &Reporter,
        save: Option<&Path>,
        kept: &mut Option<Bytes>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, Error> {
        let ended = self.work(reporter, stop).await;
        let is_replaced = matches!(ended, Err(Error::Control(ControlError::Replaced(_))));
        if ended.is_ok() || is_replaced {
            self.handles.executor.finish(save.map(Path::to_owned)).await?;
            if let Some(path) = save {
                reporter.tell(&report::Event::Saved { path: path.display().to_string() });
            }
        }
        if self.keeps_state {
            let exported = self.handles.executor.export_state().await?;
            // Slow for a long state: not for a thread that serves others.
            let bytes = tokio::task::spawn_blocking(move || exported.into_bytes());
            *kept = Some(bytes.await.map_err(|_| Error::ExecutorGone)??.into());
        }
        self.handles.network.close().await;
        let outcome = ended?;
        self.record();
        reporter.tell(&report::Event::Replica(self.report(true)));
        if self.gave_up && outcome == Outcome::Stopped {
            return Err(self.handles.contact.given_up(match save {
                Some(_) => "its weights are saved",
                None => "its weights were not asked for with --save, and are gone",
            }));
        }
        Ok(outcome)
    }

    async fn work(
        &mut self,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Outcome, Error> {
        let mut tick = tokio::time::interval(HEARTBEAT_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stopping = false;
        self.follow_table(reporter);
        loop {
            if let Some(error) = self.failure.take() {
                return Err(error);
            }
            if let Some(end) = self.end.take() {
                return self.outcome(end, reporter);
            }
            let deadline = self.machine.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                event = self.handles.executor.event() => match event? {
                    ExecutorEvent::Completed(reply) => self.handle(Event::Completed(reply), reporter),
                    ExecutorEvent::Averaged(reply) => self.handle(Event::Averaged(reply), reporter),
                    ExecutorEvent::Predicted(reply) => self.handle(Event::Predicted(reply), reporter),
                },
                reply = self.reductions.next() => self.handle(Event::Averaged(reply), reporter),
                event = self.copies.next() => self.handle(event?, reporter),
                Some(event) = self.handles.arrivals.recv() => self.on_network(event, reporter),
                Ok(()) = self.handles.table.changed() => self.follow_table(reporter),
                () = self.clock.sleep_until(deadline) => self.handle(Event::Timeout, reporter),
                _ = tick.tick() => self.on_tick(reporter),
                directive = self.handles.heartbeats.directive() => self.on_directive(directive, reporter),
                () = self.handles.contact.patience_ends(reporter) => {
                    self.gave_up = true;
                    self.handle(Event::Stop, reporter);
                }
                reply = confirmed(&mut self.confirmation) => self.on_confirmation(reply, reporter),
                () = stop.as_mut(), if !stopping => {
                    stopping = true;
                    if self.machine.is_serving() {
                        reporter.tell(&report::Event::Leaving { seconds_max: LEAVE_WITHIN.as_secs() });
                    }
                    self.handle(Event::Stop, reporter);
                }
            }
        }
    }

    fn outcome(&mut self, end: End, reporter: &Reporter) -> Result<Outcome, Error> {
        match end {
            End::RunFinished => Ok(Outcome::Finished),
            End::Diverged { at } => Err(Error::Diverged { at, sign: Divergence::Reported }),
            End::Left(unfinished) => {
                if let Some(unfinished) = unfinished {
                    Notes::left(unfinished, reporter);
                }
                Ok(Outcome::Stopped)
            }
            End::Expelled { has_state } => {
                let placed_elsewhere = || {
                    let reason = "it was placed on another stage, or gives way to trained weights";
                    ControlError::NotAMember(reason.to_owned())
                };
                let error = self.expelled.take().unwrap_or_else(placed_elsewhere);
                self.keeps_state = has_state && matches!(error, ControlError::NotAMember(_));
                Err(error.into())
            }
        }
    }

    // --- Events ---------------------------------------------------------------------------------------------

    fn on_network(&mut self, event: NetEvent, reporter: &Reporter) {
        let now = Instant::now();
        self.handles.notes.notices.on_event(now, &event, self.machine.table());
        self.handles.notes.notices.tell(now, reporter);
        match event {
            NetEvent::Received { from, envelope } => {
                self.handle(Event::Received { from, envelope }, reporter);
            }
            NetEvent::Arriving(instance) => self.handle(Event::Arriving(instance), reporter),
            other => {
                if let Some(lost) = lost_instance(&other, self.machine.table()) {
                    self.handle(Event::PeerLost(lost), reporter);
                }
            }
        }
    }

    fn follow_table(&mut self, reporter: &Reporter) {
        for update in self.handles.table.read() {
            self.handles.network.trust_members(&update);
            self.handle(Event::Membership(update), reporter);
        }
        self.tell_what_it_waits_for(reporter);
    }

    /// A stage of a run that goes on from a checkpoint waits for a keeper.
    fn tell_what_it_waits_for(&mut self, reporter: &Reporter) {
        let (table, stage) = (self.machine.table(), self.machine.config().stage.stage);
        let waits = table.is_restorable(stage) && table.keepers_of(stage).next().is_none();
        if waits && !self.machine.is_serving() && !std::mem::replace(&mut self.told_to_wait, true) {
            reporter.tell(&report::Event::AwaitsKeeper { stage: stage.0 });
        }
    }

    fn on_directive(&mut self, directive: Result<Directive, ControlError>, reporter: &Reporter) {
        match directive {
            Ok(directive) => {
                if matches!(directive, Directive::Finished | Directive::Diverged { .. }) {
                    self.handles.notes.notices.run_finished();
                }
                self.handle(Event::Directive(directive), reporter);
            }
            Err(error) => self.on_expelled(Event::Expelled, error, reporter),
        }
    }

    fn on_confirmation(&mut self, reply: Result<Directive, ControlError>, reporter: &Reporter) {
        self.confirmation = None;
        match reply {
            Ok(_) => self.handle(Event::Confirmed(Confirmation::Member), reporter),
            Err(error @ (ControlError::NotAMember(_) | ControlError::Replaced(_))) => {
                self.on_expelled(Event::Confirmed(Confirmation::NotAMember), error, reporter);
            }
            Err(_) => self.handle(Event::Confirmed(Confirmation::Unreachable), reporter),
        }
    }

    fn on_expelled(&mut self, event: Event<Bytes>, error: ControlError, reporter: &Reporter) {
        self.expelled =
            matches!(error, ControlError::NotAMember(_) | ControlError::Replaced(_)).then_some(error);
        self.handle(event, reporter);
    }

    fn on_tick(&mut self, reporter: &Reporter) {
        self.handles.notes.notices.tell(Instant::now(), reporter);
        for (instance, round_trip) in self.handles.network.round_trips() {
            self.handle(Event::RoundTrip(instance, round_trip), reporter);
        }
        self.handles.heartbeats.set_stats(self.stats());
        self.record();
        if self.reported.elapsed() >= REPORT_INTERVAL && self.machine.is_serving() {
            self.reported = Instant::now();
            reporter.tell(&report::Event::Replica(self.report(false)));
        }
    }

    /// Passes an event to the machine and performs its actions, with the events that follow from them.
    fn handle(&mut self, event: Event<Bytes>, reporter: &Reporter) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.machine.handle(self.clock.now(), event);
            while let Some(action) = self.machine.poll_action() {
                match self.act(action, reporter) {
                    Ok(event) => events.extend(event),
                    Err(error) => self.failure = Some(error),
                }
            }
        }
    }

    // --- Actions --------------------------------------------------------------------------------------------

    /// Performs an action; returns the event that follows at once, if any.
    fn act(&mut self, action: Action<Bytes>, reporter: &Reporter) -> Result<Option<Event<Bytes>>, Error> {
        match action {
            Action::Execute(job) => {
                let clock = self.machine.stage().clock_at(job.microbatch());
                self.handles.executor.submit(job, clock)?;
            }
            Action::Average(job) => self.average(job)?,
            Action::Predict(job) => self.handles.executor.predict(job)?,
            Action::StepRest => self.handles.executor.step_rest()?,
            Action::Send { to, envelope } => return Ok(self.send(to, envelope)),
            Action::SendChunk { to, state, chunk, offset, bytes } => {
                return Ok(self.send_chunk(to, (state, chunk), (offset, bytes)));
            }
            Action::Export { state } => self.copies.export(state, &self.handles.executor),
            Action::Sketch { to, state, seed } => self.copies.sketch(to, state, seed),
            Action::Release { state } => self.copies.release(state),
            Action::Begin { bytes } => self.copies.begin(bytes)?,
            Action::Store { offset, payload } => self.copies.store(offset, &payload),
            Action::Import { version, is_restored: false, .. } => {
                self.copies.import(version, &self.handles.executor);
            }
            Action::Import { version, .. } => self.copies.restore(version, &self.handles.executor),
            Action::Ready { initial } => self.tell_ready(initial),
            Action::Confirm => self.ask_for_confirmation(),
            Action::Counted(note) => self.take_note(&note, reporter)?,
            Action::End(end) => self.end = Some(end),
        }
        Ok(None)
    }

    fn average(&mut self, job: averaging::Job<Bytes>) -> Result<(), Error> {
        match job {
            averaging::Job::Reduce { round, part, attempt, own, inputs } => {
                self.reductions.add(Reduction { round, part, attempt, own, inputs });
                Ok(())
            }
            job => self.handles.executor.average(job),
        }
    }

    fn send(&mut self, to: PeerId, envelope: Envelope<Bytes>) -> Option<Event<Bytes>> {
        self.traffic.count(&envelope);
        let unsent = self.handles.network.send(self.machine.table(), to, envelope);
        unsent.map(|message| Event::SendQueueFull { to, message })
    }

    fn send_chunk(
        &mut self,
        to: PeerId,
        (state, chunk): (StateId, u32),
        (offset, bytes): (u64, u32),
    ) -> Option<Event<Bytes>> {
        let payload = self.copies.chunk(state, offset, bytes)?;
        let message = Message::Transfer(TransferMessage::Chunk { state, chunk });
        self.send(to, Envelope::with_payload(message, payload))
    }

    /// Reports in the background that the stage is served. The coordinator repeats its directive until it has the
    /// report, so a failure is only logged.
    fn tell_ready(&self, initial: bool) {
        let (mut control, stage) = (self.handles.control.clone(), self.machine.config().stage.stage);
        tokio::spawn(async move {
            if let Err(error) = control.ready(stage, initial).await {
                tracing::debug!(%error, "the coordinator did not get the report that the stage is served");
            }
        });
    }

    fn ask_for_confirmation(&mut self) {
        let (reply, confirmation) = oneshot::channel();
        let (mut control, stats) = (self.handles.control.clone(), self.handles.heartbeats.stats());
        self.confirmation = Some(confirmation);
        tokio::spawn(async move {
            let _ = reply.send(control.heartbeat(&stats).await.map(|reply| reply.directive));
        });
    }

    fn take_note(&mut self, note: &Note, reporter: &Reporter) -> Result<(), Error> {
        if let Note::Began(initial) = note {
            self.tell_begun(*initial, reporter);
        }
        self.handles.notes.take(note, self.machine.table(), reporter)?;
        if matches!(note, Note::Began(_)) {
            reporter.tell(&report::Event::Serving { stage: self.machine.config().stage.stage.0 });
        }
        Ok(())
    }

    fn tell_begun(&self, initial: InitialState, reporter: &Reporter) {
        if let InitialState::Downloaded { donor, version }
        | InitialState::Restored { keeper: donor, version } = initial
        {
            reporter.tell(&report::Event::StateTaken {
                stage: self.machine.config().stage.stage.0,
                peer: format!("{:?}", donor.peer),
                bytes: self.copies.imported_bytes,
                seconds: self.clock.now().since(swarmline_scheduler::Time(0)).as_secs_f64(),
                version: version.0,
            });
        }
    }

    // --- Figures --------------------------------------------------------------------------------------------

    fn stats(&self) -> MemberStats {
        let statistics = self.handles.executor.statistics();
        let progress = self.machine.progress(self.clock.now());
        MemberStats {
            done: progress.done,
            refused: progress.refused,
            tokens: progress.done * self.tokens_per_microbatch,
            steps: statistics.steps,
            staleness_p50: statistics.staleness_p50,
            bytes_sent: self.handles.network.bytes_sent().total(),
            oldest_task: progress.oldest,
            kept: None,
        }
    }

    fn record(&self) {
        let stage = self.machine.config().stage.stage;
        telemetry::record_member(&self.stats());
        telemetry::record_stage(stage, &self.machine.stage().counts());
        telemetry::record_averaging(stage, self.machine.averaging().counts());
    }

    fn report(&self, last: bool) -> ReplicaReport {
        let (counts, averaging) = (self.machine.stage().counts(), self.machine.averaging().counts());
        let statistics = self.handles.executor.statistics();
        let bytes = self.traffic.totals(self.handles.network.bytes_sent());
        ReplicaReport {
            stage: self.machine.config().stage.stage.0,
            done: counts.applied,
            refused: counts.refused,
            recovered: counts.recovered,
            retried: counts.retried,
            relayed: counts.relayed,
            steps: statistics.steps,
            staleness_p50: statistics.staleness_p50,
            staleness_max: statistics.staleness_max,
            skipped: statistics.skipped,
            waiting: statistics.waiting,
            rounds: averaging.complete,
            parts_applied: averaging.applied,
            boundary_bytes: bytes.sent,
            boundary_bytes_bf16: bytes.uncompressed,
            last,
        }
    }
}

/// The coordinator's reply; never resolves if none is awaited.
async fn confirmed(
    confirmation: &mut Option<oneshot::Receiver<Result<Directive, ControlError>>>,
) -> Result<Directive, ControlError> {
    match confirmation {
        Some(reply) => reply.await.unwrap_or(Ok(Directive::Continue)),
        None => std::future::pending().await,
    }
}
