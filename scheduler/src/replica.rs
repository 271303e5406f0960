//! One replica of one stage, from its initial state to its departure: the machine of a volunteer's process.
//!
//! A replica that the coordinator has placed first takes over the state of another replica of its stage (`joining`).
//! Then it tells the coordinator that it serves. From then on three machines work side by side: [`Stage`] for
//! microbatches, [`Averaging`] for the rounds that keep replicas of a stage together, and [`Upload`] for joiners that
//! take its state. A message goes to the machine that it concerns, and every machine hears of the table and of lost
//! peers. A replica that is asked to leave finishes its microbatches and waits until its updates are averaged
//! (`departure`).
//!
//! A process that stood still asks the coordinator whether it still is a member, and sends nothing before the answer.

mod accumulation;
mod config;
mod departure;
mod event;
mod joining;
mod questions;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::averaging::{RoundReport, RoundTracker};
use crate::mutation::Mutation;
use crate::prediction::{Predictions, ServingAction};
use crate::router::Router;
use crate::stage::{Job, Progress};
use crate::transfer::{DownloadEvent, TransferMessage, Upload, UploadAction, UploadEvent};
use crate::{
    Averaging, Directive, Envelope, Instance, Message, PeerId, PeerTable, Stage, Suspension, TableUpdate,
    Time, averaging, stage,
};

pub use config::{Begin, Config};
pub use departure::{DRAIN_WITHIN, HAND_OVER_WITHIN, Unfinished};
pub use event::{Action, Confirmation, End, Event, InitialState, Note, Reason};
pub use questions::{
    RECOVERY_PAGES_AT_ONCE, RECOVERY_PAGES_PER_SECOND, ROUND_CALLS_AT_ONCE, ROUND_CALLS_PER_SECOND,
    STATUS_REQUESTS_AT_ONCE, STATUS_REQUESTS_PER_SECOND,
};

use accumulation::Accumulation;
use departure::{Departure, Others};
use joining::Joining;
use questions::Questions;

/// Messages that are withheld at most while the coordinator is asked; of any further one it is as if it were lost on
/// its way.
pub const WITHHELD_MAX: usize = 4_096;

/// Times that a replica with initial weights is told to be ready, after it has said that it is, before it gives way to
/// better weights, of another that serves its stage or of a keeper: the first may be replies to earlier heartbeats.
const REFUSALS_MAX: u32 = 3;

/// One replica of one stage.
#[derive(Debug)]
pub struct Replica<P> {
    config: Config<P>,
    phase: Phase<P>,
    stage: Stage<P>,
    averaging: Averaging<P>,
    rounds: RoundTracker,
    accumulation: Accumulation,
    upload: Upload,
    departure: Departure,
    questions: Questions,
    predictions: Predictions<P>,
    suspension: Suspension,
    /// It has the initial weights, and no table lists it as serving yet.
    unaccepted: Option<Unaccepted>,
    actions: VecDeque<Action<P>>,
    /// Messages that wait for the coordinator's confirmation, since this process stood still.
    withheld: Vec<Action<P>>,
}

/// A beginning with initial weights that the coordinator may refuse.
#[derive(Clone, Copy, Debug)]
struct Unaccepted {
    initial: InitialState,
    /// How often the coordinator has said since that the replica is to be ready.
    times_told: u32,
}

#[derive(Debug)]
enum Phase<P> {
    Joining(Box<Joining<P>>),
    Serving,
    Ended,
}

impl<P: Clone + Default + Debug> Replica<P> {
    /// A replica that the coordinator has placed, and that does not serve yet.
    #[must_use]
    pub fn new(config: Config<P>, router: Box<dyn Router>) -> Self {
        let averaging = averaging::Config {
            me: config.stage.me,
            fragments: config.fragments.max(1),
            size: config.fragment_size,
            digest: config.digest,
        };
        Self {
            phase: Phase::Joining(Box::new(Joining::new(&config))),
            stage: Stage::new(config.stage.clone(), router),
            averaging: Averaging::new(averaging),
            rounds: RoundTracker::default(),
            accumulation: Accumulation::new(config.gradient_accumulation_steps),
            upload: Upload::new(),
            departure: Departure::default(),
            questions: Questions::default(),
            predictions: Predictions::new(),
            suspension: Suspension::new(),
            unaccepted: None,
            actions: VecDeque::new(),
            withheld: Vec::new(),
            config,
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match self.phase {
            Phase::Joining(_) => self.on_event_joining(now, event),
            Phase::Serving => {
                if self.suspension.called(now) {
                    self.actions.push_back(Action::Confirm);
                }
                self.on_event(now, event);
            }
            Phase::Ended => return,
        }
        self.step_rest_at_the_end();
        self.begin_round(now);
        self.notice_departure(now);
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of `handle`, with [`Event::Timeout`]; `None` once the replica has ended.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        match &self.phase {
            Phase::Joining(joining) => {
                joining.poll_timeout().map(|(at, reason)| (at, Reason::Download(reason)))
            }
            Phase::Serving => {
                let stage = self.stage.poll_timeout().map(|(at, reason)| (at, Reason::Stage(reason)));
                let averaging =
                    self.averaging.poll_timeout().map(|(at, reason)| (at, Reason::Averaging(reason)));
                let upload = self.upload.poll_timeout().map(|(at, reason)| (at, Reason::Upload(reason)));
                let departure = self.departure.deadline().map(|at| (at, Reason::DepartureExpires));
                [stage, averaging, upload, departure].into_iter().flatten().min_by_key(|(at, _)| *at)
            }
            Phase::Ended => None,
        }
    }

    /// Whether the replica serves its stage: it has its state, and has not ended.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        matches!(self.phase, Phase::Serving)
    }

    /// The progress that the next heartbeat reports to the coordinator; zeros before the replica serves.
    #[must_use]
    pub fn progress(&self, now: Time) -> Progress {
        self.stage.progress(now)
    }

    /// The machine for microbatches.
    #[must_use]
    pub fn stage(&self) -> &Stage<P> {
        &self.stage
    }

    /// The machine for averaging rounds.
    #[must_use]
    pub fn averaging(&self) -> &Averaging<P> {
        &self.averaging
    }

    /// The members in the newest table that the replica has received.
    #[must_use]
    pub fn table(&self) -> &PeerTable {
        match &self.phase {
            Phase::Joining(joining) => &joining.table,
            Phase::Serving | Phase::Ended => self.stage.table(),
        }
    }

    /// The settings that the replica was created with.
    #[must_use]
    pub fn config(&self) -> &Config<P> {
        &self.config
    }

    // --- Joining --------------------------------------------------------------------------------------------

    fn on_event_joining(&mut self, now: Time, event: Event<P>) {
        let Phase::Joining(joining) = &mut self.phase else { return };
        match event {
            Event::Membership(update) => joining.on_membership(now, &self.config, update),
            Event::Received { from, envelope } => joining.on_message(now, &self.config, from, envelope),
            Event::Imported(fits) => joining.tell(now, DownloadEvent::Imported(fits)),
            Event::PeerLost(instance) => joining.tell(now, DownloadEvent::PeerLost(instance)),
            Event::Timeout => joining.tell(now, DownloadEvent::Timeout),
            Event::Directive(Directive::Finished) => return self.end(End::RunFinished),
            Event::Directive(Directive::Diverged { at }) => return self.end(End::Diverged { at }),
            Event::Directive(Directive::Leave(_)) | Event::Stop => return self.end(End::Left(None)),
            Event::Expelled => return self.expelled(),
            Event::Directive(Directive::Serve(stage)) if stage != self.config.stage.stage => {
                return self.expelled();
            }
            Event::Directive(Directive::Continue | Directive::Serve(_))
            | Event::Confirmed(_)
            | Event::Completed(_)
            | Event::Predicted(_)
            | Event::Averaged(_)
            | Event::Exported { .. }
            | Event::Sketched { .. }
            | Event::Arriving(_)
            | Event::SendQueueFull { .. }
            | Event::RoundTrip(..) => {}
        }
        self.actions.extend(std::iter::from_fn(|| joining.poll_action()));
        if let Some(initial) = joining.outcome(&self.config) {
            self.serve(now, initial);
        }
    }

    fn serve(&mut self, now: Time, initial: InitialState) {
        let Phase::Joining(joining) = std::mem::replace(&mut self.phase, Phase::Serving) else { return };
        match initial {
            InitialState::Initial { .. } => self.unaccepted = Some(Unaccepted { initial, times_told: 0 }),
            _ => self.count(Note::Began(initial)),
        }
        self.tell_ready();
        self.on_membership(now, TableUpdate::Whole(joining.table.shared()));
    }

    fn tell_ready(&mut self) {
        self.actions.push_back(Action::Ready { initial: self.unaccepted.is_some() });
    }

    /// The coordinator has not heard that the replica serves, or refuses that it begins with initial weights: another
    /// replica or a keeper has better ones. Then the process starts again, and takes them over.
    fn on_told_to_be_ready(&mut self, now: Time) {
        if let Some(unaccepted) = &mut self.unaccepted {
            unaccepted.times_told += 1;
            let (table, stage) = (self.stage.table(), self.config.stage.stage);
            if unaccepted.times_told >= REFUSALS_MAX && (table.serves(stage) || table.is_restorable(stage)) {
                return self.expelled();
            }
        }
        self.tell_ready();
        self.at_stage(now, stage::Event::Reached);
    }

    // --- Serving --------------------------------------------------------------------------------------------

    fn on_event(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Membership(update) => self.on_membership(now, update),
            Event::Received { from, envelope } => self.on_message(now, from, envelope),
            Event::Completed(reply) => self.at_stage(now, stage::Event::Completed(reply)),
            Event::Predicted(computed) => {
                self.predictions.on_computed(computed);
                self.act_on_predictions();
            }
            Event::Averaged(reply) => self.at_averaging(now, averaging::Event::Replied(reply)),
            Event::Exported { state, manifest } => {
                self.at_upload(now, UploadEvent::Exported { state, manifest });
            }
            Event::Sketched { to, state, seed, sketch } => {
                self.at_upload(now, UploadEvent::Sketched { to, state, seed, sketch });
            }
            Event::Arriving(instance) => self.at_stage(now, stage::Event::Arriving(instance)),
            // Averaging and transfers repeat what gets no answer.
            Event::SendQueueFull { to, message } => {
                self.at_stage(now, stage::Event::SendQueueFull { to, message });
            }
            Event::PeerLost(instance) => self.on_peer_lost(now, instance),
            Event::RoundTrip(instance, time) => self.at_stage(now, stage::Event::RoundTrip(instance, time)),
            Event::Directive(directive) => self.on_directive(now, &directive),
            Event::Confirmed(confirmation) => self.on_confirmed(now, confirmation),
            Event::Expelled => self.expelled(),
            Event::Stop => self.leave(now),
            Event::Timeout => self.on_timeout(now),
            // The download is over.
            Event::Imported(_) => {}
        }
    }

    fn on_membership(&mut self, now: Time, update: TableUpdate) {
        if !update.is_news(self.table().version()) {
            return;
        }
        let stage = self.config.stage.stage;
        self.at_stage(now, stage::Event::Membership(update));
        self.notice_acceptance();
        self.questions.retain_members(self.stage.table());
        self.predictions.retain_members(self.stage.table());
        if self.table().touches(stage) {
            let members = self.members();
            self.at_averaging(now, averaging::Event::Members(members));
        }
        if self.table().touches_takers(stage) {
            let takers = self.stage.table().takers_of(stage, self.config.weights).collect();
            self.at_upload(now, UploadEvent::Joiners(takers));
        }
    }

    fn notice_acceptance(&mut self) {
        if let Some(Unaccepted { initial, .. }) = self.unaccepted
            && self.members().contains(&self.config.stage.me)
        {
            self.unaccepted = None;
            self.count(Note::Began(initial));
        }
    }

    /// Each message concerns one machine.
    fn on_message(&mut self, now: Time, from: Instance, envelope: Envelope<P>) {
        if !self.questions.admit(now, from, &envelope.message) {
            return self.count(Note::Unanswered(from));
        }
        match envelope.message {
            Message::Averaging(message) => {
                let payload = envelope.payload;
                self.at_averaging(now, averaging::Event::Received { from, message, payload });
            }
            Message::Transfer(message) => self.at_upload(now, UploadEvent::Received { from, message }),
            Message::Prediction(message) => {
                let (stage, parts) = (self.config.stage.stage, (message, envelope.ids, envelope.payload));
                self.predictions.on_message(stage, self.stage.table(), from, parts);
                self.act_on_predictions();
            }
            Message::RoundCall { round, is_closing, weights } => {
                if self.stage.table().caller() == Some(from.peer) {
                    self.at_averaging(now, averaging::Event::Weights(weights));
                    let report = self.rounds.on_call(now, from.peer, round, is_closing);
                    if let Some(RoundReport { ended, .. }) = report {
                        self.at_averaging(now, averaging::Event::Past(ended));
                    }
                    self.report_round(report);
                }
            }
            message => {
                let envelope = Envelope { message, ..envelope };
                self.at_stage(now, stage::Event::Received { from, envelope });
            }
        }
    }

    fn on_peer_lost(&mut self, now: Time, instance: Instance) {
        self.at_stage(now, stage::Event::PeerLost(instance));
        self.at_averaging(now, averaging::Event::PeerLost(instance));
        self.at_upload(now, UploadEvent::PeerLost(instance));
    }

    fn on_timeout(&mut self, now: Time) {
        self.at_stage(now, stage::Event::Timeout);
        self.at_averaging(now, averaging::Event::Timeout);
        self.at_upload(now, UploadEvent::Timeout);
    }

    fn on_directive(&mut self, now: Time, directive: &Directive) {
        match directive {
            Directive::Continue => self.at_stage(now, stage::Event::Reached),
            // The replica was expelled and placed again: the state of its stage is of no use there.
            Directive::Serve(stage) if *stage != self.config.stage.stage => self.expelled(),
            Directive::Serve(_) => self.on_told_to_be_ready(now),
            Directive::Finished => {
                self.departure.run_finished();
                self.at_stage(now, stage::Event::Finished);
            }
            Directive::Diverged { at } => self.end(End::Diverged { at: *at }),
            Directive::Leave(_) => self.leave(now),
        }
    }

    /// The coordinator still knows this instance, or is away: the withheld messages are sent now.
    fn on_confirmed(&mut self, now: Time, confirmation: Confirmation) {
        if confirmation == Confirmation::NotAMember {
            return self.expelled();
        }
        self.suspension.confirmed();
        self.actions.extend(std::mem::take(&mut self.withheld));
        self.at_stage(now, stage::Event::Reached);
    }

    fn leave(&mut self, now: Time) {
        self.departure.requested(now);
        self.at_stage(now, stage::Event::Drain);
    }

    // --- The machines ---------------------------------------------------------------------------------------

    fn at_stage(&mut self, now: Time, event: stage::Event<P>) {
        self.stage.handle(now, event);
        while let Some(action) = self.stage.poll_action() {
            match action {
                stage::Action::Execute(job) => self.execute(now, job),
                stage::Action::Send { to, envelope } => self.send(Action::Send { to, envelope }),
                stage::Action::Counted(note) => self.count(Note::Stage(note)),
                stage::Action::Drained => self.on_drained(now),
            }
        }
    }

    /// A copy that is due at the clock of the job is made before.
    fn execute(&mut self, now: Time, job: Job<P>) {
        if let Some(clock) = self.stage.clock_of_gradients(&job) {
            self.at_upload(now, UploadEvent::Begins { clock });
        }
        self.actions.push_back(Action::Execute(job));
    }

    fn at_averaging(&mut self, now: Time, event: averaging::Event<P>) {
        self.averaging.handle(now, event);
        while let Some(action) = self.averaging.poll_action() {
            match action {
                averaging::Action::Execute(job) => self.on_averaging_job(now, job),
                averaging::Action::Send { to, message, payload } => {
                    let envelope = Envelope::with_payload(Message::Averaging(message), payload);
                    self.send(Action::Send { to, envelope });
                }
                averaging::Action::Counted(note) => self.count(Note::Averaging(note)),
            }
        }
    }

    fn on_averaging_job(&mut self, now: Time, job: averaging::Job<P>) {
        if let averaging::Job::Finish { round, fragment, complete } = job {
            if complete {
                self.departure.averaged(round, fragment);
                self.rounds.carry(round, fragment, self.config.fragments.max(1));
            }
            let report = self.rounds.end(now, round);
            self.report_round(report);
        }
        self.actions.push_back(Action::Average(job));
    }

    fn at_upload(&mut self, now: Time, event: UploadEvent) {
        self.upload.handle(now, event);
        while let Some(action) = self.upload.poll_action() {
            match action {
                UploadAction::Export { state } => self.actions.push_back(Action::Export { state }),
                UploadAction::Send { to, message } => self.send_transfer(to, message),
                UploadAction::SendChunk { to, state, chunk, offset, bytes } => {
                    self.send(Action::SendChunk { to, state, chunk, offset, bytes });
                }
                UploadAction::Sketch { to, state, seed } => {
                    self.actions.push_back(Action::Sketch { to, state, seed });
                }
                UploadAction::Release { state } => self.actions.push_back(Action::Release { state }),
                UploadAction::Counted(note) => self.count(Note::Upload(note)),
            }
        }
    }

    fn act_on_predictions(&mut self) {
        while let Some(action) = self.predictions.poll_action() {
            match action {
                ServingAction::Execute(job) => self.actions.push_back(Action::Predict(job)),
                ServingAction::Send { to, message, payload } => {
                    let envelope = Envelope::with_payload(Message::Prediction(message), payload);
                    self.send(Action::Send { to: to.peer, envelope });
                }
            }
        }
    }

    /// Begins the round that the feeder called, as soon as it is time. A round that does not begin has no other member, or is
    /// one of a run that does not average.
    fn begin_round(&mut self, now: Time) {
        while self.is_serving()
            && let Some(round) = self.rounds.next_round(self.stage.held(), self.waiting())
        {
            if self.config.fragments > 0 {
                self.at_averaging(now, averaging::Event::Round(round));
            }
            if self.averaging.round().is_none() {
                let report = self.rounds.end(now, round);
                self.report_round(report);
            }
        }
    }

    // --- The end --------------------------------------------------------------------------------------------

    /// A replica that has applied nothing has nothing to hand over.
    fn on_drained(&mut self, now: Time) {
        let learned = self.stage.counts().applied > 0 && !self.config.stage.breaks(Mutation::LeaveUnaveraged);
        let fragments = if learned { self.config.fragments } else { 0 };
        self.step_rest();
        self.departure.drained(now, fragments, self.averaging.round());
    }

    fn notice_departure(&mut self, now: Time) {
        if !self.is_serving() || self.departure.deadline().is_none() {
            return;
        }
        let others = self.others();
        if self.departure.is_done(now, others) {
            // Of a replica that was not drained in time, the weights may be saved.
            self.step_rest();
            let left = End::Left(self.departure.unfinished(self.stage.held(), others));
            let finished = self.departure.is_run_finished();
            self.end(if finished { End::RunFinished } else { left });
        }
    }

    fn others(&self) -> Others {
        let called = self.stage.table().feeders().next().is_some();
        let members = if called { self.members().len().saturating_sub(1) } else { 0 };
        Others { members, joiners: self.upload.sessions() }
    }

    fn expelled(&mut self) {
        let serves = self.is_serving() && self.unaccepted.is_none();
        let has_state = serves || self.config.begin.has_state();
        self.end(End::Expelled { has_state });
    }

    fn end(&mut self, end: End) {
        self.phase = Phase::Ended;
        self.actions.push_back(Action::End(end));
    }

    // --- Sending and counting -------------------------------------------------------------------------------

    /// The replicas that average with each other: those that serve the stage.
    fn members(&self) -> Vec<Instance> {
        self.stage.table().serving(self.config.stage.stage).map(|member| member.instance).collect()
    }

    /// Tells every feeder: one calls the next round, and each counts the contributions that it has granted.
    fn report_round(&mut self, report: Option<RoundReport>) {
        let Some(RoundReport { ended: round, carried, is_complete }) = report else { return };
        let feeders = self.stage.table().feeders().map(|member| member.instance.peer);
        for to in feeders.collect::<Vec<_>>() {
            let envelope = Message::RoundReport { round, carried, is_complete }.into();
            self.send(Action::Send { to, envelope });
        }
    }

    fn send_transfer(&mut self, to: PeerId, message: TransferMessage) {
        self.send(Action::Send { to, envelope: Message::Transfer(message).into() });
    }

    fn send(&mut self, action: Action<P>) {
        if !self.suspension.is_unsure() {
            self.actions.push_back(action);
        } else if self.withheld.len() < WITHHELD_MAX {
            self.withheld.push(action);
        }
    }

    fn count(&mut self, note: Note) {
        self.actions.push_back(Action::Counted(note));
    }
}
