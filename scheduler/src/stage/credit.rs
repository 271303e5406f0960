//! Credits: how many microbatches each upstream sender may have unanswered here.
//!
//! A credit is a level, not a token: a sender that has as many unanswered as its level holds back until answers come.
//! No credit has to be returned, so neither a lost message nor a dead sender can leak one.

use std::collections::BTreeMap;

use crate::Hop;

/// Weight of the newest second in the average of use, as a fraction of 16.
const NEWEST: u64 = 4;
/// Fixed point of the averages.
const SCALE: u64 = 1_024;

/// Deals the slots of a replica out to its senders.
#[derive(Clone, Debug, Default)]
pub(super) struct Credits {
    /// Microbatches since the last dealing and their moving average, by sender.
    used: BTreeMap<Hop, Use>,
    /// Times credits were dealt: the rotation where senders outnumber slots.
    rounds: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    since: u64,
    average: u64,
    seen: bool,
}

impl Credits {
    /// Counts a slot used by a sender. Returns whether it is the first: then the sender waits for its level.
    pub(super) fn used(&mut self, sender: Hop) -> bool {
        let used = self.used.entry(sender).or_default();
        used.since += 1;
        !std::mem::replace(&mut used.seen, true)
    }

    /// Levels for `senders`, in proportion to recent use and at least 1 while slots suffice; their sum is at most
    /// `slots`. Senders that are gone are forgotten.
    pub(super) fn deal(&mut self, slots: usize, senders: &[Hop]) -> Vec<(Hop, u32)> {
        self.average(senders);
        self.rounds = self.rounds.wrapping_add(1);
        if senders.len() > slots {
            return self.take_turns(slots, senders);
        }
        let spare = (slots - senders.len()) as u64;
        let uses: Vec<u64> = senders.iter().map(|sender| self.average_of(sender)).collect();
        let total: u64 = uses.iter().sum::<u64>().max(1);
        let level = |used: u64| 1 + u32::try_from(spare * used / total).unwrap_or(u32::MAX);
        senders.iter().zip(uses).map(|(&sender, used)| (sender, level(used))).collect()
    }

    fn average(&mut self, senders: &[Hop]) {
        self.used.retain(|sender, _| senders.contains(sender));
        for sender in senders {
            let entry = self.used.entry(*sender).or_default();
            entry.average = (entry.average * (16 - NEWEST) + entry.since * SCALE * NEWEST) / 16;
            entry.since = 0;
        }
    }

    /// A sender that has sent nothing yet counts as a sender of a little, so that it can begin.
    fn average_of(&self, sender: &Hop) -> u64 {
        self.used.get(sender).map_or(0, |used| used.average).max(SCALE / 4)
    }

    fn take_turns(&self, slots: usize, senders: &[Hop]) -> Vec<(Hop, u32)> {
        let start = usize::try_from(self.rounds % senders.len().max(1) as u64).unwrap_or(0);
        let place = |index: usize| (index + senders.len() - start) % senders.len();
        senders.iter().enumerate().map(|(index, &sender)| (sender, u32::from(place(index) < slots))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Instance, PeerId, StageIndex};

    fn hop(key: u8) -> Hop {
        Hop::replica(StageIndex(0), Instance::new(PeerId([key; 32]), Incarnation(1)))
    }

    fn levels(dealt: &[(Hop, u32)]) -> Vec<u32> {
        dealt.iter().map(|(_, level)| *level).collect()
    }

    #[test]
    fn follow_use_and_never_exceed_the_slots() {
        let mut credits = Credits::default();
        let senders = [hop(1), hop(2), hop(3)];
        assert_eq!(levels(&credits.deal(63, &senders)), [21, 21, 21]);
        for _ in 0..20 {
            assert!((0..30).filter(|_| credits.used(hop(1))).count() <= 1);
            assert!((0..10).filter(|_| credits.used(hop(2))).count() <= 1);
            credits.deal(64, &senders);
        }
        let dealt = levels(&credits.deal(64, &senders));
        assert!(dealt.iter().sum::<u32>() <= 64, "{dealt:?}");
        assert!(dealt[0] > 2 * dealt[1] && dealt[2] >= 1, "{dealt:?}");
    }

    #[test]
    fn senders_without_a_slot_are_served_in_rotation() {
        let mut credits = Credits::default();
        let senders: Vec<Hop> = (0..5).map(hop).collect();
        let mut turns = [0; 5];
        for _ in 0..10 {
            let dealt = credits.deal(2, &senders);
            assert_eq!(dealt.iter().map(|(_, level)| level).sum::<u32>(), 2);
            dealt.iter().zip(&mut turns).for_each(|((_, level), turns)| *turns += level);
        }
        assert_eq!(turns, [4; 5]);
    }
}
