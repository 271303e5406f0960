//! Members that cannot be reached, but are still in the list.

use std::collections::BTreeMap;

use crate::{Duration, Time};

use super::group::Participant;

/// A member is left out this long after it was lost: until then the coordinator has noticed too, or it lives.
pub(super) const LOST_FOR: Duration = Duration::from_secs(15);

/// Whom no round waits for from its beginning.
#[derive(Debug, Default)]
pub(super) struct Lost {
    until: BTreeMap<Participant, Time>,
}

impl Lost {
    pub(super) fn insert(&mut self, now: Time, peer: Participant) {
        self.until.insert(peer, now + LOST_FOR);
    }

    /// It has said something.
    pub(super) fn speaks(&mut self, peer: Participant) {
        self.until.remove(&peer);
    }

    pub(super) fn contains(&self, now: Time, peer: Participant) -> bool {
        self.until.get(&peer).is_some_and(|&until| now < until)
    }

    pub(super) fn retain(&mut self, is_member: impl Fn(&Participant) -> bool) {
        self.until.retain(|peer, _| is_member(peer));
    }
}
