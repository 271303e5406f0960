//! Faults: how each of them changes the world.

use std::collections::BTreeSet;

use crate::coordinator::Facts;
use crate::{
    Coordinator, Duration, Feeder, Incarnation, MemberState, PeerId, Replica, Role, StageIndex, Time,
    coordinator, replica,
};

use super::super::connections::IDLE;
use super::super::delivery::Delivery;
use super::super::fault::{CUT_OFF, CUT_OFF_LONGER, End, Fault, Way};
use super::super::process::{FeederProcess, Liveness, ReplicaProcess, coordinator_key};
use super::lying_feeders::LIAR;
use super::{Machine, World};

impl World {
    pub(super) fn strike(&mut self, fault: Fault) {
        if self.misses(&fault) {
            return;
        }
        self.model.path(fault.name());
        let now = self.now();
        match fault {
            Fault::Crash { replica, loud, back_after } => self.crash(replica, loud, back_after),
            Fault::Leave { replica } => self.at_replica(replica, replica::Event::Stop),
            Fault::Stall { replica, lasts } => self.replicas[replica].executor.stall(now + lasts),
            Fault::Pace { replica, percent } => self.change_pace(replica, percent),
            Fault::Suspend { replica, lasts } => self.suspend(replica, lasts),
            Fault::Lie { replica, act, lasts } => self.lie_to_joiners(replica, act, now + lasts),
            Fault::Byzantine { replica, act, lasts } => self.begin_act(replica, act, lasts),
            Fault::LyingFeeder { act, lasts } => self.begin_feeder_act(act, lasts),
            Fault::SlowCopy { replica, by, lasts } => self.replicas[replica].slow_copies = (by, now + lasts),
            Fault::Loss { per_mille, lasts } => self.network.lose(per_mille, now + lasts),
            Fault::Delay { extra, lasts } => self.network.slow_down(extra, now + lasts),
            Fault::LateControl { extra, lasts } => self.network.delay_control(extra, now + lasts),
            Fault::BrokenLink { a, b, way, lasts } => self.break_link((a, b), way, lasts),
            Fault::Partition { part, lasts } => self.partition(&part, now + lasts),
            Fault::CoordinatorOutage { lasts } => {
                self.network.split(BTreeSet::from([coordinator_key()]), now + lasts);
            }
            Fault::CoordinatorFreeze { lasts } => {
                self.coordinator_frozen_until = self.coordinator_frozen_until.max(now + lasts);
            }
            Fault::CoordinatorRestart { back_after, keeps_log } => {
                self.restart_coordinator(back_after, keeps_log);
            }
            Fault::FeederCrash { back_after, keeps_journal } => {
                self.kill_feeder();
                if !keeps_journal {
                    self.lose_journal();
                }
                let index = self.latest_index();
                self.queue.schedule_in(back_after, Delivery::StartFeeder(index));
            }
            Fault::StageCrash { stage, back_after } => self.crash_stage(StageIndex(stage), back_after),
            Fault::KeeperCrash { back_after } => self.kill_keeper(Some(back_after)),
            Fault::Succession { dies, after } => self.succeed(dies, after),
        }
    }

    /// Whether there is no process that the fault could hit.
    fn misses(&self, fault: &Fault) -> bool {
        let liveness = |replica: &usize| self.replicas[*replica].liveness;
        match fault {
            Fault::Crash { replica, .. } => liveness(replica) == Liveness::Dead,
            Fault::Leave { replica }
            | Fault::Stall { replica, .. }
            | Fault::Pace { replica, .. }
            | Fault::Lie { replica, .. }
            | Fault::Byzantine { replica, .. }
            | Fault::SlowCopy { replica, .. }
            | Fault::Suspend { replica, .. } => liveness(replica) != Liveness::Awake,
            Fault::BrokenLink { a, b, .. } => a == b,
            Fault::LyingFeeder { .. } => {
                let FeederProcess { admitted, machine, ended, .. } = &self.feeders[LIAR];
                !admitted || *ended || machine.as_ref().is_none_or(|machine| machine.tallies().is_empty())
            }
            Fault::FeederCrash { keeps_journal: true, .. } => {
                self.latest().machine.is_none() || self.latest().ended
            }
            Fault::Succession { .. } | Fault::FeederCrash { keeps_journal: false, .. } => {
                let FeederProcess { admitted, machine, .. } = self.latest();
                !admitted || machine.as_ref().is_none_or(Feeder::is_trained)
            }
            Fault::Loss { .. }
            | Fault::Delay { .. }
            | Fault::LateControl { .. }
            | Fault::CoordinatorOutage { .. }
            | Fault::StageCrash { .. }
            | Fault::Partition { .. } => false,
            Fault::KeeperCrash { .. } => self.keeper.as_ref().is_none_or(|keeper| keeper.machine.is_none()),
            Fault::CoordinatorFreeze { .. } | Fault::CoordinatorRestart { .. } => {
                self.now() < self.coordinator_back_at
            }
        }
    }

    /// The coordinator dies, and another start of it knows its log, or its key only.
    fn restart_coordinator(&mut self, back_after: Duration, keeps_log: bool) {
        self.note_restart();
        let back = self.now() + back_after;
        self.network.split(BTreeSet::from([coordinator_key()]), back);
        self.coordinator_starts += 1;
        (self.coordinator_back_at, self.coordinator_frozen_until) = (back, Time::default());
        let config = self.coordinator.config().clone();
        let config = coordinator::Config { launch: self.coordinator_starts, ..config };
        if !keeps_log {
            self.coordinator_log = Facts::default();
        }
        self.coordinator = if self.coordinator_log.is_empty() {
            Coordinator::restarted(config)
        } else {
            self.model.path("coordinator restarted with its log");
            Coordinator::restored(back, config, self.coordinator_log.clone())
        };
        self.queue.set_alarm(Machine::Coordinator, Some(back));
    }

    /// What the rest of the run does while the coordinator dies.
    fn note_restart(&mut self) {
        let loads = |process: &ReplicaProcess| {
            process.is_alive() && process.replica.as_ref().is_none_or(|replica| !replica.is_serving())
        };
        let expelled = |process: &ReplicaProcess| process.kept.is_some();
        let paths = [
            (self.coordinator_starts > 0, "coordinator restarted again"),
            (self.latest().machine.is_none(), "coordinator restarted without a feeder"),
            (self.replicas.iter().any(loads), "coordinator restarted while a replica loads"),
            (self.replicas.iter().any(expelled), "coordinator restarted while a replica is expelled"),
            (self.coordinator.is_finished(), "coordinator restarted after the end"),
        ];
        paths.into_iter().filter(|(holds, _)| *holds).for_each(|(_, path)| self.model.path(path));
    }

    fn kill_feeder(&mut self) {
        let index = self.latest_index();
        self.tear_journal(index);
        self.feeders[index].lose_power();
        let instance = self.feeders[index].instance;
        self.break_connections(instance, IDLE);
    }

    /// The feeder will succeed itself, as another feeder with its key.
    fn lose_journal(&mut self) {
        let instance = self.latest().instance;
        let successor = FeederProcess { instance, ..FeederProcess::new(self.feeders.len(), Role::Successor) };
        self.feeders.push(successor);
    }

    fn succeed(&mut self, dies: bool, after: Duration) {
        if dies {
            self.kill_feeder();
        } else {
            let until = self.now() + after.max(CUT_OFF) + CUT_OFF_LONGER;
            let peer = self.latest().instance.peer;
            self.network.break_link(peer, coordinator_key(), Some(until));
            self.network.break_link(coordinator_key(), peer, Some(until));
        }
        self.feeders.push(FeederProcess::new(self.feeders.len(), Role::Successor));
        self.queue.schedule_in(after, Delivery::StartFeeder(self.feeders.len() - 1));
    }

    fn crash(&mut self, index: usize, loud: bool, back_after: Option<Duration>) {
        self.note_lost(index);
        self.note_death(index);
        let process = &mut self.replicas[index];
        let instance = process.instance;
        process.liveness = Liveness::Dead;
        process.number.0 += 1;
        process.kept = None;
        if self.model.means.is_open(instance) {
            self.model.path("died in a round");
        }
        let joining = process.replica.as_ref().is_some_and(|replica| !replica.is_serving());
        if joining {
            self.model.path("died before it served");
        }
        self.queue.set_alarm(Machine::Replica(index), None);
        self.note_capacity(index);
        self.break_connections(instance, if loud { Duration::ZERO } else { IDLE });
        if let Some(after) = back_after {
            self.queue.schedule_in(after, Delivery::Start(index));
        }
    }

    /// Every process that is placed on the stage dies.
    fn crash_stage(&mut self, stage: StageIndex, back_after: Duration) {
        for index in 0..self.replicas.len() {
            let process = &self.replicas[index];
            let state = self.state_of(process.instance).and_then(MemberState::stage);
            if process.is_alive() && state == Some(stage) {
                self.crash(index, true, Some(back_after));
            }
        }
    }

    fn change_pace(&mut self, index: usize, percent: u32) {
        self.replicas[index].service = self.scenario.service_of(index) * percent / 100;
        self.note_capacity(index);
    }

    fn suspend(&mut self, index: usize, lasts: Duration) {
        let process = &mut self.replicas[index];
        process.liveness = Liveness::Suspended;
        let instance = process.instance;
        self.note_capacity(index);
        self.check_connections(instance.peer, |_| true);
        self.queue.schedule_in(lasts, Delivery::Resume(index, instance.incarnation));
    }

    /// A suspended process goes on with its backlog.
    pub(super) fn resume(&mut self, index: usize, incarnation: Incarnation) {
        let process = &mut self.replicas[index];
        if process.instance.incarnation == incarnation && process.liveness == Liveness::Suspended {
            process.liveness = Liveness::Awake;
            process.resumed_at = Some(self.queue.now());
            for delivery in std::mem::take(&mut process.backlog) {
                self.soon(delivery);
            }
            let alarm = self.replicas[index].replica.as_ref().and_then(Replica::poll_timeout);
            self.queue.set_alarm(Machine::Replica(index), alarm.map(|(at, _)| at));
            self.note_capacity(index);
        }
    }

    fn break_link(&mut self, (a, b): (End, End), way: Way, lasts: Option<Duration>) {
        let (a, b) = (self.peer_at(a), self.peer_at(b));
        if lasts.is_none() && self.now() == Time(0) {
            self.model.path("pair that never meets");
        }
        let until = lasts.map(|lasts| self.now() + lasts);
        self.network.break_link(a, b, until);
        if way == Way::Both {
            self.network.break_link(b, a, until);
        }
        self.check_connections(a, |other| other == b);
    }

    fn peer_at(&self, end: End) -> PeerId {
        match end {
            End::Feeder => self.latest().instance.peer,
            End::Replica(index) => self.replicas[index].instance.peer,
        }
    }

    /// Splits the world: connections across the border of `part` run into their timeout.
    fn partition(&mut self, part: &BTreeSet<usize>, until: Time) {
        let inside = self.peers_of(part);
        self.network.split(inside.clone(), until);
        for &peer in &inside {
            self.check_connections(peer, |other| !inside.contains(&other));
        }
    }
}
