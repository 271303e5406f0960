//! The known peers and their connections.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use quinn::Connection;
use swarmline_scheduler::{Incarnation, Instance, PeerId};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use super::link::Outgoing;
use super::{CONNECTIONS_MAX, NetEvent, code};

/// Limit of the connections with one peer: each of the two may have dialled one.
const CONNECTIONS_PER_PEER_MAX: usize = 2;
/// Limit of the peers in the table; a peer without connection and queue is removed.
const PEERS_MAX: usize = 2 * CONNECTIONS_MAX;

/// The table of peers. The lock is held briefly, never across an await.
#[derive(Debug, Default)]
pub(super) struct Peers {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    closed: bool,
    entries: BTreeMap<PeerId, Entry>,
}

#[derive(Debug, Default)]
struct Entry {
    /// Address in the latest call of [`Peers::push`].
    address: Option<SocketAddr>,
    /// Queue of the task that sends; `None` until a frame is sent.
    outbox: Option<mpsc::Sender<Outgoing>>,
    incarnation: Incarnation,
    /// Connections of `incarnation`, oldest first.
    connections: Vec<Connection>,
}

/// Reasons why a frame is not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PushError {
    Full,
    TooManyPeers { limit: usize },
    Closed,
}

impl Peers {
    /// Queues a frame. `start` is called with the receiver of a new queue.
    pub(super) fn push(
        &self,
        peer: PeerId,
        address: SocketAddr,
        outgoing: Outgoing,
        capacity: usize,
        start: impl FnOnce(mpsc::Receiver<Outgoing>),
    ) -> Result<(), (PushError, Box<Outgoing>)> {
        let mut table = self.lock();
        if table.closed {
            return Err((PushError::Closed, Box::new(outgoing)));
        }
        let Some(entry) = table.entry(peer) else {
            return Err((PushError::TooManyPeers { limit: PEERS_MAX }, Box::new(outgoing)));
        };
        entry.address = Some(address);
        let outbox = entry.outbox.get_or_insert_with(|| {
            let (sender, receiver) = mpsc::channel(capacity);
            start(receiver);
            sender
        });
        outbox.try_send(outgoing).map_err(|error| match error {
            TrySendError::Full(outgoing) => (PushError::Full, Box::new(outgoing)),
            TrySendError::Closed(outgoing) => (PushError::Closed, Box::new(outgoing)),
        })
    }

    /// Address of the peer, from its latest frame.
    pub(super) fn address(&self, peer: &PeerId) -> Option<SocketAddr> {
        self.lock().entries.get(peer)?.address
    }

    /// The newest live connection with the peer.
    pub(super) fn connection(&self, peer: &PeerId) -> Option<Connection> {
        let table = self.lock();
        let connections = &table.entries.get(peer)?.connections;
        connections.iter().rev().find(|connection| connection.close_reason().is_none()).cloned()
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
        let Some(entry) = table.entry(peer) else { return false };
        let news = entry.connections.is_empty() || entry.incarnation != incarnation;
        if entry.incarnation != incarnation {
            entry.incarnation = incarnation;
            entry.connections.drain(..).for_each(|old| supersede(&old));
        }
        if entry.connections.len() >= CONNECTIONS_PER_PEER_MAX {
            supersede(&entry.connections.remove(0));
        }
        entry.connections.push(connection.clone());
        if news {
            permit.send(NetEvent::Connected(instance));
        }
        true
    }

    /// Removes a connection. If it was the peer's last, that is reported through `permit`.
    pub(super) fn disconnected(
        &self,
        peer: PeerId,
        connection: &Connection,
        reason: String,
        permit: mpsc::Permit<'_, NetEvent>,
    ) {
        let mut table = self.lock();
        let Some(entry) = table.entries.get_mut(&peer) else { return };
        let before = entry.connections.len();
        entry.connections.retain(|known| known.stable_id() != connection.stable_id());
        if entry.connections.len() < before && entry.connections.is_empty() {
            let instance = Instance::new(peer, entry.incarnation);
            permit.send(NetEvent::Disconnected { instance, reason });
        }
        table.forget_if_idle(&peer);
    }

    /// The round trip to every peer with a live connection.
    pub(super) fn round_trips(&self) -> Vec<(Instance, Duration)> {
        let table = self.lock();
        let round_trip = |(&peer, entry): (&PeerId, &Entry)| {
            let live = entry.connections.iter().rev().find(|connection| connection.close_reason().is_none());
            live.map(|connection| (Instance::new(peer, entry.incarnation), connection.rtt()))
        };
        table.entries.iter().filter_map(round_trip).collect()
    }

    /// Removes the queue of a peer if it is empty, under the lock, so that no frame is queued in between. If true, the
    /// sending task may end.
    pub(super) fn retire(&self, peer: &PeerId, outbox: &mpsc::Receiver<Outgoing>) -> bool {
        let mut table = self.lock();
        if !outbox.is_empty() {
            return false;
        }
        if let Some(entry) = table.entries.get_mut(peer) {
            entry.outbox = None;
        }
        table.forget_if_idle(peer);
        true
    }

    /// Refuses further frames and connections.
    pub(super) fn close(&self) {
        let mut table = self.lock();
        table.closed = true;
        table.entries.values_mut().for_each(|entry| entry.outbox = None);
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn entry(&mut self, peer: PeerId) -> Option<&mut Entry> {
        if self.entries.len() >= PEERS_MAX && !self.entries.contains_key(&peer) {
            return None;
        }
        Some(self.entries.entry(peer).or_default())
    }

    fn forget_if_idle(&mut self, peer: &PeerId) {
        let idle = |entry: &Entry| entry.outbox.is_none() && entry.connections.is_empty();
        if self.entries.get(peer).is_some_and(idle) {
            self.entries.remove(peer);
        }
    }
}

fn supersede(connection: &Connection) {
    connection.close(code::SUPERSEDED, b"a newer connection took its place");
}
