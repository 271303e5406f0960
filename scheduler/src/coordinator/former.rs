//! The starts that were members once. None of them becomes a newcomer again: what it did since is unknown.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{Incarnation, Instance, PeerId};

/// Peers whose former starts are remembered at most; the peers noted first are forgotten first.
const FORMER_MAX: usize = 65_536;

/// The latest former start of each peer.
#[derive(Clone, Debug, Default)]
pub(super) struct FormerStarts {
    latest: BTreeMap<PeerId, Incarnation>,
    order: VecDeque<PeerId>,
    changed: BTreeSet<PeerId>,
}

impl FormerStarts {
    /// Notes a start that is no member any more.
    pub(super) fn note(&mut self, start: Instance) {
        self.changed.insert(start.peer);
        match self.latest.get_mut(&start.peer) {
            Some(latest) => *latest = (*latest).max(start.incarnation),
            None => {
                self.make_room();
                self.latest.insert(start.peer, start.incarnation);
                self.order.push_back(start.peer);
            }
        }
    }

    /// The latest former start of a peer.
    pub(super) fn latest(&self, peer: PeerId) -> Option<Incarnation> {
        self.latest.get(&peer).copied()
    }

    fn make_room(&mut self) {
        if self.order.len() >= FORMER_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.latest.remove(&oldest);
            self.changed.insert(oldest);
        }
    }

    /// The peers of which something else is known since the last call, and their latest former start.
    pub(super) fn take_changed(&mut self) -> Vec<(PeerId, Option<Incarnation>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|peer| (peer, self.latest.get(&peer).copied())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn remembers_the_latest_start_of_each_peer_up_to_a_limit() {
        let start = |peer: usize, incarnation| {
            let mut key = [0; 32];
            key[..8].copy_from_slice(&peer.to_le_bytes());
            Instance::new(PeerId(key), Incarnation(incarnation))
        };
        let mut former = FormerStarts::default();
        former.note(start(0, 3));
        former.note(start(0, 2));
        let latest = |former: &FormerStarts, peer| former.latest(start(peer, 0).peer);
        assert_eq!((latest(&former, 0), latest(&former, 1)), (Some(Incarnation(3)), None));
        (1..=FORMER_MAX).for_each(|peer| former.note(start(peer, 1)));
        assert_eq!(latest(&former, 0), None, "the first is forgotten first");
        assert_eq!(latest(&former, FORMER_MAX), Some(Incarnation(1)));
    }
}
