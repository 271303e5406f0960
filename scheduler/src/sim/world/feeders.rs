//! The life of a feeder's process.

use crate::coordinator::{self, JoinRefusal, RunState};
use crate::feeder::{Action, Config, End, Event};
use crate::router::RouterFactory as _;
use crate::stage::Progress;
use crate::{Directive, Duration, Feeder, Incarnation, Instance, Role, RouteSecret};

use super::super::delivery::{Delivery, Purpose};
use super::super::payload::Payload;
use super::super::process::{address, coordinator_key};
use super::{HEARTBEAT, Machine, World};

impl World {
    pub(super) fn at_feeder(&mut self, index: usize, event: Event<Payload>) {
        let now = self.now();
        let Some(machine) = self.feeders[index].machine.as_mut() else { return };
        machine.handle(now, event);
        let me = self.feeders[index].instance;
        while let Some(action) = self.feeders[index].machine.as_mut().and_then(Feeder::poll_action) {
            if let Some(machine) = &self.feeders[index].machine {
                self.model.feeder_acts(index, &action, machine);
            }
            match action {
                Action::Journal(record) => self.feeders[index].journal.push(record),
                Action::Draw { microbatch, .. } => {
                    let event = Event::Drawn { microbatch, ids: Payload::Tokens };
                    self.soon(Delivery::Feeder(index, me.incarnation, event));
                }
                Action::Send { to, envelope } => self.post(me, to, envelope),
                Action::RequestLease { count } => {
                    let request = coordinator::Event::LeaseRequest { from: me, count };
                    self.tell_coordinator(me.peer, request, Purpose::Routine);
                }
                Action::Struck(_) => self.model.path("struck"),
                Action::End(end) => self.feeder_ended(index, &end),
                Action::Outcome { .. } | Action::Evaluated(_) | Action::EvaluationDeclined => {}
            }
        }
        let machine = self.feeders[index].machine.as_ref();
        if self.trained_at.is_none() && machine.is_some_and(Feeder::is_trained) {
            self.trained_at = Some(now);
            self.capacity.close(now);
        }
        let alarm = machine.and_then(Feeder::poll_timeout).map(|(at, _)| at);
        self.queue.set_alarm(Machine::Feeder(index), alarm);
    }

    fn feeder_ended(&mut self, index: usize, end: &End) {
        let me = self.feeders[index].instance;
        match end {
            End::Finished => {
                self.feeders[index].ended = true;
                self.tell_coordinator(me.peer, coordinator::Event::FeederDone { from: me }, Purpose::Routine);
            }
            End::Stopped | End::RunFinished | End::Dismissed(_) => self.feeders[index].ended = true,
            End::Succeeded { .. } => {
                self.model.path("yielded to a successor");
                self.feeders[index].machine = None;
            }
        }
    }

    pub(super) fn start_feeder(&mut self, index: usize) {
        let Instance { peer, incarnation } = self.feeders[index].instance;
        let me = Instance::new(peer, Incarnation(incarnation.0 + 1));
        let scenario = &self.scenario;
        let mut config = Config::new(me, scenario.stages, scenario.total, scenario.admission);
        config.secret = RouteSecret(peer.0);
        config.lease_count = scenario.lease_count;
        config.status_after = scenario.status_after;
        config.averaging = scenario.averaging;
        config.stop_within = scenario.stop_within;
        #[cfg(test)]
        {
            config.mutation = scenario.mutation;
        }
        let router = scenario.router.build(self.rng.next_u64());
        let feeder = &mut self.feeders[index];
        let journal = feeder.journal.clone();
        if !journal.is_empty() {
            // The journal has its own ids; the table names its successor.
            feeder.role = Role::Feeder;
            self.model.path(if index == 0 { "feeder resumed" } else { "resumed by a successor" });
        }
        (feeder.instance, feeder.admitted) = (me, false);
        feeder.machine = Some(Feeder::resume(config, router, journal));
        self.register_feeder(index);
        self.soon(Delivery::FeederHeartbeat(index, me.incarnation));
        self.at_feeder(index, Event::Timeout);
    }

    fn register_feeder(&mut self, index: usize) {
        let (from, role) = (self.feeders[index].instance, self.feeders[index].role);
        let join = coordinator::Event::Join { from, role, address: address() };
        self.tell_coordinator(from.peer, join, Purpose::Routine);
    }

    pub(super) fn send_feeder_heartbeat(&mut self, index: usize, incarnation: Incarnation) {
        let feeder = &self.feeders[index];
        if feeder.instance.incarnation != incarnation || feeder.machine.is_none() || feeder.ended {
            return;
        }
        if feeder.admitted {
            let (from, progress) = (feeder.instance, Progress::default());
            let heartbeat = coordinator::Event::Heartbeat { from, progress };
            self.tell_coordinator(from.peer, heartbeat, Purpose::Routine);
        } else {
            self.register_feeder(index);
        }
        let table = self.coordinator.membership();
        self.send_table_to_feeder(index, table);
        self.queue.schedule_in(HEARTBEAT, Delivery::FeederHeartbeat(index, incarnation));
    }

    pub(super) fn reply_to_feeder(&mut self, index: usize, reply: &coordinator::Reply) {
        match reply {
            coordinator::Reply::Leased(lease) => {
                self.tell_feeder(index, coordinator_key(), Event::Lease(*lease));
            }
            coordinator::Reply::Joined(_) => {
                self.feeders[index].admitted = true;
                let table = self.coordinator.membership();
                self.tell_feeder(index, coordinator_key(), Event::Membership(table));
            }
            coordinator::Reply::Noted(_) => {
                let finished = self.coordinator.state() == RunState::Finished;
                let directive = if finished { Directive::Finished } else { Directive::Continue };
                self.tell_feeder(index, coordinator_key(), Event::Directive(directive));
            }
            // The operator follows the text of the refusal.
            coordinator::Reply::JoinRefused(JoinRefusal::NothingToSucceed) => {
                self.feeders[index].role = Role::Feeder;
            }
            coordinator::Reply::JoinRefused(JoinRefusal::Finished) => {
                let feeder = &mut self.feeders[index];
                feeder.is_late = feeder.journal.is_empty();
                feeder.ended = true;
            }
            coordinator::Reply::NotAMember if self.feeders[index].admitted => self.expel_feeder(index),
            _ => {}
        }
    }

    /// Ends the process. It is started again, and the table tells it which feeder has its ids.
    fn expel_feeder(&mut self, index: usize) {
        let table = self.coordinator.membership();
        if table.get(self.feeders[index].instance).is_some() || self.feeders[index].ended {
            // The reply is to a former start, or comes after the end.
            return;
        }
        self.model.path("feeder expelled");
        self.feeders[index].machine = None;
        if !table.successions.is_empty() && !self.feeders[index].journal.is_empty() {
            self.queue.schedule_in(Duration::from_secs(2), Delivery::StartFeeder(index));
        }
    }
}
