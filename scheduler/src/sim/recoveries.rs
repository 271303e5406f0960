//! How long the microbatches of dead replicas are stuck.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Duration, Hop, Instance, MicrobatchId, StageIndex, Time};

/// The deaths of replicas, and the microbatches that each of them had or was sent later.
#[derive(Debug, Default)]
pub(super) struct Recoveries {
    deaths: BTreeMap<Instance, Death>,
    /// The dead replicas that have a microbatch, by the microbatch.
    victims: BTreeMap<MicrobatchId, BTreeSet<(StageIndex, Instance)>>,
    stuck: usize,
}

#[derive(Debug)]
struct Death {
    at: Time,
    stage: StageIndex,
    stuck: usize,
    /// The last microbatch was in other hands then; `None` before the first.
    mended_at: Option<Time>,
}

impl Recoveries {
    /// A replica dies, and has these microbatches.
    pub(super) fn dies(&mut self, now: Time, hop: Hop, has: impl IntoIterator<Item = MicrobatchId>) {
        let Some(stage) = hop.stage else { return };
        self.deaths.insert(hop.instance, Death { at: now, stage, stuck: 0, mended_at: None });
        for microbatch in has {
            self.is_sent(hop.instance, microbatch);
        }
    }

    /// A microbatch is sent to a start of a replica that is dead.
    pub(super) fn is_sent(&mut self, to: Instance, microbatch: MicrobatchId) {
        let Some(death) = self.deaths.get_mut(&to) else { return };
        if self.victims.entry(microbatch).or_default().insert((death.stage, to)) {
            death.stuck += 1;
            self.stuck += 1;
        }
    }

    /// A replica of the stage has the microbatch, or it has its outcome.
    pub(super) fn is_mended(&mut self, now: Time, microbatch: MicrobatchId, stage: Option<StageIndex>) {
        let Some(dead) = self.victims.get_mut(&microbatch) else { return };
        let mended = |(at, _): &(StageIndex, Instance)| stage.is_none_or(|stage| stage == *at);
        for (_, instance) in dead.extract_if(.., mended) {
            self.stuck -= 1;
            if let Some(death) = self.deaths.get_mut(&instance) {
                death.stuck -= 1;
                death.mended_at = Some(now);
            }
        }
        if dead.is_empty() {
            self.victims.remove(&microbatch);
        }
    }

    /// Microbatches at dead replicas.
    pub(super) fn stuck(&self) -> usize {
        self.stuck
    }

    /// The time from each death in `from..until` to the time at which the last of its microbatches was in other hands, sorted.
    pub(super) fn times(&self, from: Time, until: Time) -> Vec<Duration> {
        let counted = self.deaths.values().filter(|death| (from..until).contains(&death.at));
        let mut times: Vec<_> = counted.filter_map(|death| Some(death.mended_at?.since(death.at))).collect();
        times.sort_unstable();
        times
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b};

    fn at(seconds: u64) -> Time {
        Time(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn a_death_is_mended_when_the_last_of_its_microbatches_is_in_other_hands() {
        let mut recoveries = Recoveries::default();
        recoveries.dies(at(1), a(1), [MicrobatchId(1), MicrobatchId(2)]);
        recoveries.dies(at(2), b(1), []);
        recoveries.is_sent(a(1).instance, MicrobatchId(3));
        recoveries.is_sent(a(1).instance, MicrobatchId(3));
        recoveries.is_sent(a(2).instance, MicrobatchId(4));
        assert_eq!(recoveries.stuck(), 3);
        recoveries.is_mended(at(3), MicrobatchId(1), Some(StageIndex(1)));
        recoveries.is_mended(at(4), MicrobatchId(2), Some(StageIndex(0)));
        recoveries.is_mended(at(5), MicrobatchId(2), None);
        recoveries.is_mended(at(7), MicrobatchId(3), Some(StageIndex(1)));
        assert_eq!(recoveries.stuck(), 0);
        assert_eq!(recoveries.times(at(0), at(9)), [Duration::from_secs(6)]);
        assert_eq!(recoveries.times(at(2), at(9)), []);
    }
}
