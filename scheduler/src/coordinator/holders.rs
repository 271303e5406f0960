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
    /// The stages that no replica has served since they were awaited first.
    outages: BTreeMap<StageIndex, Outage>,
    ends: Alarms<PeerId>,
}

/// How long a stage has waited, and may.
#[derive(Clone, Debug)]
struct Outage {
    /// The end of the latest wait.
    until: Time,
    /// The time that the waits to come may add in all.
    left: Duration,
}

/// Stands for the replica of a stage that no table names: a key that no peer has.
fn any_of(stage: StageIndex) -> PeerId {
    let mut key = [u8::MAX; 32];
    key[..2].copy_from_slice(&stage.0.to_be_bytes());
    PeerId(key)
}

/// How long a stage without a replica waits in all, however often peers say that they have its weights. The time between
/// two waits does not count: machines that sleep for hours come back with what is left.
const AWAITED_MAX: Duration = Duration::from_secs(60);

impl Outage {
    /// Another wait begins. Returns its end, which is `now` if no time is left.
    fn extend(&mut self, now: Time) -> Time {
        let from = self.until.max(now);
        let more = (now + HOLDERS_AWAITED).since(from).min(self.left);
        self.left -= more;
        self.until = from + more;
        self.until
    }
}

impl Holders {
    /// Awaits `peer`, which has weights of `stage`, for [`HOLDERS_AWAITED`], unless the stage has waited for
    /// [`AWAITED_MAX`].
    pub(super) fn wait_for(&mut self, now: Time, peer: PeerId, stage: StageIndex) {
        let outage = self.outages.entry(stage).or_insert(Outage { until: now, left: AWAITED_MAX });
        let until = outage.extend(now);
        if until <= now {
            return self.forget(peer);
        }
        self.awaited.insert(peer, stage);
        self.ends.set(peer, Some(until));
    }

    /// Awaits whichever replica has weights of `stage`, for [`HOLDERS_AWAITED`].
    pub(super) fn wait_for_any(&mut self, now: Time, stage: StageIndex) {
        self.wait_for(now, any_of(stage), stage);
    }

    /// The peer serves again, or has lost the weights.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.awaited.remove(&peer);
        self.ends.set(peer, None);
    }

    /// Ends the waits that are over. Returns whether there were any.
    pub(super) fn expire(&mut self, now: Time) -> bool {
        let due = self.ends.take_due(now);
        for peer in &due {
            self.awaited.remove(peer);
        }
        !due.is_empty()
    }

    /// The next wait for a stage that a replica serves is another.
    pub(super) fn end_outages(&mut self, is_served: impl Fn(StageIndex) -> bool) {
        self.outages.retain(|&stage, _| !is_served(stage));
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
    #[allow(clippy::disallowed_types, clippy::disallowed_methods)]
    fn a_wait_costs_nothing_before_its_end() {
        let mut holders = Holders::default();
        for index in 0..10_000_u16 {
            let mut key = [0; 32];
            key[..2].copy_from_slice(&index.to_be_bytes());
            holders.wait_for(Time::default(), PeerId(key), StageIndex(index));
        }
        let began = std::time::Instant::now();
        assert!(!(0..100_000).any(|_| holders.expire(Time::default())));
        let taken = began.elapsed();
        assert!(taken < Duration::from_secs(1), "{taken:?} for 100,000 calls");
    }

    #[test]
    fn a_stage_is_awaited_for_a_minute_at_most_however_often_peers_come_with_its_weights() {
        let (mut holders, stage) = (Holders::default(), StageIndex(3));
        let at = |seconds| Time::default() + Duration::from_secs(seconds);
        for second in [0, 20, 40, 59] {
            holders.wait_for(at(second), PeerId([second as u8; 32]), stage);
            assert!(!holders.stages().is_empty());
        }
        assert!(holders.expire(at(60)) && holders.stages().is_empty());
        holders.end_outages(|_| false);
        holders.wait_for(at(61), PeerId([9; 32]), stage);
        assert_eq!((holders.next_end(), holders.stages().len()), (None, 0), "the stage has waited");
        holders.end_outages(|served| served == stage);
        holders.wait_for(at(61), PeerId([9; 32]), stage);
        assert_eq!(holders.next_end(), Some(at(91)), "the next wait is another");
    }

    #[test]
    fn a_machine_that_slept_for_hours_is_awaited_again() {
        let (mut holders, stage, machine) = (Holders::default(), StageIndex(3), PeerId([1; 32]));
        let at = |seconds| Time::default() + Duration::from_secs(seconds);
        holders.wait_for(at(0), machine, stage);
        assert!(holders.expire(at(30)));
        holders.wait_for(at(7_200), machine, stage);
        assert_eq!(holders.next_end(), Some(at(7_230)));
        assert!(holders.expire(at(7_230)));
        holders.wait_for(at(7_231), machine, stage);
        assert_eq!(holders.next_end(), None, "the stage has waited");
    }
}
