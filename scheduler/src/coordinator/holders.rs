//! Replicas that fell silent with the weights of a trained stage. Their processes may live: a machine that slept, a link
//! that was down. While one of them is awaited, no replica begins its stage with initial weights.

use std::collections::{BTreeMap, BTreeSet};

use crate::alarms::Alarms;
use crate::{Duration, PeerId, StageIndex, Time};

/// How long a trained stage without a replica waits for the replicas that fell silent with its weights.
pub(super) const HOLDERS_AWAITED: Duration = Duration::from_secs(30);

/// The awaited holders of weights. Each was a member within the wait, so the members bound their number.
#[derive(Clone, Debug, Default)]
pub(super) struct Holders {
    awaited: BTreeMap<PeerId, StageIndex>,
    /// When the wait for each awaited stage began.
    began: BTreeMap<StageIndex, Time>,
    ends: Alarms<PeerId>,
}

/// Stands for the replica of a stage that no table names: a key that no peer has.
fn any_of(stage: StageIndex) -> PeerId {
    let mut key = [u8::MAX; 32];
    key[..2].copy_from_slice(&stage.0.to_be_bytes());
    PeerId(key)
}

/// How long a stage waits in all, however many peers say one after the other that they have its weights.
const AWAITED_MAX: Duration = Duration::from_secs(60);

impl Holders {
    /// Awaits `peer`, which has weights of `stage`, for [`HOLDERS_AWAITED`].
    pub(super) fn wait_for(&mut self, now: Time, peer: PeerId, stage: StageIndex) {
        let began = *self.began.entry(stage).or_insert(now);
        self.awaited.insert(peer, stage);
        self.ends.set(peer, Some((now + HOLDERS_AWAITED).min(began + AWAITED_MAX)));
    }

    /// Awaits whichever replica has weights of `stage`, for [`HOLDERS_AWAITED`].
    pub(super) fn wait_for_any(&mut self, now: Time, stage: StageIndex) {
        self.wait_for(now, any_of(stage), stage);
    }

    /// The peer serves again, or has lost the weights.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.awaited.remove(&peer);
        self.ends.set(peer, None);
        self.end_stages();
    }

    /// Ends the waits that are over. Returns whether there were any.
    pub(super) fn expire(&mut self, now: Time) -> bool {
        let due = self.ends.take_due(now);
        for peer in &due {
            self.awaited.remove(peer);
        }
        self.end_stages();
        !due.is_empty()
    }

    /// Only a stage that is awaited has a begin.
    fn end_stages(&mut self) {
        if self.began.is_empty() {
            return;
        }
        let awaited = self.stages();
        self.began.retain(|stage, _| awaited.contains(stage));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_is_awaited_for_a_minute_at_most_however_often_peers_come_with_its_weights() {
        let (mut holders, stage) = (Holders::default(), StageIndex(3));
        let at = |seconds| Time::default() + Duration::from_secs(seconds);
        for second in [0, 20, 40, 59] {
            holders.wait_for(at(second), PeerId([second as u8; 32]), stage);
            assert!(!holders.stages().is_empty());
        }
        assert!(holders.expire(at(60)) && holders.stages().is_empty());
        holders.wait_for(at(61), PeerId([9; 32]), stage);
        assert_eq!(holders.next_end(), Some(at(91)), "a later wait is another");
    }
}
