//! The loop around a coordinator: it waits for a request, a timeout or the stop, and performs the machine's actions.
//! All rules are in the machine.

use std::collections::VecDeque;
use std::pin::pin;

use swarmline_scheduler::coordinator::{Action, Event};
use swarmline_scheduler::feeder::Divergence;
use swarmline_scheduler::{Coordinator, Evidence, MemberState, Membership, PeerId, StageIndex};
use tokio::sync::{mpsc, oneshot};

use super::{Reply, Request};
use crate::error::Error;
use crate::net::Identity;
use crate::net::digest::ManifestDigest;
use crate::net::table_log::TableWriter;
use crate::outcome::Outcome;
use crate::process::Clock;
use crate::report::{self, Incident, Reporter, Totals};

/// The state of the loop.
#[derive(Debug)]
pub(super) struct CoordinatorLoop<'a> {
    machine: Coordinator,
    clock: Clock,
    identity: Identity,
    digest: ManifestDigest,
    table: TableWriter,
    reporter: &'a Reporter,
    /// The caller of the request that is handled.
    caller: Option<oneshot::Sender<Reply>>,
    /// Callers whose reply waits for a table, in the order of their requests.
    waiting: VecDeque<oneshot::Sender<Reply>>,
    ended: bool,
}

impl<'a> CoordinatorLoop<'a> {
    pub(super) fn new(
        machine: Coordinator,
        identity: Identity,
        digest: ManifestDigest,
        table: TableWriter,
        reporter: &'a Reporter,
    ) -> Self {
        Self {
            machine,
            clock: Clock::start(),
            identity,
            digest,
            table,
            reporter,
            caller: None,
            waiting: VecDeque::new(),
            ended: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut totals: mpsc::Receiver<Totals>,
        stop: impl Future<Output = ()>,
    ) -> Result<Outcome, Error> {
        let mut stop = pin!(stop);
        while !self.ended {
            let deadline = self.machine.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                Some(request) = requests.recv() => self.handle_request(request),
                Some(totals) = totals.recv() => self.reporter.tell(&report::Event::FeederDone(totals)),
                () = self.clock.sleep_until(deadline) => self.handle(Event::Timeout),
                () = &mut stop => return Ok(Outcome::Stopped),
            }
        }
        match self.machine.diverged() {
            Some(at) => Err(Error::Diverged { at, sign: Divergence::Reported }),
            None => Ok(Outcome::Finished),
        }
    }

    /// A caller whose reply does not come at once waits for it.
    fn handle_request(&mut self, request: Request) {
        self.caller = Some(request.reply);
        self.handle(request.event);
        self.waiting.extend(self.caller.take());
    }

    fn handle(&mut self, event: Event) {
        self.machine.handle(self.clock.now(), event);
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Reply { to, reply } => {
                    let caller = self.caller.take();
                    self.answer(caller, to, reply);
                }
                Action::LateReply { to, reply } => {
                    let caller = self.waiting.pop_front();
                    self.answer(caller, to.peer, reply);
                }
                Action::Membership(membership) => self.publish(&membership),
                Action::Evicted { replica, stage, feeder, evidence } => {
                    let (peer, feeder) = (format!("{replica:?}"), format!("{feeder:?}"));
                    let Evidence { false_ones, sound } = evidence;
                    let evicted =
                        Incident::ReplicaEvicted { peer, stage: stage.0, feeder, false_ones, sound };
                    self.reporter.tell(&report::Event::Incident(evicted));
                }
                Action::Finished => {}
                Action::End => self.ended = true,
            }
        }
    }

    fn answer(
        &self,
        caller: Option<oneshot::Sender<Reply>>,
        to: PeerId,
        reply: swarmline_scheduler::coordinator::Reply,
    ) {
        let (finished, diverged) = (self.machine.tells_end(to), self.machine.diverged());
        if let Some(caller) = caller {
            let _ = caller.send(Reply { reply, finished, diverged });
        }
    }

    fn publish(&self, table: &Membership) {
        let changed = self.table.change(|signed| {
            let change = signed.table().change_to(&table.clone().into());
            signed.change(&self.identity, &self.digest, change)
        });
        if let Err(error) = changed {
            tracing::error!(%error, "a table is not published; please report this line");
        }
        let count =
            |wanted: MemberState| table.members.iter().filter(|member| member.state == wanted).count();
        let stages = self.machine.config().stages;
        self.reporter.tell(&report::Event::Members {
            version: table.version,
            serving: (0..stages).map(|stage| count(MemberState::Serving(StageIndex(stage)))).collect(),
            standby: count(MemberState::Standby),
            feeders: count(MemberState::Feeding),
            keepers: table.members.iter().filter(|member| is_keeper(member.state)).count(),
        });
    }
}

fn is_keeper(state: MemberState) -> bool {
    matches!(state, MemberState::Keeping(_))
}
