//! The loop around a coordinator: it waits for a request, a timeout or the stop, and performs the machine's actions.
//! All rules are in the machine.

use std::collections::VecDeque;
use std::pin::pin;

use swarmline_proto::v1;
use swarmline_scheduler::coordinator::{Action, Event};
use swarmline_scheduler::{Coordinator, MemberState, Membership, StageIndex};
use tokio::sync::{mpsc, oneshot, watch};

use super::{Reply, Request};
use crate::net::digest::ManifestDigest;
use crate::net::{Identity, membership};
use crate::outcome::Outcome;
use crate::process::Clock;
use crate::report::{self, Reporter, Totals};

/// The state of the loop.
#[derive(Debug)]
pub(super) struct CoordinatorLoop<'a> {
    machine: Coordinator,
    clock: Clock,
    identity: Identity,
    digest: ManifestDigest,
    table: watch::Sender<v1::SignedMembership>,
    reporter: &'a Reporter,
    /// Callers that wait for a reply, in the order of their requests.
    callers: VecDeque<oneshot::Sender<Reply>>,
    ended: bool,
}

impl<'a> CoordinatorLoop<'a> {
    pub(super) fn new(
        machine: Coordinator,
        identity: Identity,
        digest: ManifestDigest,
        table: watch::Sender<v1::SignedMembership>,
        reporter: &'a Reporter,
    ) -> Self {
        Self {
            machine,
            clock: Clock::start(),
            identity,
            digest,
            table,
            reporter,
            callers: VecDeque::new(),
            ended: false,
        }
    }

    pub(super) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        mut totals: mpsc::Receiver<Totals>,
        stop: impl Future<Output = ()>,
    ) -> Outcome {
        let mut stop = pin!(stop);
        while !self.ended {
            let deadline = self.machine.poll_timeout().map(|(at, _)| at);
            tokio::select! {
                Some(request) = requests.recv() => {
                    self.callers.push_back(request.reply);
                    self.handle(request.event);
                }
                Some(totals) = totals.recv() => self.reporter.tell(&report::Event::FeederDone(totals)),
                () = self.clock.sleep_until(deadline) => self.handle(Event::Timeout),
                () = &mut stop => return Outcome::Stopped,
            }
        }
        Outcome::Finished
    }

    fn handle(&mut self, event: Event) {
        self.machine.handle(self.clock.now(), event);
        while let Some(action) = self.machine.poll_action() {
            match action {
                Action::Reply { reply, .. } => {
                    let finished = self.machine.is_finished();
                    if let Some(caller) = self.callers.pop_front() {
                        let _ = caller.send(Reply { reply, finished });
                    }
                }
                Action::Membership(membership) => self.publish(&membership),
                Action::Finished => {}
                Action::End => self.ended = true,
            }
        }
    }

    fn publish(&self, table: &Membership) {
        self.table.send_replace(membership::sign(&self.identity, &self.digest, table));
        let count =
            |wanted: MemberState| table.members.iter().filter(|member| member.state == wanted).count();
        let stages = self.machine.config().stages;
        self.reporter.tell(&report::Event::Members {
            version: table.version,
            serving: (0..stages).map(|stage| count(MemberState::Serving(StageIndex(stage)))).collect(),
            standby: count(MemberState::Standby),
            feeders: count(MemberState::Feeding),
        });
    }
}
