//! The life of a feeder's process.

use crate::coordinator::{self, JoinRefusal, RunState};
use crate::feeder::{Action, Config, End, Event, Record, Snapshot};
use crate::router::RouterFactory as _;
use crate::stage::Progress;
use crate::{
    Directive, Duration, Feeder, Incarnation, Instance, LeasedRange, ProcessNumber, Role, RouteSecret,
};

use super::super::delivery::{Delivery, Purpose};
use super::super::payload::Payload;
use super::super::process::{Pending, coordinator_key, join};
use super::{HEARTBEAT, Machine, REQUEST_MAX, World};

/// Making records durable takes a random time below this.
const SYNC_MAX: Duration = Duration::from_millis(20);

impl World {
    pub(super) fn at_feeder(&mut self, index: usize, event: Event<Payload>) {
        let now = self.now();
        let Some(machine) = self.feeders[index].machine.as_mut() else { return };
        // A process begins with the table in the reply to its request to join.
        if machine.table().version() == 0 && !matches!(event, Event::Membership(_)) {
            return self.hear_later(index, event);
        }
        let version = machine.table().version();
        let event = match event {
            Event::Membership(update) => Event::Membership(self.read(update, version)),
            event => event,
        };
        let Some(machine) = self.feeders[index].machine.as_mut() else { return };
        machine.handle(now, event);
        let pending: Vec<_> = std::iter::from_fn(|| decided(machine)).collect();
        self.feeders[index].pending.extend(pending);
        self.do_pending(index);
        let is_trained = self.feeders[index].machine.as_ref().is_some_and(Feeder::is_trained);
        if self.trained_at.is_none() && is_trained {
            self.trained_at = Some(now);
            self.end_measurement(now);
        }
        let machine = self.feeders[index].machine.as_ref();
        let alarm = machine.and_then(Feeder::poll_timeout).map(|(at, _)| at);
        self.queue.set_alarm(Machine::Feeder(index), alarm);
    }

    /// Commands wait until the feeder has joined; messages do not reach it.
    fn hear_later(&mut self, index: usize, event: Event<Payload>) {
        if matches!(event, Event::Evaluate { .. } | Event::Stop) {
            let Instance { incarnation, .. } = self.feeders[index].instance;
            self.queue.schedule_in(HEARTBEAT / 10, Delivery::Feeder(index, incarnation, event));
        }
    }

    // --- The journal ----------------------------------------------------------------------------------------

    /// Does the pending actions up to the first record that is not durable, and syncs the journal for that one and all
    /// that wait behind it.
    fn do_pending(&mut self, index: usize) {
        while !self.feeders[index].is_syncing {
            match self.feeders[index].pending.front() {
                None => return,
                Some(Pending { action: Action::Journal(_), .. }) => self.sync_journal(index),
                Some(_) => self.do_first(index),
            }
        }
    }

    fn sync_journal(&mut self, index: usize) {
        self.feeders[index].is_syncing = true;
        let Instance { incarnation, .. } = self.feeders[index].instance;
        let count = self.feeders[index].pending.len();
        let takes = self.time_between(Duration::ZERO, SYNC_MAX);
        self.queue.schedule_in(takes, Delivery::Synced(index, incarnation, count));
    }

    /// The records among the first `count` pending actions are durable: these actions are done.
    pub(super) fn on_synced(&mut self, index: usize, count: usize) {
        for _ in 0..count {
            self.do_first(index);
        }
        self.feeders[index].is_syncing = false;
        self.do_pending(index);
    }

    /// The power fails: of the records that are not durable, a random number of the first are written all the same.
    pub(super) fn tear_journal(&mut self, index: usize) {
        let count = self.rng.below(self.feeders[index].pending.len() as u64 + 1);
        for _ in 0..count {
            let Some(pending) = self.feeders[index].pending.pop_front() else { return };
            let Action::Journal(record) = &pending.action else { continue };
            let record = record.clone();
            if let Record::Ended { microbatch, outcome } = record.clone() {
                let outcome = Action::Outcome { microbatch, outcome };
                self.watch_feeder(index, &Pending { action: outcome, receiver: None });
            }
            self.watch_feeder(index, &pending);
            self.feeders[index].journal.push(record);
        }
    }

    fn watch_feeder(&mut self, index: usize, Pending { action, receiver }: &Pending) {
        if let Some(machine) = &self.feeders[index].machine {
            self.model.feeder_acts(index, action, *receiver, machine);
        }
    }

    // --- Actions --------------------------------------------------------------------------------------------

    fn do_first(&mut self, index: usize) {
        let Some(pending) = self.feeders[index].pending.pop_front() else { return };
        let me = self.feeders[index].instance;
        self.watch_feeder(index, &pending);
        let Some(action) = self.pervert(index, pending.action) else { return };
        match action {
            Action::Journal(record) => self.feeders[index].journal.push(record),
            Action::Draw { microbatch, .. } => {
                let event = Event::Drawn { microbatch, ids: Payload::Tokens };
                self.soon(Delivery::Feeder(index, me.incarnation, event));
            }
            Action::Send { to, envelope } => self.post(me, to, envelope),
            Action::RequestLease { next, count } => {
                let tallies = self.tallies(index);
                let request = coordinator::Event::LeaseRequest { from: me, next, count, tallies };
                self.tell_coordinator(me.peer, request, Purpose::Routine);
            }
            Action::End(end) => self.feeder_ended(index, &end),
            Action::Struck { replica, evidence } => {
                let strike = coordinator::Event::Strike { from: me, replica: replica.instance, evidence };
                self.tell_coordinator(me.peer, strike, Purpose::Routine);
            }
            Action::Outcome { microbatch, .. } => {
                self.recoveries.is_mended(self.queue.now(), microbatch, None);
            }
            Action::Evaluated(_) | Action::EvaluationDeclined => {}
        }
    }

    fn feeder_ended(&mut self, index: usize, end: &End) {
        match end {
            End::Finished => {
                (self.feeders[index].ended, self.feeders[index].owes_report) = (true, true);
                self.report_done(index);
            }
            End::Stopped | End::RunFinished | End::Dismissed(_) | End::Diverged { .. } => {
                self.feeders[index].ended = true;
            }
            End::Succeeded { .. } => {
                self.model.path("yielded to a successor");
                self.feeders[index].lose_power();
                self.succeed_liar();
            }
        }
    }

    /// Reports the end of its work until the coordinator replies.
    fn report_done(&mut self, index: usize) {
        if self.feeders[index].owes_report {
            let me = self.feeders[index].instance;
            self.report_feeder(index, true);
            self.queue.schedule_in(HEARTBEAT, Delivery::FeederHeartbeat(index, me.incarnation));
        }
    }

    /// The coordinator has replied to the report.
    pub(super) fn reported(&mut self, index: usize, reply: &coordinator::Reply) {
        if *reply == coordinator::Reply::Unknown {
            return self.on_unknown_feeder(index, Purpose::Routine);
        }
        if std::mem::take(&mut self.feeders[index].owes_report) && *reply == coordinator::Reply::NotAMember {
            self.model.path("feeder expelled");
            self.start_again(index);
        }
    }

    fn start_again(&mut self, index: usize) {
        self.queue.schedule_in(Duration::from_secs(2), Delivery::StartFeeder(index));
    }

    // --- The process ----------------------------------------------------------------------------------------

    /// Tells the coordinator how far the feeder has come.
    fn report_feeder(&mut self, index: usize, done: bool) {
        let from = self.feeders[index].instance;
        let report = coordinator::FeederReport { tallies: self.tallies(index), done, diverged: None };
        let event = coordinator::Event::FeederReport { from, report };
        self.tell_coordinator(from.peer, event, if done { Purpose::Done } else { Purpose::Routine });
    }

    pub(super) fn start_feeder(&mut self, index: usize) {
        if self.feeders[index].is_gone {
            return;
        }
        self.tear_journal(index);
        self.feeders[index].lose_power();
        self.break_connections(self.feeders[index].instance, Duration::ZERO);
        let Instance { peer, incarnation } = self.feeders[index].instance;
        let me = Instance::new(peer, Incarnation(incarnation.0 + 1));
        let scenario = &self.scenario;
        let mut config = Config::new(me, scenario.stages, scenario.total, scenario.admission);
        config.secret = RouteSecret(peer.0);
        config.lease_count = scenario.lease_count;
        config.status_after = scenario.status_after;
        config.averaging = scenario.averaging;
        config.gradient_accumulation_steps = scenario.gradient_accumulation_steps;
        config.stop_within = scenario.stop_within;
        #[cfg(test)]
        {
            config.mutation = scenario.mutation;
        }
        let router = scenario.router.build(self.rng.next_u64());
        let feeder = &mut self.feeders[index];
        let journal = Snapshot::of(&feeder.journal, config.averaging);
        if !feeder.journal.is_empty() {
            // The journal has its own ids; the table names its successor.
            feeder.role = Role::Feeder;
            self.model.path(if index < scenario.feeders() {
                "feeder resumed"
            } else {
                "resumed by a successor"
            });
        }
        (feeder.instance, feeder.admitted) = (me, false);
        (feeder.ended, feeder.owes_report) = (false, false);
        feeder.machine = Some(Feeder::resume(config, router, &journal));
        self.register_feeder(index);
        self.soon(Delivery::FeederHeartbeat(index, me.incarnation));
    }

    fn register_feeder(&mut self, index: usize) {
        let (from, role) = (self.feeders[index].instance, self.feeders[index].role);
        // Its operator starts another process each time.
        let join = join(from, ProcessNumber(from.incarnation.0), role);
        self.feeders[index].registered_at = Some(self.now());
        self.tell_coordinator(from.peer, coordinator::Event::Join(join), Purpose::Routine);
    }

    pub(super) fn send_feeder_heartbeat(&mut self, index: usize, incarnation: Incarnation) {
        let feeder = &self.feeders[index];
        if feeder.instance.incarnation != incarnation || feeder.machine.is_none() {
            return;
        }
        if feeder.ended {
            return self.report_done(index);
        }
        if feeder.admitted {
            let (from, progress) = (feeder.instance, Progress::default());
            let heartbeat = coordinator::Event::Heartbeat { from, progress };
            self.tell_coordinator(from.peer, heartbeat, Purpose::Routine);
            self.report_feeder(index, false);
        } else if feeder.registered_at.is_none_or(|at| at + REQUEST_MAX <= self.now()) {
            // The request failed: the operator starts the feeder again.
            return self.start_feeder(index);
        }
        if self.feeders[index].tables_open_at.is_some_and(|at| at <= self.now()) {
            let table = self.whole_table();
            self.send_table_to_feeder(index, table);
        }
        self.lie_as_feeder(index);
        self.queue.schedule_in(HEARTBEAT, Delivery::FeederHeartbeat(index, incarnation));
    }

    pub(super) fn reply_to_feeder(&mut self, index: usize, reply: &coordinator::Reply, purpose: Purpose) {
        match reply {
            coordinator::Reply::Reported { others } => {
                self.tell_feeder(index, coordinator_key(), Event::RunProgress(*others));
            }
            coordinator::Reply::Leased { lease, others } => {
                self.model.leases(index, lease);
                self.tell_feeder(index, coordinator_key(), Event::RunProgress(*others));
                self.tell_feeder(index, coordinator_key(), Event::Lease(*lease));
            }
            coordinator::Reply::Joined(_) => {
                self.feeders[index].admitted = true;
                let table = self.whole_table();
                self.send_table_to_feeder(index, table);
            }
            coordinator::Reply::Noted(_) => {
                let finished = self.coordinator.state() == RunState::Finished;
                let directive = if finished { Directive::Finished } else { Directive::Continue };
                self.tell_feeder(index, coordinator_key(), Event::Directive(directive));
            }
            coordinator::Reply::JoinRefused(
                JoinRefusal::FeederLives { .. } | JoinRefusal::AlreadyRuns { .. },
            ) => {
                self.feeders[index].registered_at = None;
            }
            coordinator::Reply::JoinRefused(JoinRefusal::Finished) => {
                let feeder = &mut self.feeders[index];
                feeder.is_late = feeder.journal.is_empty();
                feeder.ended = true;
            }
            coordinator::Reply::Unknown if self.feeders[index].admitted => {
                self.on_unknown_feeder(index, purpose);
            }
            coordinator::Reply::NotAMember if self.feeders[index].admitted => self.expel_feeder(index),
            _ => {}
        }
    }

    /// The coordinator does not know the feeder: it gets its newest table back if it was started again, and otherwise
    /// the feeder joins again with its ids.
    fn on_unknown_feeder(&mut self, index: usize, purpose: Purpose) {
        let feeder = &mut self.feeders[index];
        let Some(machine) = &feeder.machine else { return };
        if purpose != Purpose::Routine {
            (feeder.admitted, feeder.role) = (false, Role::Feeder);
            self.model.path("feeder expelled");
            return self.register_feeder(index);
        }
        let (from, table) = (feeder.instance, Box::new(machine.table().membership()));
        let returned = coordinator::Event::TableReturned { from, table };
        self.tell_coordinator(from.peer, returned, Purpose::Return { confirms: false });
    }

    /// Ends the process. It is started again, and the table tells it which feeder has its ids.
    fn expel_feeder(&mut self, index: usize) {
        let table = self.coordinator.membership();
        if table.get(self.feeders[index].instance).is_some() || self.feeders[index].ended {
            // The reply is to a former start, or comes after the end.
            return;
        }
        self.model.path("feeder expelled");
        self.tear_journal(index);
        self.feeders[index].lose_power();
        let taken_over = table.leases.iter().any(LeasedRange::is_taken_over);
        let succeeded = taken_over && !self.feeders[index].journal.is_empty();
        if succeeded || index == self.latest_index() || index < self.scenario.feeders() {
            self.start_again(index);
        }
    }
}

/// The next action that the machine has decided on.
fn decided(machine: &mut Feeder<Payload>) -> Option<Pending> {
    let action = machine.poll_action()?;
    let receiver = match &action {
        Action::Send { to, .. } => machine.table().instance(*to),
        _ => None,
    };
    Some(Pending { action, receiver })
}
