//! Connections between peers. A message needs one; a peer that has none dials, and only a peer that had one, or dialled
//! in vain, hears that the other is lost.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Duration, Incarnation, Instance, PeerId};

/// A connection over which nothing arrives ends after this.
pub(super) const IDLE: Duration = Duration::from_secs(5);
/// Dialling a peer that does not reply fails after this: two attempts of 3 s.
pub(super) const DIAL: Duration = Duration::from_millis(6_250);
/// A peer that does not know the caller's key refuses it at once, and the caller dials once more.
pub(super) const REFUSED: Duration = Duration::from_millis(500);

/// The connections that are open, and the dials that will fail.
#[derive(Debug, Default)]
pub(super) struct Connections {
    /// For each owner and each other peer, the start of the other peer.
    open: BTreeMap<(PeerId, PeerId), Incarnation>,
    dialling: BTreeSet<(PeerId, PeerId)>,
}

impl Connections {
    /// Whether a connection joins these two starts.
    pub(super) fn join(&self, a: Instance, b: Instance) -> bool {
        self.open.get(&(a.peer, b.peer)) == Some(&b.incarnation)
            && self.open.get(&(b.peer, a.peer)) == Some(&a.incarnation)
    }

    pub(super) fn open(&mut self, a: Instance, b: Instance) {
        self.open.insert((a.peer, b.peer), b.incarnation);
        self.open.insert((b.peer, a.peer), a.incarnation);
    }

    /// Closes the connections of a start. Returns the starts at their other ends.
    pub(super) fn close_all(&mut self, lost: Instance) -> Vec<Instance> {
        let others: Vec<_> = self.of(lost.peer).filter(|&other| self.join(lost, other)).collect();
        others.iter().for_each(|other| self.close(lost.peer, other.peer));
        others
    }

    pub(super) fn close(&mut self, a: PeerId, b: PeerId) {
        self.open.remove(&(a, b));
        self.open.remove(&(b, a));
    }

    /// The other ends of the connections of a peer.
    pub(super) fn of(&self, peer: PeerId) -> impl Iterator<Item = Instance> {
        let all = (peer, PeerId([0; 32]))..=(peer, PeerId([u8::MAX; 32]));
        self.open.range(all).map(|(&(_, other), &incarnation)| Instance::new(other, incarnation))
    }

    /// Notes a dial that will fail; `false` if one is under way.
    pub(super) fn dial(&mut self, from: PeerId, to: PeerId) -> bool {
        self.dialling.insert((from, to))
    }

    pub(super) fn dial_ends(&mut self, from: PeerId, to: PeerId) {
        self.dialling.remove(&(from, to));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_joins_two_starts_and_no_others() {
        let start = |key, incarnation| Instance::new(PeerId([key; 32]), Incarnation(incarnation));
        let mut connections = Connections::default();
        connections.open(start(1, 1), start(2, 1));
        connections.open(start(1, 1), start(3, 4));
        assert!(connections.join(start(2, 1), start(1, 1)) && !connections.join(start(2, 2), start(1, 1)));
        assert_eq!(connections.close_all(start(1, 2)), []);
        assert_eq!(connections.close_all(start(1, 1)), [start(2, 1), start(3, 4)]);
        assert!(!connections.join(start(1, 1), start(3, 4)));
    }
}
