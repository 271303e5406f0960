//! The loop around a replica: waits for one thing, hands it to the machine it concerns, does what that asks. It holds
//! no rule of its own. Microbatches are the business of `Stage`, averaging of [`Rounds`], joining replicas of
//! [`Donor`], leaving of [`Farewell`].

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::averaging::{Config as AveragingConfig, Event as Averaged, Participant, Round};
use swarmline_scheduler::router::{Policy, RouterFactory as _};
use swarmline_scheduler::stage::{Action, Config, Event as Happened, Note};
use swarmline_scheduler::transfer::UploadEvent;
use swarmline_scheduler::{Incarnation, Membership, Message, PeerId, Refusal, Stage, Time};
use tokio::sync::{mpsc, oneshot, watch};

use super::average::{self, Post, Rounds};
use super::donate::{self, Donor};
use super::executor::{Answer, Executor};
use super::leave::{Company, Farewell};
use super::ledger::Ledger;
use crate::clock::Clock;
use crate::config::Run;
use crate::error::Error;
use crate::incidents::Incidents;
use crate::member::{Heart, lost_peer, member};
use crate::net::control::{Control, ControlError, Directive, HEARTBEAT_EVERY, Vitals};
use crate::net::quic::{DataPlane, NetEvent};
use crate::net::trust::Trust;
use crate::report::{Event, Repeated, ReplicaReport, Reporter};
use crate::traffic::Traffic;

/// A replica gives an account of itself this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);

/// What a server is connected to.
#[derive(Debug)]
pub(super) struct Wiring {
    pub(super) executor: Executor,
    pub(super) plane: DataPlane,
    pub(super) arrivals: mpsc::Receiver<NetEvent>,
    pub(super) trust: Trust,
    pub(super) table: watch::Receiver<Membership>,
    pub(super) heart: Heart,
    pub(super) control: Control,
    pub(super) ledger: Option<Ledger>,
}

/// Anything that happens, and which machine it concerns.
#[derive(Debug)]
enum Told {
    Stage(Happened<Bytes>),
    Rounds(Averaged<Bytes>),
    Donor(UploadEvent<Bytes>),
}

/// One replica at work.
#[derive(Debug)]
pub(super) struct Server {
    stage: Stage<Bytes>,
    rounds: Rounds,
    donor: Donor,
    farewell: Farewell,
    /// Index sets a leaving replica waits for.
    sets: u32,
    wiring: Wiring,
    clock: Clock,
    traffic: Traffic,
    tokens_per_microbatch: u64,
    refusals: Repeated,
    incidents: Incidents,
    /// The coordinator's answer to whether this start still is a member.
    confirmation: Option<oneshot::Receiver<Result<Directive, ControlError>>>,
    reported: Instant,
    failure: Option<Error>,
}

impl Server {
    pub(super) fn new(config: Config, run: &Run, wiring: Wiring, clock: Clock) -> Self {
        let router = Policy::Resident.build(run.seed);
        let averaging = AveragingConfig {
            me: Participant { peer: config.peer, incarnation: config.incarnation },
            sets: run.averaging.fragments,
            parts_min: wiring.executor.parts_min(),
        };
        Self {
            stage: Stage::new(config, router),
            rounds: Rounds::new(averaging),
            donor: Donor::default(),
            farewell: Farewell::default(),
            sets: if run.averaging.interval > 0 { run.averaging.fragments } else { 0 },
            wiring,
            clock,
            traffic: Traffic::new(run),
            tokens_per_microbatch: run.tokens_per_microbatch() as u64,
            refusals: Repeated::default(),
            incidents: Incidents::default(),
            confirmation: None,
            reported: Instant::now(),
            failure: None,
        }
    }

    /// Serves until the run is over or `stop` resolves, then drains, saves and says goodbye. Who cannot go on leaves at
    /// once; to its neighbours it has died.
    pub(super) async fn serve(
        mut self,
        reporter: &Reporter,
        save: Option<&Path>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let served = self.work(reporter, stop).await;
        if served.is_ok() {
            self.wiring.executor.finish(save.map(Path::to_owned)).await?;
            if let Some(path) = save {
                reporter.tell(&Event::Saved { path: path.display().to_string() });
            }
        }
        self.wiring.plane.close().await;
        served?;
        reporter.tell(&Event::Replica(self.report(true)));
        Ok(())
    }

    async fn work(
        &mut self,
        reporter: &Reporter,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let table = self.wiring.table.borrow_and_update().clone();
        self.adopt(table, reporter);
        let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving = false;
        while !self.may_go() && self.failure.is_none() {
            let deadline = self.deadline();
            tokio::select! {
                answer = self.wiring.executor.answer() => match answer? {
                    Answer::Completed(completion) => self.handle(Happened::Completed(completion), reporter),
                    Answer::Averaged(event) => self.tell_machines([Told::Rounds(event)], reporter),
                },
                event = self.rounds.reduced() => self.tell_machines([Told::Rounds(event)], reporter),
                event = self.donor.exported() => self.tell_machines([Told::Donor(event)], reporter),
                Some(event) = self.wiring.arrivals.recv() => self.hear(event, reporter),
                Ok(()) = self.wiring.table.changed() => {
                    let table = self.wiring.table.borrow_and_update().clone();
                    self.adopt(table, reporter);
                }
                () = self.clock.sleep_until(deadline) => self.wake(reporter),
                _ = beat.tick() => self.beat(reporter),
                directive = self.wiring.heart.directive() => self.obey(&directive?, reporter),
                answer = confirmed(&mut self.confirmation) => self.confirm(answer, reporter)?,
                () = stop.as_mut(), if !leaving => {
                    leaving = true;
                    self.farewell.asked(self.clock.now());
                    self.handle(Happened::Drain, reporter);
                }
            }
        }
        if let Some(message) = self.farewell.left_behind(self.stage.held(), self.company()) {
            reporter.tell(&Event::Incident { message });
        }
        self.failure.take().map_or(Ok(()), Err)
    }

    fn may_go(&self) -> bool {
        self.farewell.may_go(self.clock.now(), self.company())
    }

    fn company(&self) -> Company {
        let table = self.stage.table();
        let others = average::others(table, self.stage.config().stage);
        Company { others, joiners: self.donor.sessions() }
    }

    fn deadline(&self) -> Option<Time> {
        let stage = self.stage.poll_timeout().map(|(at, _)| at);
        let others = [self.rounds.deadline(), self.donor.deadline(), self.farewell.deadline()];
        others.into_iter().chain([stage]).flatten().min()
    }

    fn wake(&mut self, reporter: &Reporter) {
        let timeouts = [
            Told::Stage(Happened::Timeout),
            Told::Rounds(Averaged::Timeout),
            Told::Donor(UploadEvent::Timeout),
        ];
        self.tell_machines(timeouts, reporter);
    }

    fn obey(&mut self, directive: &Directive, reporter: &Reporter) {
        match directive {
            Directive::Continue | Directive::Serve(_) => self.handle(Happened::Reached, reporter),
            Directive::Finished => {
                self.farewell.run_over();
                self.incidents.run_over();
                self.handle(Happened::Finished, reporter);
            }
            Directive::Leave(_) => self.handle(Happened::Drain, reporter),
        }
    }

    fn hear(&mut self, event: NetEvent, reporter: &Reporter) {
        self.incidents.heard(Instant::now(), &event, self.stage.table());
        self.incidents.tell(Instant::now(), reporter);
        match event {
            NetEvent::Message { from, incarnation, message } => {
                self.receive(from, incarnation, message, reporter);
            }
            other => {
                if let Some((peer, incarnation)) = lost_peer(&other, self.stage.table()) {
                    self.tell_machines(lost(peer, incarnation), reporter);
                }
            }
        }
    }

    /// Replicas of a stage talk to each other about averaging and states, feeders call rounds; all else is about
    /// microbatches.
    fn receive(
        &mut self,
        from: PeerId,
        incarnation: Incarnation,
        message: Message<Bytes>,
        reporter: &Reporter,
    ) {
        let sender = Participant { peer: from, incarnation };
        match message {
            Message::Averaging(message) => {
                self.tell_machines([Told::Rounds(Averaged::Received { from: sender, message })], reporter);
            }
            Message::Transfer(message) => {
                self.tell_machines([Told::Donor(UploadEvent::Received { from: sender, message })], reporter);
            }
            message => {
                let call = match message {
                    Message::Ended { round, over, .. } if self.stage.table().feeds(from, incarnation) => {
                        Some((round, over))
                    }
                    _ => None,
                };
                self.handle(Happened::Received { from, incarnation, message }, reporter);
                if let Some((round, over)) = call {
                    self.hear_call(from, round, over, reporter);
                }
            }
        }
    }

    fn hear_call(&mut self, feeder: PeerId, round: Round, over: bool, reporter: &Reporter) {
        if let Some((past, post)) = self.rounds.hear_call(self.clock.now(), feeder, round, over) {
            let undelivered = self.post([post]);
            self.tell_machines(std::iter::once(Told::Rounds(past)).chain(undelivered), reporter);
        }
    }

    fn adopt(&mut self, table: Membership, reporter: &Reporter) {
        self.wiring.trust.set_keys(table.members.iter().map(|member| member.peer));
        self.handle(Happened::Membership(table), reporter);
        let (table, stage) = (self.stage.table(), self.stage.config().stage);
        let members = Told::Rounds(Averaged::Members(average::members(table, stage)));
        let joiners = Told::Donor(UploadEvent::Joiners(donate::joiners(table, stage)));
        self.tell_machines([members, joiners], reporter);
    }

    /// Tells the machine of microbatches, then the others what follows from it.
    fn handle(&mut self, event: Happened<Bytes>, reporter: &Reporter) {
        self.tell_machines([Told::Stage(event)], reporter);
    }

    /// Hands events to the machines and does what they ask, until nothing follows any more.
    fn tell_machines(&mut self, events: impl IntoIterator<Item = Told>, reporter: &Reporter) {
        let mut events: VecDeque<Told> = events.into_iter().collect();
        while let Some(event) = events.pop_front().or_else(|| self.due_round()) {
            let posts = match event {
                Told::Stage(event) => self.tell_stage(event, reporter),
                Told::Rounds(event) => self.tell_rounds(event, reporter),
                Told::Donor(event) => self.donor.handle(self.clock.now(), event, &self.wiring.executor),
            };
            events.extend(self.post(posts));
        }
    }

    fn due_round(&mut self) -> Option<Told> {
        self.rounds.due(self.stage.held()).map(Told::Rounds)
    }

    fn tell_stage(&mut self, event: Happened<Bytes>, reporter: &Reporter) -> Vec<Post> {
        let mut posts = Vec::new();
        self.stage.handle(self.clock.now(), event);
        while let Some(action) = self.stage.poll_action() {
            match action {
                Action::Execute(job) => {
                    if let Err(error) = self.wiring.executor.submit(job) {
                        self.failure = Some(error);
                    }
                }
                Action::Send { to, message } => posts.push((to, message)),
                Action::Confirm => self.ask_for_confirmation(),
                Action::Counted(note) => self.tell(&note, reporter),
                Action::Drained => self.notice_drained(),
            }
        }
        posts
    }

    fn tell_rounds(&mut self, event: Averaged<Bytes>, reporter: &Reporter) -> Vec<Post> {
        let posts = self.rounds.handle(self.clock.now(), event, &self.wiring.executor, reporter);
        for (round, set) in self.rounds.take_went_round() {
            self.farewell.went_round(round, set);
        }
        posts.unwrap_or_else(|error| {
            self.failure = Some(error);
            Vec::new()
        })
    }

    /// Who has applied nothing has nothing to hand over.
    fn notice_drained(&mut self) {
        let sets = if self.stage.counts().applied > 0 { self.sets } else { 0 };
        self.farewell.drained(self.clock.now(), sets, self.rounds.under_way());
    }

    /// Sends; a message that cannot even be queued is as undeliverable as one that came back.
    fn post(&mut self, posts: impl IntoIterator<Item = Post>) -> Vec<Told> {
        let mut told = Vec::new();
        for (to, message) in posts {
            let Some(address) = self.stage.table().address(to) else { continue };
            self.traffic.count(&message, self.stage.config().stage);
            if let Err(error) = self.wiring.plane.send(to, address, message) {
                tracing::warn!(%error, "not sent");
                let start = member(self.stage.table(), to);
                told.extend(start.into_iter().flat_map(|(peer, incarnation)| lost(peer, incarnation)));
            }
        }
        told
    }

    /// A person hears of what went wrong, not of every microbatch.
    fn tell(&mut self, note: &Note, reporter: &Reporter) {
        match note {
            Note::Refused(id, reason) => {
                if let Some(times) = self.refusals.happened() {
                    let reason = describe(reason);
                    let message =
                        format!("{id} refused ({reason}); {times} since the last such line, all counted");
                    reporter.tell(&Event::Incident { message });
                }
            }
            Note::Applied(id) => {
                if let Some(ledger) = &mut self.wiring.ledger
                    && let Err(error) = ledger.write(self.stage.config().stage, *id)
                {
                    self.failure = Some(error);
                }
            }
            Note::Lost { peer, incarnation, with_it } => {
                self.incidents.lost(Instant::now(), (*peer, *incarnation), *with_it, self.stage.table());
            }
            Note::Foreign(id) => {
                tracing::warn!(%id, "ignored a message from somebody who is not a neighbour");
            }
            Note::Misdirected(from) => {
                tracing::warn!(?from, "ignored a message that is for feeders");
            }
            other => tracing::trace!(?other, "counted"),
        }
    }

    /// This process stood still: nothing is sent until the coordinator has been asked anew.
    fn ask_for_confirmation(&mut self) {
        let (answer, confirmation) = oneshot::channel();
        let mut control = self.wiring.control.clone();
        self.confirmation = Some(confirmation);
        tokio::spawn(async move {
            let _ = answer.send(control.heartbeat(&Vitals::default()).await);
        });
    }

    fn confirm(&mut self, answer: Result<Directive, ControlError>, reporter: &Reporter) -> Result<(), Error> {
        self.confirmation = None;
        match answer {
            Ok(_) => self.handle(Happened::Confirmed, reporter),
            Err(revoked @ ControlError::NotAMember(_)) => return Err(revoked.into()),
            // With the coordinator gone, the last table is all there is to go by.
            Err(_) => self.handle(Happened::Confirmed, reporter),
        }
        Ok(())
    }

    fn beat(&mut self, reporter: &Reporter) {
        self.incidents.tell(Instant::now(), reporter);
        let statistics = self.wiring.executor.statistics();
        let progress = self.stage.progress(self.clock.now());
        self.wiring.heart.set_vitals(Vitals {
            done: progress.done,
            refused: progress.refused,
            tokens: progress.done * self.tokens_per_microbatch,
            updates: statistics.updates,
            staleness_p50: statistics.staleness_p50,
            bytes_sent: self.wiring.plane.bytes_sent().total(),
            oldest_task: progress.oldest,
        });
        if self.reported.elapsed() >= REPORT_EVERY {
            self.reported = Instant::now();
            reporter.tell(&Event::Replica(self.report(false)));
        }
    }

    fn report(&self, last: bool) -> ReplicaReport {
        let (counts, statistics) = (self.stage.counts(), self.wiring.executor.statistics());
        let averaging = self.rounds.counts();
        let bytes = self.traffic.totals(self.wiring.plane.bytes_sent());
        ReplicaReport {
            stage: self.stage.config().stage.0,
            done: counts.applied,
            refused: counts.refused,
            restored: counts.restored,
            rerouted: counts.rerouted,
            relayed: counts.relayed,
            updates: statistics.updates,
            staleness_p50: statistics.staleness_p50,
            staleness_max: statistics.staleness_max,
            rounds: averaging.complete,
            parts_applied: averaging.applied,
            boundary_bytes: bytes.sent,
            boundary_bytes_bf16: bytes.uncompressed,
            last,
        }
    }
}

/// All machines hear of a peer that is lost.
fn lost(peer: PeerId, incarnation: Incarnation) -> [Told; 3] {
    let participant = Participant { peer, incarnation };
    [
        Told::Stage(Happened::PeerLost { peer, incarnation }),
        Told::Rounds(Averaged::PeerLost(participant)),
        Told::Donor(UploadEvent::PeerLost(participant)),
    ]
}

fn describe(reason: &Refusal) -> String {
    match reason {
        Refusal::NonFinite => "a number is not finite".to_owned(),
        Refusal::Malformed(what) | Refusal::Device(what) => what.clone(),
        Refusal::Unknown => "it is not held here".to_owned(),
        Refusal::Busy => "more in flight than there are slots".to_owned(),
        Refusal::Undeliverable => "no replica serves the next stage".to_owned(),
        Refusal::Abandoned => "nobody is known to hold it".to_owned(),
    }
}

/// The answer awaited, if one is.
async fn confirmed(
    confirmation: &mut Option<oneshot::Receiver<Result<Directive, ControlError>>>,
) -> Result<Directive, ControlError> {
    match confirmation {
        Some(answer) => answer.await.unwrap_or(Ok(Directive::Continue)),
        None => std::future::pending().await,
    }
}
