//! Delivery of messages through the network.

use crate::{Duration, Envelope, Incarnation, Instance, Membership, PeerId, coordinator, feeder, replica};

use super::super::delivery::{Delivery, Purpose};
use super::super::network::Fate;
use super::super::noise;
use super::super::payload::Payload;
use super::super::process::coordinator_key;
use super::World;

/// Time after which a sender notices that the receiver is dead.
const UNREACHABLE_AFTER: Duration = Duration::from_millis(500);

impl World {
    /// Sends a message to a peer through the network.
    pub(super) fn post(&mut self, from: Instance, to: PeerId, envelope: Envelope<Payload>) {
        if self.rng.chance(self.scenario.noise_per_mille, 1_000) {
            self.post_noise();
        }
        if let Some(index) = self.feeder_of(to) {
            let event = feeder::Event::Received { from, envelope };
            return self.tell_feeder(index, from.peer, event);
        }
        let Some(index) = self.replica_of(to) else { return };
        let receiver = self.replicas[index].instance;
        if !self.replicas[index].is_alive() {
            return self.unreachable(from, receiver);
        }
        let event = replica::Event::Received { from, envelope };
        self.carry(from.peer, to, Delivery::Replica(index, receiver.incarnation, event));
    }

    /// The receiver is dead: the sender notices after [`UNREACHABLE_AFTER`].
    fn unreachable(&mut self, sender: Instance, receiver: Instance) {
        let Instance { peer, incarnation } = sender;
        if let Some(index) = self.feeder_of(peer) {
            let event = feeder::Event::PeerLost(receiver);
            self.queue.schedule_in(UNREACHABLE_AFTER, Delivery::Feeder(index, incarnation, event));
        } else if let Some(index) = self.replica_of(peer) {
            let event = replica::Event::PeerLost(receiver);
            self.queue.schedule_in(UNREACHABLE_AFTER, Delivery::Replica(index, incarnation, event));
        }
    }

    pub(super) fn carry(&mut self, from: PeerId, to: PeerId, delivery: Delivery) {
        let control = from == coordinator_key() || to == coordinator_key();
        let now = self.now();
        match self.network.fate(&mut self.rng, now, from, to, control) {
            Fate::Lost => self.model.path("message lost"),
            Fate::Delivered { extra } => {
                let delay = self.scenario.links.delay(&mut self.rng);
                let extra = extra + self.distance(from, to) + self.transfer_time(&delivery);
                self.queue.schedule_in(delay + extra, delivery);
            }
        }
    }

    fn distance(&self, from: PeerId, to: PeerId) -> Duration {
        let pair = self.replica_of(from).zip(self.replica_of(to));
        pair.map_or(Duration::ZERO, |(from, to)| self.scenario.links.distance(from, to))
    }

    /// Chunks of a state take longer than other messages.
    fn transfer_time(&mut self, delivery: &Delivery) -> Duration {
        let Delivery::Replica(_, _, replica::Event::Received { envelope, .. }) = delivery else {
            return Duration::ZERO;
        };
        match envelope.payload {
            Payload::Chunk(_) => self.time_between(Duration::ZERO, self.scenario.links.chunk_delay_max),
            _ => Duration::ZERO,
        }
    }

    pub(super) fn tell_coordinator(&mut self, from: PeerId, event: coordinator::Event, purpose: Purpose) {
        self.carry(from, coordinator_key(), Delivery::Coordinator(event, purpose));
    }

    pub(super) fn tell_feeder(&mut self, index: usize, from: PeerId, event: feeder::Event<Payload>) {
        let Instance { peer, incarnation } = self.feeders[index].instance;
        self.carry(from, peer, Delivery::Feeder(index, incarnation, event));
    }

    /// Sends a table to a feeder, if the feeder is a member.
    pub(super) fn send_table_to_feeder(&mut self, index: usize, table: Membership) {
        let peer = self.feeders[index].instance.peer;
        if table.members.iter().any(|member| member.instance.peer == peer) {
            self.tell_feeder(index, coordinator_key(), feeder::Event::Membership(table));
        }
    }

    pub(super) fn send_table(&mut self, index: usize, membership: Membership) {
        let Instance { peer, incarnation } = self.replicas[index].instance;
        self.carry(coordinator_key(), peer, Delivery::Table(index, incarnation, membership));
    }

    /// Every other process notices the lost instance, after `silence`.
    pub(super) fn break_connections(&mut self, lost: Instance, silence: Duration) {
        for index in 0..self.feeders.len() {
            let known = self.feeders[index].instance.incarnation;
            let event = feeder::Event::PeerLost(lost);
            self.queue.schedule_in(silence, Delivery::Feeder(index, known, event));
        }
        for other in 0..self.replicas.len() {
            let known = self.replicas[other].instance.incarnation;
            let event = replica::Event::PeerLost(lost);
            let delay = self.time_between(Duration::ZERO, Duration::from_millis(300));
            self.queue.schedule_in(silence + delay, Delivery::Replica(other, known, event));
        }
    }

    fn post_noise(&mut self) {
        let mut peers: Vec<_> = self.replicas.iter().map(|process| process.instance.peer).collect();
        peers.push(PeerId([254; 32]));
        let ids_below = self.scenario.total * 2;
        let index = usize::try_from(self.rng.below(self.replicas.len() as u64 + 1)).unwrap_or(0);
        let peer = self.rng.pick(&peers).copied().unwrap_or(PeerId([254; 32]));
        let from = Instance::new(peer, Incarnation(self.rng.below(3)));
        let envelope = noise::envelope(&mut self.rng, &peers, ids_below);
        if index == self.replicas.len() {
            let known = self.latest().instance.incarnation;
            let event = feeder::Event::Received { from, envelope };
            return self.soon(Delivery::Feeder(self.latest_index(), known, event));
        }
        let known = self.replicas[index].instance.incarnation;
        self.soon(Delivery::Replica(index, known, replica::Event::Received { from, envelope }));
    }
}
