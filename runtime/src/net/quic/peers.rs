//! The known peers and their connections.
//!
//! Connections are bounded and recycled: where one is too many, the least recently used one is closed with a code of its
//! own, which neither side takes for a loss. So a process speaks to any number of peers over time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use quinn::{Connection, ConnectionError};
use swarmline_scheduler::{Incarnation, Instance, Message, PeerId};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::lane::{Lane, Underway};
use super::link::{Dialling, Outgoing};
use super::recycling::Recycling;
use super::{NetEvent, Settings, code, handshake};

/// Limit of the connections with one peer: each of the two may have dialled one.
const CONNECTIONS_PER_PEER_MAX: usize = 2;
/// Peers in the table for each connection that may be open: some are being dialled, or have just been recycled.
const PEERS_PER_CONNECTION: usize = 2;

/// The table of peers. The lock is held briefly, never across an await.
#[derive(Debug)]
pub(super) struct Peers {
    settings: Settings,
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    closed: bool,
    entries: BTreeMap<PeerId, Entry>,
}

#[derive(Debug)]
struct Entry {
    /// Address in the latest call of [`Peers::push`].
    address: Option<SocketAddr>,
    /// Queue of each lane's task that sends; `None` until a frame is sent.
    lanes: [Option<mpsc::Sender<Outgoing>>; Lane::COUNT],
    underway: Underway,
    dialling: Dialling,
    incarnation: Incarnation,
    /// Connections of `incarnation`, oldest first.
    connections: Vec<Connection>,
    recycling: Recycling,
    /// Time of the latest frame to or from the peer.
    used: Instant,
}

impl Entry {
    fn new() -> Self {
        Self {
            address: None,
            lanes: [None, None],
            underway: Underway::default(),
            dialling: Dialling::default(),
            incarnation: Incarnation::default(),
            connections: Vec::new(),
            recycling: Recycling::default(),
            used: Instant::now(),
        }
    }

    fn live_connection(&self) -> Option<&Connection> {
        self.connections.iter().rev().find(|connection| connection.close_reason().is_none())
    }

    /// Closes a connection in whose place the peer has put another.
    fn supersede(&mut self, old: &Connection) {
        self.recycling.count(Instant::now());
        old.close(code::SUPERSEDED, b"a newer connection took its place");
    }

    fn is_unused(&self) -> bool {
        self.lanes.iter().all(Option::is_none) && self.connections.is_empty()
    }
}

/// A queue of frames as its task gets it.
pub(super) struct Outbox {
    pub(super) lane: Lane,
    pub(super) frames: mpsc::Receiver<Outgoing>,
    pub(super) dialling: Dialling,
}

/// What became of a frame that was not refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pushed {
    Queued,
    /// A frame on its way makes it needless: it was dropped.
    Needless,
}

/// Reasons why a frame is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushError {
    Full { capacity: usize },
    TooManyPeers { limit: usize },
    Closed,
}

impl Peers {
    pub(super) fn new(settings: Settings) -> Self {
        Self { settings, table: Mutex::default() }
    }

    /// Queues a frame. `start` is called with each new queue.
    pub(super) fn push(
        &self,
        peer: PeerId,
        address: SocketAddr,
        outgoing: Outgoing,
        start: impl FnOnce(Outbox),
    ) -> Result<Pushed, (PushError, Box<Outgoing>)> {
        let mut table = self.lock();
        if table.closed {
            return Err((PushError::Closed, Box::new(outgoing)));
        }
        let limit = self.peers_max();
        let Some(entry) = table.entry(peer, limit) else {
            return Err((PushError::TooManyPeers { limit }, Box::new(outgoing)));
        };
        (entry.address, entry.used) = (Some(address), Instant::now());
        let message = &outgoing.envelope.message;
        if entry.underway.makes_needless(message) {
            return Ok(Pushed::Needless);
        }
        let lane = Lane::of(message);
        let capacity = lane.capacity(&self.settings);
        let dialling = &entry.dialling;
        let queue = entry.lanes[lane as usize].get_or_insert_with(|| {
            let (sender, frames) = mpsc::channel(capacity);
            start(Outbox { lane, frames, dialling: Arc::clone(dialling) });
            sender
        });
        // Under the lock, so the task cannot settle the frame before it is counted.
        let permit = match queue.try_reserve() {
            Ok(permit) => permit,
            Err(TrySendError::Full(())) => return Err((PushError::Full { capacity }, Box::new(outgoing))),
            Err(TrySendError::Closed(())) => return Err((PushError::Closed, Box::new(outgoing))),
        };
        entry.underway.add(message);
        permit.send(outgoing);
        Ok(Pushed::Queued)
    }

    /// The peer has acknowledged a frame.
    pub(super) fn delivered(&self, peer: &PeerId, message: &Message) {
        if let Some(entry) = self.lock().entries.get_mut(peer) {
            entry.underway.remove(message);
            entry.recycling.took_frame();
        }
    }

    /// A frame is given back.
    pub(super) fn given_back(&self, peer: &PeerId, message: &Message) {
        if let Some(entry) = self.lock().entries.get_mut(peer) {
            entry.underway.remove(message);
        }
    }

    /// A frame of the peer begins to arrive.
    pub(super) fn heard(&self, peer: &PeerId) {
        if let Some(entry) = self.lock().entries.get_mut(peer) {
            entry.used = Instant::now();
        }
    }

    /// Address of the peer, from its latest frame.
    pub(super) fn address(&self, peer: &PeerId) -> Option<SocketAddr> {
        self.lock().entries.get(peer)?.address
    }

    /// The newest live connection with the peer.
    pub(super) fn connection(&self, peer: &PeerId) -> Option<Connection> {
        self.lock().entries.get(peer)?.live_connection().cloned()
    }

    /// Adds a connection; false if there is no room. A new peer or incarnation is reported through `permit`, which is
    /// taken before the lock and used under it, so that events come in the order of the changes.
    pub(super) fn connected(
        &self,
        instance: Instance,
        connection: &Connection,
        permit: mpsc::Permit<'_, NetEvent>,
    ) -> bool {
        let Instance { peer, incarnation } = instance;
        let mut table = self.lock();
        if table.closed {
            return false;
        }
        table.make_room(self.settings.connections_max, &peer);
        let Some(entry) = table.entry(peer, self.peers_max()) else { return false };
        let news = entry.connections.is_empty() || entry.incarnation != incarnation;
        if entry.incarnation != incarnation {
            entry.incarnation = incarnation;
            std::mem::take(&mut entry.connections).iter().for_each(|old| entry.supersede(old));
        }
        if entry.connections.len() >= CONNECTIONS_PER_PEER_MAX {
            let oldest = entry.connections.remove(0);
            entry.supersede(&oldest);
        }
        entry.connections.push(connection.clone());
        entry.used = Instant::now();
        if news {
            permit.send(NetEvent::Connected(instance));
        }
        true
    }

    /// Removes a connection. If it was the peer's last, that is reported through `permit`, unless the peer recycled it,
    /// which it may do a limited number of times.
    pub(super) fn disconnected(
        &self,
        peer: PeerId,
        connection: &Connection,
        end: &ConnectionError,
        permit: mpsc::Permit<'_, NetEvent>,
    ) {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&peer) else { return };
        let before = entry.connections.len();
        entry.connections.retain(|known| known.stable_id() != connection.stable_id());
        let was_last = entry.connections.len() < before && entry.connections.is_empty();
        let now = Instant::now();
        if was_recycled(end) {
            entry.recycling.count(now);
        }
        if was_last && (entry.recycling.is_excessive(now) || !was_recycled(end)) {
            let (instance, reason) = (Instance::new(peer, entry.incarnation), handshake::describe(end));
            permit.send(NetEvent::Disconnected { instance, reason });
        }
        table.forget_if_unused(&peer);
    }

    /// Whether the peer recycles connections so often that the next one counts as lost.
    pub(super) fn recycles_excessively(&self, peer: &PeerId) -> bool {
        self.lock().entries.get(peer).is_some_and(|entry| entry.recycling.is_excessive(Instant::now()))
    }

    /// The round trip to every peer with a live connection.
    pub(super) fn round_trips(&self) -> Vec<(Instance, Duration)> {
        let table = self.lock();
        let round_trip = |(&peer, entry): (&PeerId, &Entry)| {
            let instance = Instance::new(peer, entry.incarnation);
            entry.live_connection().map(|connection| (instance, connection.rtt()))
        };
        table.entries.iter().filter_map(round_trip).collect()
    }

    /// Removes a queue if it is empty, under the lock, so that no frame is queued in between. If true, the sending task
    /// may end.
    pub(super) fn retire(&self, peer: &PeerId, lane: Lane, frames: &mpsc::Receiver<Outgoing>) -> bool {
        let mut table = self.lock();
        if !frames.is_empty() {
            return false;
        }
        // A closed queue is not in the table any more.
        if !frames.is_closed()
            && let Some(entry) = table.entries.get_mut(peer)
        {
            entry.lanes[lane as usize] = None;
        }
        table.forget_if_unused(peer);
        true
    }

    /// Refuses further frames and connections.
    pub(super) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        table.entries.values_mut().for_each(|entry| entry.lanes = [None, None]);
    }

    fn peers_max(&self) -> usize {
        self.settings.connections_max.saturating_mul(PEERS_PER_CONNECTION)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The entry of a peer, in place of the least recently used peer without frames on their way if the table is full.
    fn entry(&mut self, peer: PeerId, limit: usize) -> Option<&mut Entry> {
        if self.entries.len() >= limit && !self.entries.contains_key(&peer) {
            let idle = self.entries.iter().filter(|(_, entry)| entry.underway.is_empty());
            let idle = idle.min_by_key(|(_, entry)| entry.used).map(|(&peer, _)| peer)?;
            let entry = self.entries.remove(&idle);
            entry.into_iter().flat_map(|entry| entry.connections).for_each(|old| recycle(&old));
        }
        Some(self.entries.entry(peer).or_insert_with(Entry::new))
    }

    /// Closes connections of others until one for `peer` can be added; those without frames on their way first. A frame
    /// that is on its way is sent again over the next connection.
    fn make_room(&mut self, limit: usize, peer: &PeerId) {
        let mut open: usize = self.entries.values().map(|entry| entry.connections.len()).sum();
        while open >= limit {
            let others = self
                .entries
                .iter_mut()
                .filter(|(other, entry)| *other != peer && !entry.connections.is_empty());
            let oldest = others.min_by_key(|(_, entry)| (!entry.underway.is_empty(), entry.used));
            let Some((&other, entry)) = oldest else { return };
            open -= entry.connections.len();
            entry.connections.drain(..).for_each(|old| recycle(&old));
            self.forget_if_unused(&other);
        }
    }

    fn forget_if_unused(&mut self, peer: &PeerId) {
        if self.entries.get(peer).is_some_and(Entry::is_unused) {
            self.entries.remove(peer);
        }
    }
}

fn recycle(connection: &Connection) {
    connection.close(code::RECYCLED, b"room for another peer; dial again when there is something to send");
}

/// Whether the peer closed a connection to make room, which says nothing about its life.
pub(super) fn was_recycled(end: &ConnectionError) -> bool {
    matches!(end, ConnectionError::ApplicationClosed(close) if close.error_code == code::RECYCLED)
}
