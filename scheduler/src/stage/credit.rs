//! Credits: how many microbatches each upstream sender may have unanswered here.
//!
//! A credit is a level, not a token: a sender that has as many unanswered as its level holds back until answers come.
//! No credit has to be returned, so neither a lost message nor a dead sender can leak one.

use std::collections::{BTreeMap, BTreeSet};

use crate::Hop;

/// Weight of the newest second in the average of use, as a fraction of 16.
const NEWEST: u64 = 4;
/// Fixed point of the averages.
const SCALE: u64 = 1_024;

/// Deals the slots of a replica out to its senders.
#[derive(Clone, Debug, Default)]
pub(super) struct Credits {
    /// By sender.
    used: BTreeMap<Hop, Use>,
    /// Times credits were dealt: the rotation of the slots that are left over.
    rounds: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Use {
    /// Microbatches since the last dealing.
    since: u64,
    /// The moving average of microbatches between two dealings.
    average: u64,
    seen: bool,
    level: u32,
}

impl Credits {
    /// Counts a slot used by a sender. Returns whether it is the first: then the sender waits for its level.
    pub(super) fn used(&mut self, sender: Hop) -> bool {
        let used = self.used.entry(sender).or_default();
        used.since += 1;
        !std::mem::replace(&mut used.seen, true)
    }

    /// Levels for `senders`, in proportion to recent use and at least 1 while slots suffice; their sum is `slots`.
    /// Senders that are gone are forgotten.
    pub(super) fn deal(&mut self, slots: usize, senders: &BTreeSet<Hop>) -> Vec<(Hop, u32)> {
        self.average(senders);
        let spare = slots.saturating_sub(senders.len()) as u64;
        let total = self.used.values().map(Use::weight).sum::<u64>().max(1);
        for used in self.used.values_mut() {
            let share = spare * used.weight() / total;
            let one = u32::from(senders.len() <= slots);
            used.level = one.saturating_add(u32::try_from(share).unwrap_or(u32::MAX));
        }
        self.deal_remainder(slots);
        self.used.iter().map(|(&sender, used)| (sender, used.level)).collect()
    }

    /// The level of one sender between two dealings; of a newcomer, its share if all were equal.
    pub(super) fn level(&self, slots: usize, sender: &Hop, senders: usize) -> u32 {
        let level = self.used.get(sender).map(|used| used.level).filter(|&level| level > 0);
        level.unwrap_or_else(|| u32::try_from(slots / senders.max(1)).unwrap_or(u32::MAX).max(1))
    }

    /// The slots that shares leave over, one each, to other senders every time.
    fn deal_remainder(&mut self, slots: usize) {
        let dealt: u64 = self.used.values().map(|used| u64::from(used.level)).sum();
        let left = (slots as u64).saturating_sub(dealt);
        let (senders, start) = (self.used.len().max(1) as u64, self.rounds);
        for (place, used) in (0..).zip(self.used.values_mut()) {
            used.level =
                used.level.saturating_add(u32::from((place + senders - start % senders) % senders < left));
        }
        self.rounds = self.rounds.wrapping_add(left.max(1));
    }

    fn average(&mut self, senders: &BTreeSet<Hop>) {
        self.used.retain(|sender, _| senders.contains(sender));
        for sender in senders {
            let entry = self.used.entry(*sender).or_default();
            entry.average = (entry.average * (16 - NEWEST) + entry.since * SCALE * NEWEST) / 16;
            entry.since = 0;
        }
    }
}

impl Use {
    /// A sender that has sent nothing yet counts as a sender of a little, so that it can begin.
    fn weight(&self) -> u64 {
        self.average.max(SCALE / 4)
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
    fn follow_use_and_fill_the_slots() {
        let mut credits = Credits::default();
        let senders = [hop(1), hop(2), hop(3)].into();
        assert_eq!(levels(&credits.deal(63, &senders)), [21, 21, 21]);
        for _ in 0..20 {
            assert!((0..30).filter(|_| credits.used(hop(1))).count() <= 1);
            assert!((0..10).filter(|_| credits.used(hop(2))).count() <= 1);
            credits.deal(64, &senders);
        }
        let dealt = levels(&credits.deal(64, &senders));
        assert_eq!(dealt.iter().sum::<u32>(), 64, "{dealt:?}");
        assert!(dealt[0] > 2 * dealt[1] && dealt[2] >= 1, "{dealt:?}");
    }

    #[test]
    fn no_slot_stays_idle_because_shares_are_rounded() {
        let mut credits = Credits::default();
        let senders: BTreeSet<Hop> = (0..33).map(hop).collect();
        let mut totals = [0; 33];
        for _ in 0..33 {
            let dealt = levels(&credits.deal(64, &senders));
            assert_eq!(dealt.iter().sum::<u32>(), 64);
            dealt.iter().zip(&mut totals).for_each(|(level, total)| *total += level);
        }
        assert_eq!(totals, [64; 33]);
    }

    #[test]
    fn senders_without_a_slot_are_served_in_rotation() {
        let mut credits = Credits::default();
        let senders: BTreeSet<Hop> = (0..5).map(hop).collect();
        let mut turns = [0; 5];
        for _ in 0..10 {
            let dealt = credits.deal(2, &senders);
            assert_eq!(dealt.iter().map(|(_, level)| level).sum::<u32>(), 2);
            dealt.iter().zip(&mut turns).for_each(|((_, level), turns)| *turns += level);
        }
        assert_eq!(turns, [4; 5]);
    }

    #[test]
    fn a_newcomer_begins_with_an_equal_share() {
        let mut credits = Credits::default();
        credits.deal(64, &[hop(1)].into());
        assert_eq!((credits.level(64, &hop(1), 2), credits.level(64, &hop(2), 2)), (64, 32));
        assert_eq!(credits.level(1, &hop(3), 2), 1);
    }
}
