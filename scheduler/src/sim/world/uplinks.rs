//! Frames on the uplinks of processes.

use crate::{Duration, Instance, Message, PeerId, feeder, replica};

use super::super::delivery::Delivery;
use super::super::process::Liveness;
use super::super::process::keeper_key;
use super::super::uplink::{Frame, Pushed, Uplink};
use super::World;

/// While a frame arrives, its receiver hears so often that it does.
const REPORT_INTERVAL: Duration = Duration::from_millis(250);

impl World {
    /// Sends a message to a connected peer: a frame waits for the uplink, a short message does not.
    pub(super) fn send_over_uplink(&mut self, from: Instance, frame: Frame) {
        let Some(limits) = self.scenario.links.uplinks else { return self.carry_message(from, frame) };
        let (to, message) = (frame.to.peer, &frame.envelope.message);
        if !Uplink::carries(&frame.envelope) {
            let uplink = self.network.uplinks.get(&from);
            if !uplink.is_some_and(|uplink| uplink.makes_needless(to, message)) {
                self.carry_message(from, frame);
            }
            return;
        }
        match self.network.uplinks.entry(from).or_default().push(frame, &limits) {
            Pushed::Queued => self.send_next_frame(from),
            Pushed::Needless => self.model.path("on its way already"),
            Pushed::Full(message) => self.give_back(from, to, message),
        }
    }

    /// The queue for a peer is full: its sender gets the message back.
    fn give_back(&mut self, from: Instance, to: PeerId, message: Message) {
        self.model.path("send queue full");
        let Instance { peer, incarnation } = from;
        let delivery = if let Some(index) = self.feeder_of(peer) {
            Delivery::Feeder(index, incarnation, feeder::Event::SendQueueFull { to, message })
        } else if let Some(index) = self.replica_of(peer) {
            Delivery::Replica(index, incarnation, replica::Event::SendQueueFull { to, message })
        } else {
            return;
        };
        self.queue.schedule_in(Duration::ZERO, delivery);
    }

    fn send_next_frame(&mut self, from: Instance) {
        let uplink = self.network.uplinks.get_mut(&from);
        if uplink.is_some_and(|uplink| uplink.begin().is_some())
            && let Some(frame) = self.network.uplinks.get(&from).and_then(Uplink::sending)
        {
            let (to, takes) = (frame.to, self.time_on_uplink(from.peer, frame));
            self.queue.schedule_in(takes, Delivery::FrameSent(from));
            if let Some(index) = self.replica_of(from.peer) {
                self.note_activity(index);
            }
            self.report_arrival(from, to, takes);
        }
    }

    fn time_on_uplink(&self, from: PeerId, frame: &Frame) -> Duration {
        let links = &self.scenario.links;
        if let Some(wan) = &links.wan {
            return wan.frame_time(self.replica_of(from), self.replica_of(frame.to.peer), &frame.envelope);
        }
        links.uplinks.map_or(Duration::ZERO, |limits| limits.time_of(&frame.envelope))
    }

    /// The bytes of a long frame are its sender's sign of life.
    fn report_arrival(&mut self, from: Instance, to: Instance, takes: Duration) {
        let mut after = REPORT_INTERVAL;
        while after < takes {
            let delivery = if let Some(index) = self.feeder_of(to.peer) {
                Delivery::Feeder(index, to.incarnation, feeder::Event::Arriving(from))
            } else if let Some(index) = self.replica_of(to.peer) {
                Delivery::Replica(index, to.incarnation, replica::Event::Arriving(from))
            } else {
                return;
            };
            self.carry_after(after, from.peer, to.peer, delivery);
            after += REPORT_INTERVAL;
        }
    }

    /// A frame has left the uplink. What waits at a dead process is lost; a suspended one sends it later.
    pub(super) fn frame_sent(&mut self, from: Instance) {
        if self.instance_of(from.peer) != Some(from) || !self.is_running(from.peer) {
            self.network.uplinks.remove(&from);
            return;
        }
        if let Some(index) = self.replica_of(from.peer)
            && self.replicas[index].liveness == Liveness::Suspended
        {
            return self.replicas[index].backlog.push(Delivery::FrameSent(from));
        }
        let sent = self.network.uplinks.get_mut(&from).and_then(Uplink::take_sent);
        match sent {
            Some(frame) if self.network.connections.join(from, frame.to) => self.carry_message(from, frame),
            Some(_) => self.model.path("message lost"),
            None => {}
        }
        self.send_next_frame(from);
        if let Some(index) = self.replica_of(from.peer) {
            self.note_activity(index);
        }
    }

    fn is_running(&self, peer: PeerId) -> bool {
        if peer == keeper_key() {
            return self.keeper.as_ref().is_some_and(|keeper| keeper.machine.is_some());
        }
        let feeder = self.feeder_of(peer).map(|index| self.feeders[index].machine.is_some());
        let replica = || self.replica_of(peer).is_some_and(|index| self.replicas[index].is_alive());
        feeder.unwrap_or_else(replica)
    }
}
