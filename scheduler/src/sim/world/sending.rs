//! Connections, and the delivery of messages.

use std::sync::Arc;

use crate::{
    Duration, Envelope, Feeder, Incarnation, Instance, Keeper, PeerId, PeerTable, Replica, Table,
    TableUpdate, Time, coordinator, feeder, keeper, replica,
};

use super::super::connections::{DIAL, IDLE, REFUSED};
use super::super::delivery::{Delivery, Purpose};
use super::super::network::Fate;
use super::super::noise;
use super::super::payload::Payload;
use super::super::process::{Liveness, coordinator_key, keeper_key};
use super::super::uplink::Frame;
use super::World;

/// Replicas of a world from which its machines share one table.
const SHARING_FROM: usize = 200;
/// A stream of tables that broke is opened again within this.
const TABLE_PAUSE_MAX: Duration = Duration::from_secs(10);

impl World {
    /// Sends a message to a peer over their connection; without one, the sender dials.
    pub(super) fn post(&mut self, from: Instance, to: PeerId, envelope: Envelope<Payload>) {
        if self.rng.chance(self.scenario.noise_per_mille, 1_000) {
            self.post_noise();
        }
        let Some(receiver) = self.instance_of(to) else { return };
        let connected = self.network.connections.join(from, receiver);
        let handshake = if connected { Some(Duration::ZERO) } else { self.dial(from, receiver) };
        let Some(handshake) = handshake else { return self.model.path("message lost") };
        self.send_over_uplink(from, Frame { to: receiver, envelope, handshake });
    }

    /// Carries a message that has left its sender.
    pub(super) fn carry_message(&mut self, from: Instance, Frame { to, envelope, handshake }: Frame) {
        let delivery = if let Some(index) = self.feeder_of(to.peer) {
            Delivery::Feeder(index, to.incarnation, feeder::Event::Received { from, envelope })
        } else if let Some(index) = self.replica_of(to.peer) {
            Delivery::Replica(index, to.incarnation, replica::Event::Received { from, envelope })
        } else if to.peer == keeper_key() {
            Delivery::Keeper(to.incarnation, keeper::Event::Received { from, envelope })
        } else {
            return;
        };
        self.carry_after(handshake, from.peer, to.peer, delivery);
    }

    // --- Connections ----------------------------------------------------------------------------------------

    /// Makes a connection. Returns the time that the handshake takes; `None` if it fails.
    fn dial(&mut self, from: Instance, to: Instance) -> Option<Duration> {
        if let Some(after) = self.obstacle(from.peer, to.peer) {
            if self.network.connections.dial(from.peer, to.peer) {
                self.queue.schedule_in(after, Delivery::DialFails(from, to.peer));
            }
            return None;
        }
        self.network.connections.open(from, to);
        Some(2 * (self.scenario.links.delay(&mut self.rng) + self.distance(from.peer, to.peer)))
    }

    /// The time after which a dial fails; `None` if it succeeds.
    fn obstacle(&self, from: PeerId, to: PeerId) -> Option<Duration> {
        let whole = self.network.is_whole(self.now(), from, to);
        match self.table_of(to).filter(|_| whole) {
            Some(table) if table.address(from).is_some() => None,
            Some(_) => Some(REFUSED),
            None => Some(DIAL),
        }
    }

    /// The table of a process that takes connections.
    fn table_of(&self, peer: PeerId) -> Option<&PeerTable> {
        if let Some(index) = self.feeder_of(peer) {
            return self.feeders[index].machine.as_ref().map(Feeder::table);
        }
        if peer == keeper_key() {
            return self.keeper.as_ref()?.machine.as_ref().map(Keeper::table);
        }
        let process = &self.replicas[self.replica_of(peer)?];
        let awake = process.liveness == Liveness::Awake;
        process.replica.as_ref().filter(|_| awake).map(Replica::table)
    }

    /// The dial has failed, unless the way is free by now. The transport names the start in the caller's table.
    pub(super) fn dial_fails(&mut self, from: Instance, to: PeerId) {
        self.network.connections.dial_ends(from.peer, to);
        let lost = self.table_of(from.peer).and_then(|table| table.instance(to));
        if let Some(lost) = lost.filter(|_| self.obstacle(from.peer, to).is_some()) {
            self.model.path("dialled in vain");
            self.notice_loss(from, lost, Duration::ZERO);
        }
    }

    /// Nothing may have arrived over a connection for [`IDLE`]: if so, both ends lose it.
    pub(super) fn check_idle(&mut self, a: Instance, b: Instance) {
        let lives = self.network.is_whole(self.now(), a.peer, b.peer) && self.is_awake(a) && self.is_awake(b);
        if self.network.connections.join(a, b) && !lives {
            self.network.connections.close(a.peer, b.peer);
            self.notice_loss(a, b, Duration::ZERO);
            self.notice_loss(b, a, Duration::ZERO);
        }
    }

    fn is_awake(&self, instance: Instance) -> bool {
        if let Some(index) = self.feeder_of(instance.peer) {
            return self.feeders[index].machine.is_some();
        }
        if instance.peer == keeper_key() {
            return self.is_keeper(instance.incarnation);
        }
        let process = self.replica_of(instance.peer).map(|index| &self.replicas[index]);
        process.is_some_and(|process| process.instance == instance && process.liveness == Liveness::Awake)
    }

    /// Every process with a connection to the instance loses it, after `silence`.
    pub(super) fn break_connections(&mut self, lost: Instance, silence: Duration) {
        for other in self.network.connections.close_all(lost) {
            let delay = self.time_between(Duration::ZERO, Duration::from_millis(300));
            self.notice_loss(other, lost, silence + delay);
        }
    }

    /// Checks after [`IDLE`] which connections of a peer live.
    pub(super) fn check_connections(&mut self, peer: PeerId, to: impl Fn(PeerId) -> bool) {
        let Some(me) = self.instance_of(peer) else { return };
        let others: Vec<_> = self.network.connections.of(peer).filter(|other| to(other.peer)).collect();
        for other in others {
            self.queue.schedule_in(IDLE, Delivery::Idle(me, other));
        }
    }

    /// `owner` hears after `delay` that `lost` is lost.
    fn notice_loss(&mut self, owner: Instance, lost: Instance, delay: Duration) {
        let Instance { peer, incarnation } = owner;
        if let Some(index) = self.feeder_of(peer) {
            let event = feeder::Event::PeerLost(lost);
            self.queue.schedule_in(delay, Delivery::Feeder(index, incarnation, event));
        } else if let Some(index) = self.replica_of(peer) {
            let event = replica::Event::PeerLost(lost);
            self.queue.schedule_in(delay, Delivery::Replica(index, incarnation, event));
        } else if peer == keeper_key() {
            let event = keeper::Event::PeerLost(lost);
            self.queue.schedule_in(delay, Delivery::Keeper(incarnation, event));
        }
    }

    pub(super) fn instance_of(&self, peer: PeerId) -> Option<Instance> {
        if peer == keeper_key() {
            return self.keeper.as_ref().map(|keeper| keeper.instance);
        }
        let replica = self.replica_of(peer).map(|index| self.replicas[index].instance);
        replica.or_else(|| self.feeder_of(peer).map(|index| self.feeders[index].instance))
    }

    // --- Messages -------------------------------------------------------------------------------------------

    /// Sends through the network. Returns whether it arrives.
    pub(super) fn carry(&mut self, from: PeerId, to: PeerId, delivery: Delivery) -> bool {
        self.carry_after(Duration::ZERO, from, to, delivery)
    }

    pub(super) fn carry_after(
        &mut self,
        wait: Duration,
        from: PeerId,
        to: PeerId,
        delivery: Delivery,
    ) -> bool {
        let control = from == coordinator_key() || to == coordinator_key();
        let now = self.now();
        match self.network.fate(&mut self.rng, now, from, to, control) {
            Fate::Lost => {
                self.model.path("message lost");
                false
            }
            Fate::Delivered { extra } => {
                let delay = self.scenario.links.delay(&mut self.rng);
                let extra = extra + self.distance(from, to) + self.transfer_time(&delivery);
                self.queue.schedule_in(wait + delay + extra, delivery);
                true
            }
        }
    }

    fn distance(&self, from: PeerId, to: PeerId) -> Duration {
        let (from, to) = (self.replica_of(from), self.replica_of(to));
        let links = &self.scenario.links;
        let pair = from.zip(to).map_or(Duration::ZERO, |(from, to)| links.distance(from, to));
        pair + links.wan.as_ref().map_or(Duration::ZERO, |wan| wan.path(from, to).delay)
    }

    /// Chunks of a state take longer than other messages.
    fn transfer_time(&mut self, delivery: &Delivery) -> Duration {
        let (Delivery::Replica(_, _, replica::Event::Received { envelope, .. })
        | Delivery::Keeper(_, keeper::Event::Received { envelope, .. })) = delivery
        else {
            return Duration::ZERO;
        };
        match envelope.payload {
            Payload::Chunk(_) => self.time_between(Duration::ZERO, self.scenario.links.chunk_delay_max),
            _ => Duration::ZERO,
        }
    }

    pub(super) fn tell_coordinator(&mut self, from: PeerId, event: coordinator::Event, purpose: Purpose) {
        self.carry(from, coordinator_key(), Delivery::Coordinator(self.coordinator_starts, event, purpose));
    }

    pub(super) fn tell_feeder(&mut self, index: usize, from: PeerId, event: feeder::Event<Payload>) -> bool {
        let Instance { peer, incarnation } = self.feeders[index].instance;
        self.carry(from, peer, Delivery::Feeder(index, incarnation, event))
    }

    // --- Tables ---------------------------------------------------------------------------------------------

    /// Sends a new table to every process.
    pub(super) fn publish(&mut self, table: Table) {
        self.note_deceitful_blocks();
        let change = Arc::new(self.table.change_to(&table));
        self.table = Arc::new(table);
        let update = TableUpdate::Shared(change, self.table.clone());
        for index in 0..self.feeders.len() {
            self.send_table_to_feeder(index, update.clone());
        }
        for index in 0..self.replicas.len() {
            self.send_table(index, update.clone());
        }
        self.send_table_to_keeper(update);
    }

    /// The whole table, for a process that has just opened its stream of tables.
    pub(super) fn whole_table(&self) -> TableUpdate {
        TableUpdate::Whole(self.table.clone())
    }

    /// What a process reads of a table that arrived, when it has the table with this version. The machines of a large
    /// world share one table; a process alone keeps its own, from change to change.
    pub(super) fn read(&self, update: TableUpdate, version: u64) -> TableUpdate {
        match update {
            TableUpdate::Shared(change, table) if self.replicas.len() < SHARING_FROM => {
                if change.applies_to(version) {
                    TableUpdate::Change(change)
                } else {
                    TableUpdate::Whole(table)
                }
            }
            update => update,
        }
    }

    /// Sends a table to a feeder, if the feeder is a member.
    pub(super) fn send_table_to_feeder(&mut self, index: usize, update: TableUpdate) {
        let peer = self.feeders[index].instance.peer;
        if self.table.members().contains_key(&peer) {
            let arrives = self.tell_feeder(index, coordinator_key(), feeder::Event::Membership(update));
            let opens = self.stream_opens(arrives);
            self.feeders[index].tables_open_at = opens;
        }
    }

    pub(super) fn send_table(&mut self, index: usize, update: TableUpdate) {
        let Instance { peer, incarnation } = self.replicas[index].instance;
        let delivery = Delivery::Table(index, incarnation, update);
        let arrives = self.carry(coordinator_key(), peer, delivery);
        let opens = self.stream_opens(arrives);
        self.replicas[index].tables_open_at = opens;
    }

    /// A table that does not arrive breaks the stream. The process opens it again after a pause.
    pub(super) fn stream_opens(&mut self, arrives: bool) -> Option<Time> {
        (!arrives).then(|| self.now() + self.time_between(Duration::ZERO, TABLE_PAUSE_MAX))
    }

    // --- Noise ----------------------------------------------------------------------------------------------

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
