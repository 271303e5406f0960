//! The loop around a replica: waits for one thing, hands it to the scheduler, does what that asks. It holds no rule of
//! its own.

use std::collections::VecDeque;
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use swarmline_scheduler::router::{Policy, RouterFactory as _};
use swarmline_scheduler::stage::{Action, Config, Event as Happened, Note};
use swarmline_scheduler::{Membership, Message, PeerId, Refusal, Stage};
use tokio::sync::{mpsc, oneshot, watch};

use super::executor::Executor;
use super::ledger::Ledger;
use crate::clock::Clock;
use crate::config::Run;
use crate::error::Error;
use crate::member::{Heart, NetworkTeller, lost_peer, member};
use crate::net::control::{Control, ControlError, Directive, HEARTBEAT_EVERY, Vitals};
use crate::net::quic::{DataPlane, NetEvent};
use crate::net::trust::Trust;
use crate::report::{Event, Repeated, ReplicaReport, Reporter};
use crate::traffic::Traffic;

/// A replica gives an account of itself this often.
const REPORT_EVERY: Duration = Duration::from_secs(10);
/// A replica that is asked to leave gets this long to finish what it holds.
const DRAIN_WITHIN: Duration = Duration::from_secs(30);

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

/// One replica at work.
#[derive(Debug)]
pub(super) struct Server {
    stage: Stage<Bytes>,
    wiring: Wiring,
    clock: Clock,
    traffic: Traffic,
    tokens_per_microbatch: u64,
    refusals: Repeated,
    network: NetworkTeller,
    /// The coordinator's answer to whether this start still is a member.
    confirmation: Option<oneshot::Receiver<Result<Directive, ControlError>>>,
    reported: Instant,
    drained: bool,
    failure: Option<Error>,
}

impl Server {
    pub(super) fn new(config: Config, run: &Run, wiring: Wiring, clock: Clock) -> Self {
        let router = Policy::Resident.build(run.seed);
        Self {
            stage: Stage::new(config, router),
            wiring,
            clock,
            traffic: Traffic::new(run),
            tokens_per_microbatch: run.tokens_per_microbatch() as u64,
            refusals: Repeated::default(),
            network: NetworkTeller::default(),
            confirmation: None,
            reported: Instant::now(),
            drained: false,
            failure: None,
        }
    }

    /// Serves until the run is over or `stop` resolves, then drains, saves and says goodbye.
    pub(super) async fn serve(
        mut self,
        reporter: &Reporter,
        save: Option<&Path>,
        mut stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<(), Error> {
        let table = self.wiring.table.borrow_and_update().clone();
        self.adopt(table, reporter);
        let mut beat = tokio::time::interval(HEARTBEAT_EVERY);
        beat.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut leaving = false;
        let mut drained_by = None;
        while !self.drained && self.failure.is_none() {
            let deadline = self.stage.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                completion = self.wiring.executor.completion() => {
                    self.handle(Happened::Completed(completion?), reporter);
                }
                Some(event) = self.wiring.arrivals.recv() => self.hear(event, reporter),
                Ok(()) = self.wiring.table.changed() => {
                    let table = self.wiring.table.borrow_and_update().clone();
                    self.adopt(table, reporter);
                }
                () = self.clock.sleep_until(deadline) => self.handle(Happened::Timeout, reporter),
                _ = beat.tick() => self.beat(reporter),
                directive = self.wiring.heart.directive() => match directive? {
                    Directive::Continue | Directive::Serve(_) => self.handle(Happened::Reached, reporter),
                    Directive::Finished => self.handle(Happened::Finished, reporter),
                    Directive::Leave(_) => self.handle(Happened::Drain, reporter),
                },
                answer = confirmed(&mut self.confirmation) => self.confirm(answer, reporter)?,
                () = stop.as_mut(), if !leaving => {
                    leaving = true;
                    self.handle(Happened::Drain, reporter);
                    drained_by = Some(self.clock.now() + DRAIN_WITHIN);
                }
                () = self.clock.sleep_until(drained_by) => {
                    self.tell_left_behind(reporter);
                    break;
                }
            }
        }
        self.say_goodbye(reporter, save).await
    }

    fn hear(&mut self, event: NetEvent, reporter: &Reporter) {
        self.network.tell(&event, reporter);
        match event {
            NetEvent::Message { from, incarnation, message } => {
                self.handle(Happened::Received { from, incarnation, message }, reporter);
            }
            other => {
                if let Some((peer, incarnation)) = lost_peer(&other, self.stage.table()) {
                    self.handle(Happened::PeerLost { peer, incarnation }, reporter);
                }
            }
        }
    }

    fn adopt(&mut self, table: Membership, reporter: &Reporter) {
        self.wiring.trust.set_keys(table.members.iter().map(|member| member.peer));
        self.handle(Happened::Membership(table), reporter);
    }

    /// Hands events to the scheduler and does what it asks.
    fn handle(&mut self, event: Happened<Bytes>, reporter: &Reporter) {
        let mut events = VecDeque::from([event]);
        while let Some(event) = events.pop_front() {
            self.stage.handle(self.clock.now(), event);
            while let Some(action) = self.stage.poll_action() {
                match action {
                    Action::Execute(job) => {
                        if let Err(error) = self.wiring.executor.submit(job) {
                            self.failure = Some(error);
                        }
                    }
                    Action::Send { to, message } => events.extend(self.send(to, message)),
                    Action::Confirm => self.ask_for_confirmation(),
                    Action::Counted(note) => self.tell(&note, reporter),
                    Action::Drained => self.drained = true,
                }
            }
        }
    }

    /// A message that cannot even be queued is as undeliverable as one that came back.
    fn send(&mut self, to: PeerId, message: Message<Bytes>) -> Option<Happened<Bytes>> {
        let address = self.stage.table().address(to)?;
        self.traffic.count(&message, self.stage.config().stage);
        let error = self.wiring.plane.send(to, address, message).err()?;
        tracing::warn!(%error, "not sent");
        let (peer, incarnation) = member(self.stage.table(), to)?;
        Some(Happened::PeerLost { peer, incarnation })
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
            Note::Lost { peer, with_it } if *with_it > 0 => reporter.tell(&Event::Incident {
                message: format!(
                    "neighbour {peer:?} is dead or stuck; {with_it} microbatches that lie with it find another way"
                ),
            }),
            Note::Foreign(id) => {
                tracing::warn!(%id, "ignored a message from somebody who is not a neighbour");
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

    fn tell_left_behind(&self, reporter: &Reporter) {
        reporter.tell(&Event::Incident {
            message: format!(
                "left after {} s with {} microbatches unfinished here; others take them over",
                DRAIN_WITHIN.as_secs(),
                self.stage.held()
            ),
        });
    }

    fn beat(&mut self, reporter: &Reporter) {
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
            boundary_bytes: bytes.sent,
            boundary_bytes_bf16: bytes.uncompressed,
            last,
        }
    }

    async fn say_goodbye(mut self, reporter: &Reporter, save: Option<&Path>) -> Result<(), Error> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        self.wiring.executor.finish(save.map(Path::to_owned)).await?;
        if let Some(path) = save {
            reporter.tell(&Event::Saved { path: path.display().to_string() });
        }
        self.wiring.plane.close().await;
        reporter.tell(&Event::Replica(self.report(true)));
        Ok(())
    }
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
