//! The loop around a coordinator: it waits for requests, a timeout or the stop, makes durable what the machine decides, and
//! then performs its actions. All rules are in the machine.

use std::collections::VecDeque;
use std::pin::pin;
use std::time::Duration;

use swarmline_scheduler::coordinator::{Action, Displacement, Event, Fact};
use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::{Coordinator, Evidence, MemberState, Membership, PeerId, StageIndex};
use tokio::sync::{mpsc, oneshot};

use super::log::Log;
use super::{REQUESTS_MAX, Reply, Request};
use crate::error::Error;
use crate::net::Identity;
use crate::net::digest::ManifestDigest;
use crate::net::table_log::TableWriter;
use crate::outcome::Outcome;
use crate::process::Clock;
use crate::report::{self, Incident, Reporter, Totals};

/// Time between two attempts to write to a log that refuses.
const LOG_RETRY: Duration = Duration::from_secs(5);

/// The key of a run, and the tables that it signs.
#[derive(Debug)]
pub(super) struct Signer {
    pub(super) identity: Identity,
    pub(super) digest: ManifestDigest,
    pub(super) table: TableWriter,
}

/// The state of the loop.
#[derive(Debug)]
pub(super) struct CoordinatorLoop<'a> {
    machine: Coordinator,
    clock: Clock,
    signer: Signer,
    /// `None`: what was decided dies with this process.
    log: Option<Log>,
    reporter: &'a Reporter,
    /// What waits for the log.
    facts: Vec<Fact>,
    due: VecDeque<Due>,
    /// Callers whose reply waits for a table, in the order of their requests.
    waiting: VecDeque<oneshot::Sender<Reply>>,
    ended: bool,
    /// The members that people know of.
    told: Option<Counts>,
}

/// The members of a table, counted.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Counts {
    serving: Vec<usize>,
    standby: usize,
    feeders: usize,
    keepers: usize,
    readers: usize,
}

/// An action that may be done once the facts before it are durable.
#[derive(Debug)]
enum Due {
    Answer(oneshot::Sender<Reply>, Reply),
    Publish(Membership),
    Tell(Incident),
    End,
}

impl<'a> CoordinatorLoop<'a> {
    pub(super) fn new(
        machine: Coordinator,
        clock: Clock,
        signer: Signer,
        log: Option<Log>,
        reporter: &'a Reporter,
    ) -> Self {
        Self {
            machine,
            clock,
            signer,
            log,
            reporter,
            facts: Vec::new(),
            due: VecDeque::new(),
            waiting: VecDeque::new(),
            ended: false,
            told: None,
        }
    }

    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut totals: mpsc::Receiver<Totals>,
        stop: impl Future<Output = ()>,
    ) -> Result<Outcome, Error> {
        let mut stop = pin!(stop);
        // A run that goes on publishes its table before the first call.
        self.handle(Event::Timeout, None);
        self.settle().await;
        while !self.ended {
            let deadline = self.machine.poll_timeout().map(|(at, _)| at);
            let is_behind = self.log.as_ref().is_some_and(Log::is_behind);
            tokio::select! {
                Some(request) = requests.recv() => self.handle_requests(request, &mut requests),
                Some(totals) = totals.recv() => self.reporter.tell(&report::Event::FeederDone(totals)),
                () = self.clock.sleep_until(deadline) => self.handle(Event::Timeout, None),
                () = tokio::time::sleep(LOG_RETRY), if is_behind => {}
                () = &mut stop => return Ok(Outcome::Stopped),
            }
            self.settle().await;
        }
        match self.machine.diverged() {
            Some(at) => Err(Error::Diverged { at, sign: Divergence::Reported }),
            None => Ok(Outcome::Finished),
        }
    }

    /// The requests that have arrived are handled together: the log is written once for all of them.
    fn handle_requests(&mut self, first: Request, requests: &mut mpsc::Receiver<Request>) {
        let others = std::iter::from_fn(|| requests.try_recv().ok()).take(REQUESTS_MAX);
        for request in std::iter::once(first).chain(others) {
            self.handle(request.event, Some(request.reply));
        }
    }

    /// Takes an event. A caller whose reply does not come at once waits for it.
    fn handle(&mut self, event: Event, mut caller: Option<oneshot::Sender<Reply>>) {
        self.machine.handle(self.clock.now(), event);
        while let Some(action) = self.machine.poll_action() {
            let due = match action {
                Action::Log(facts) => {
                    self.facts.extend(facts);
                    None
                }
                Action::Reply { to, reply } => self.answer(caller.take(), to, reply),
                Action::LateReply { to, reply } => {
                    let caller = self.waiting.pop_front();
                    self.answer(caller, to.peer, reply)
                }
                Action::Membership(membership) => Some(Due::Publish(membership)),
                Action::Evicted { replica, stage, feeder, evidence } => {
                    Some(Due::Tell(evicted(replica, stage, feeder, evidence)))
                }
                Action::Restored { stage, kept, lost } => {
                    Some(Due::Tell(Incident::StageRestored { stage: stage.0, kept, lost }))
                }
                Action::Reset { stage } => Some(Due::Tell(Incident::StageLost { stage: stage.0 })),
                Action::Displaced { replica, stage, reason } => {
                    Some(Due::Tell(displaced(replica, stage, reason)))
                }
                Action::KeeperSilent => Some(Due::Tell(Incident::KeeperSilent)),
                Action::Finished => None,
                Action::End => Some(Due::End),
            };
            self.due.extend(due);
        }
        self.waiting.extend(caller);
    }

    fn answer(
        &self,
        caller: Option<oneshot::Sender<Reply>>,
        to: PeerId,
        reply: swarmline_scheduler::coordinator::Reply,
    ) -> Option<Due> {
        let (finished, diverged) = (self.machine.tells_end(to), self.machine.diverged());
        caller.map(|caller| Due::Answer(caller, Reply { reply, finished, diverged }))
    }

    /// Makes durable what was decided, and does then what follows from it.
    async fn settle(&mut self) {
        self.write_log().await;
        while let Some(due) = self.due.pop_front() {
            match due {
                Due::Answer(caller, reply) => {
                    let _ = caller.send(reply);
                }
                Due::Publish(table) => self.publish(&table),
                Due::Tell(incident) => self.reporter.tell(&report::Event::Incident(incident)),
                Due::End => self.ended = true,
            }
        }
    }

    /// A log that refuses is said to be behind, and the run goes on: members have the tables that follow.
    async fn write_log(&mut self) {
        let facts = std::mem::take(&mut self.facts);
        let Some(log) = self.log.as_mut().filter(|log| log.is_behind() || !facts.is_empty()) else { return };
        let was_behind = log.is_behind();
        let written = log.commit(facts).await;
        if was_behind == written.is_err() {
            return;
        }
        let incident = match written {
            Ok(()) => Incident::LogComplete,
            Err(error) => Incident::LogBehind { fault: error.to_string() },
        };
        self.reporter.tell(&report::Event::Incident(incident));
    }

    fn publish(&mut self, table: &Membership) {
        let Signer { identity, digest, table: writer } = &self.signer;
        let changed = writer.change(|signed| {
            let change = signed.table().change_to(&table.clone().into());
            signed.change(identity, digest, change)
        });
        if let Err(error) = changed {
            tracing::error!(%error, "a table is not published; please report this line");
        }
        let count =
            |wanted: MemberState| table.members.iter().filter(|member| member.state == wanted).count();
        let stages = self.machine.config().stages;
        let counts = Counts {
            serving: (0..stages).map(|stage| count(MemberState::Serving(StageIndex(stage)))).collect(),
            standby: count(MemberState::Standby),
            feeders: count(MemberState::Feeding),
            keepers: table.members.iter().filter(|member| is_keeper(member.state)).count(),
            readers: count(MemberState::Reading),
        };
        // A table may say other things than who is there: people have read this line.
        if self.told.as_ref() != Some(&counts) {
            let Counts { serving, standby, feeders, keepers, readers } = counts.clone();
            let version = table.version;
            let members = report::Event::Members { version, serving, standby, feeders, keepers, readers };
            self.reporter.tell(&members);
            self.told = Some(counts);
        }
    }
}

fn is_keeper(state: MemberState) -> bool {
    matches!(state, MemberState::Keeping(_))
}

fn displaced(replica: PeerId, stage: StageIndex, reason: Displacement) -> Incident {
    let (Displacement::Loading(time) | Displacement::Stalled(time)) = reason;
    let is_loading = matches!(reason, Displacement::Loading(_));
    Incident::ReplicaDisplaced {
        peer: format!("{replica:?}"),
        stage: stage.0,
        is_loading,
        seconds: time.as_secs(),
    }
}

fn evicted(replica: PeerId, stage: StageIndex, feeder: PeerId, evidence: Evidence) -> Incident {
    let (peer, feeder) = (format!("{replica:?}"), format!("{feeder:?}"));
    let Evidence { false_ones, sound } = evidence;
    Incident::ReplicaEvicted { peer, stage: stage.0, feeder, false_ones, sound }
}
