//! Evictions. A feeder reports a replica that it has caught lying, and the coordinator removes that replica and refuses its
//! key as long as its own process lives.
//!
//! Only a feeder that holds ids is heard, since its keys alone prove who was handed its microbatches. A run in which every
//! member may feed evicts no replica: a liar could take ids there, and have honest replicas removed.

use std::collections::BTreeSet;

use super::{Action, Coordinator, Reply};
use crate::{Evidence, Instance, PeerId, Time};

/// Keys evicted at most. Beyond that a liar remains a member, and its feeders go on to deny its claims.
pub(super) const EVICTED_MAX: usize = 4_096;

/// The keys that may not come back.
#[derive(Clone, Debug, Default)]
pub(super) struct Evicted {
    keys: BTreeSet<PeerId>,
    unlogged: Vec<PeerId>,
}

impl Evicted {
    pub(super) fn contains(&self, key: PeerId) -> bool {
        self.keys.contains(&key)
    }

    pub(super) fn note(&mut self, key: PeerId) {
        self.keys.insert(key);
        self.unlogged.push(key);
    }

    /// The keys that were evicted since the last call.
    pub(super) fn take_unlogged(&mut self) -> Vec<PeerId> {
        std::mem::take(&mut self.unlogged)
    }
}

impl Coordinator {
    /// A feeder reports a replica.
    pub(super) fn strike(
        &mut self,
        now: Time,
        from: Instance,
        replica: Instance,
        evidence: Evidence,
    ) -> Reply {
        let Some(entry) = self.members.touch(now, from) else { return self.stranger(from) };
        let state = entry.member.state;
        let counts = self.config.feed.is_trusted() && evidence.convicts();
        if counts && self.leases.find_holder(|holder| holder.peer == from.peer).is_some() {
            self.evict(replica, from.peer, evidence);
        }
        Reply::Noted(state)
    }

    fn evict(&mut self, replica: Instance, feeder: PeerId, evidence: Evidence) {
        let stage = self.members.get(replica).and_then(|entry| entry.member.state.stage());
        let Some(stage) = stage.filter(|_| self.evicted.keys.len() < EVICTED_MAX) else { return };
        self.dismiss(replica);
        self.evicted.note(replica.peer);
        self.actions.push_back(Action::Evicted { replica: replica.peer, stage, feeder, evidence });
    }
}
