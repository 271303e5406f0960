//! Replicas that fell silent with the weights of a trained stage. Their processes may live: a machine that slept, a link
//! that was down. While one of them is awaited, no replica begins its stage with initial weights.

use std::collections::{BTreeMap, BTreeSet};

use crate::alarms::Alarms;
use crate::{PeerId, StageIndex, Time};

/// The awaited holders of weights. Each was a member within the wait, so the members bound their number.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders {
    awaited: BTreeMap<PeerId, StageIndex>,
    ends: Alarms<PeerId>,
}

impl Holders {
    /// Awaits `peer`, which has weights of `stage`, until the time given.
    pub(super) fn wait_for(&mut self, peer: PeerId, stage: StageIndex, until: Time) {
        self.awaited.insert(peer, stage);
        self.ends.set(peer, Some(until));
    }

    /// The peer serves again, or has lost the weights.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.awaited.remove(&peer);
        self.ends.set(peer, None);
    }

    /// Ends the waits that are over.
    pub(super) fn expire(&mut self, now: Time) {
        for peer in self.ends.take_due(now) {
            self.awaited.remove(&peer);
        }
    }

    /// The end of the next wait.
    pub(super) fn next_end(&self) -> Option<Time> {
        self.ends.next().map(|(until, _)| until)
    }

    /// The stages whose weights an awaited peer may hold.
    pub(super) fn stages(&self) -> BTreeSet<StageIndex> {
        self.awaited.values().copied().collect()
    }
}
