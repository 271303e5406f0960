//! Faults: how each of them changes the world.

use std::collections::BTreeSet;

use crate::{Duration, Feeder, Incarnation, Instance, PeerId, Replica, Time, feeder, replica};

use super::super::delivery::Delivery;
use super::super::fault::Fault;
use super::super::process::{FeederProcess, Liveness, coordinator_key};
use super::{IDLE, Machine, World};

/// Shortest cut of a feeder from the coordinator: long enough for the coordinator to count it as dead.
const CUT_OFF: Duration = Duration::from_secs(20);
/// The cut lasts this much longer, so that the former feeder hears of its successor late.
const CUT_OFF_LONGER: Duration = Duration::from_secs(5);

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
            Fault::Suspend { replica, lasts } => self.suspend(replica, lasts),
            Fault::Lie { replica, lasts } => self.replicas[replica].lies_until = now + lasts,
            Fault::Loss { per_mille, lasts } => self.network.lose(per_mille, now + lasts),
            Fault::Delay { extra, lasts } => self.network.slow_down(extra, now + lasts),
            Fault::BrokenLink { a, b, lasts } => {
                let (a, b) = (self.replicas[a].instance.peer, self.replicas[b].instance.peer);
                self.break_link(a, b, now + lasts);
            }
            Fault::BrokenFeederLink { replica, lasts } => {
                let peer = self.replicas[replica].instance.peer;
                self.break_link(peer, self.latest().instance.peer, now + lasts);
            }
            Fault::Partition { part, lasts } => self.partition(&part, now + lasts),
            Fault::CoordinatorOutage { lasts } => {
                self.network.split(BTreeSet::from([coordinator_key()]), now + lasts);
            }
            Fault::FeederCrash { back_after } => {
                self.kill_feeder();
                let index = self.latest_index();
                self.queue.schedule_in(back_after, Delivery::StartFeeder(index));
            }
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
            | Fault::Lie { replica, .. }
            | Fault::Suspend { replica, .. } => liveness(replica) != Liveness::Awake,
            Fault::BrokenLink { a, b, .. } => a == b,
            Fault::FeederCrash { .. } => self.latest().machine.is_none() || self.latest().ended,
            Fault::Succession { .. } => {
                let FeederProcess { admitted, machine, .. } = self.latest();
                !admitted || machine.as_ref().is_none_or(Feeder::is_trained)
            }
            Fault::Loss { .. }
            | Fault::Delay { .. }
            | Fault::BrokenFeederLink { .. }
            | Fault::CoordinatorOutage { .. }
            | Fault::Partition { .. } => false,
        }
    }

    fn kill_feeder(&mut self) {
        let index = self.latest_index();
        self.feeders[index].machine = None;
        let instance = self.feeders[index].instance;
        self.break_connections(instance, IDLE);
    }

    fn succeed(&mut self, dies: bool, after: Duration) {
        if dies {
            self.kill_feeder();
        } else {
            let until = self.now() + after.max(CUT_OFF) + CUT_OFF_LONGER;
            self.network.break_link(self.latest().instance.peer, coordinator_key(), until);
        }
        self.feeders.push(FeederProcess::new(self.feeders.len()));
        self.queue.schedule_in(after, Delivery::StartFeeder(self.feeders.len() - 1));
    }

    fn crash(&mut self, index: usize, loud: bool, back_after: Option<Duration>) {
        let process = &mut self.replicas[index];
        let instance = process.instance;
        process.liveness = Liveness::Dead;
        if self.model.means.is_open(instance) {
            self.model.path("died in a round");
        }
        let joining = process.replica.as_ref().is_some_and(|replica| !replica.is_serving());
        if joining {
            self.model.path("died before it served");
        }
        self.queue.set_alarm(Machine::Replica(index), None);
        self.note_capacity();
        self.break_connections(instance, if loud { Duration::ZERO } else { IDLE });
        if let Some(after) = back_after {
            self.queue.schedule_in(after, Delivery::Start(index));
        }
    }

    fn suspend(&mut self, index: usize, lasts: Duration) {
        let process = &mut self.replicas[index];
        process.liveness = Liveness::Suspended;
        let instance = process.instance;
        self.note_capacity();
        if lasts > IDLE {
            self.break_connections(instance, IDLE);
        }
        self.queue.schedule_in(lasts, Delivery::Resume(index, instance.incarnation));
    }

    /// A suspended process goes on with its backlog.
    pub(super) fn resume(&mut self, index: usize, incarnation: Incarnation) {
        let process = &mut self.replicas[index];
        if process.instance.incarnation == incarnation && process.liveness == Liveness::Suspended {
            process.liveness = Liveness::Awake;
            for delivery in std::mem::take(&mut process.backlog) {
                self.soon(delivery);
            }
            let alarm = self.replicas[index].replica.as_ref().and_then(Replica::poll_timeout);
            self.queue.set_alarm(Machine::Replica(index), alarm.map(|(at, _)| at));
            self.note_capacity();
        }
    }

    fn break_link(&mut self, a: PeerId, b: PeerId, until: Time) {
        self.network.break_link(a, b, until);
        self.notice_cut(a, b);
        self.notice_cut(b, a);
    }

    /// Splits the world: connections across the border of `part` run into their timeout.
    fn partition(&mut self, part: &BTreeSet<usize>, until: Time) {
        let inside = self.peers_of(part);
        self.network.split(inside.clone(), until);
        let mut peers: Vec<PeerId> = self.replicas.iter().map(|process| process.instance.peer).collect();
        peers.extend(self.feeders.iter().map(|feeder| feeder.instance.peer));
        for &a in peers.iter().filter(|peer| inside.contains(peer)) {
            for &b in peers.iter().filter(|peer| !inside.contains(peer)) {
                self.notice_cut(a, b);
                self.notice_cut(b, a);
            }
        }
    }

    /// `peer` loses its connection to `other`.
    fn notice_cut(&mut self, peer: PeerId, other: PeerId) {
        let Some(lost) = self.instance_of(other) else { return };
        if let Some(index) = self.feeder_of(peer) {
            let known = self.feeders[index].instance.incarnation;
            let event = feeder::Event::PeerLost(lost);
            self.queue.schedule_in(IDLE, Delivery::Feeder(index, known, event));
        } else if let Some(index) = self.replica_of(peer) {
            let known = self.replicas[index].instance.incarnation;
            let event = replica::Event::PeerLost(lost);
            self.queue.schedule_in(IDLE, Delivery::Replica(index, known, event));
        }
    }

    fn instance_of(&self, peer: PeerId) -> Option<Instance> {
        let replica = self.replica_of(peer).map(|index| self.replicas[index].instance);
        replica.or_else(|| self.feeder_of(peer).map(|index| self.feeders[index].instance))
    }
}
