//! Telling the replicas what has ended.
//!
//! An announcement frees memory and nothing waits for it, so the replicas of a large swarm are told by turns: a
//! microbatch then costs the feeder the same in a swarm of any size. An announcement is complete, so the next one heals
//! whatever one lost. A new averaging round, and the end of training, are told to all replicas at once.

use std::fmt::Debug;
use std::ops::Bound;

use super::Feeder;
use crate::{Hop, Instance, Message, PeerTable, StageIndex, Time};

/// Replicas told at a time, at least: a small swarm is told as a whole.
const TOLD_MIN: usize = 64;

/// Turns in which every replica of a larger swarm is told once. At four turns a second it keeps what has ended for four
/// seconds at most.
const TURNS: usize = 16;

/// The replicas whose turn it is to be told.
#[derive(Clone, Debug, Default)]
pub(super) struct Turns {
    /// The replica told last.
    last: Option<Hop>,
    tells_all: bool,
}

impl Turns {
    /// The next turn is that of all replicas.
    pub(super) fn tell_all(&mut self) {
        self.tells_all = true;
    }

    /// Takes the replicas whose turn has come, of the first `stages` stages.
    fn take(&mut self, table: &PeerTable, stages: u16) -> Vec<Hop> {
        let all: usize = (0..stages).map(|stage| table.hops(StageIndex(stage)).len()).sum();
        let some = all.div_ceil(TURNS).max(TOLD_MIN).min(all);
        let count = if std::mem::take(&mut self.tells_all) { all } else { some };
        let told: Vec<Hop> = self.in_turn(table, stages).take(count).collect();
        self.last = told.last().copied().or(self.last);
        told
    }

    /// All replicas by stage and peer id, those behind the last one first.
    fn in_turn<'a>(&self, table: &'a PeerTable, stages: u16) -> impl Iterator<Item = Hop> + use<'a> {
        let (last, stage) = (self.last, self.last.and_then(|hop| hop.stage).map_or(0, |stage| stage.0));
        let start = last.map_or(Bound::Unbounded, Bound::Excluded);
        let of = |stage| table.hops(StageIndex(stage));
        let behind = (stage..stages).flat_map(move |stage| of(stage).range((start, Bound::Unbounded)));
        let rest = last.into_iter().flat_map(move |last| (0..=stage).flat_map(move |s| of(s).range(..=last)));
        behind.chain(rest).copied()
    }
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Announces outcomes and the current averaging round, often enough that replicas hold few microbatches.
    pub(super) fn announce(&mut self, now: Time) {
        let many = self.announcement.news() * 2 >= u64::from(self.window.limit());
        if now < self.announce_at && !many {
            return;
        }
        self.announce_at = now + self.config.announce_interval;
        let outcomes = Message::Outcomes { ranges: self.announcement.announce() };
        let accumulates = self.config.gradient_accumulation_steps > 1;
        let calls = (self.config.averaging.is_some() || accumulates) && self.is_caller();
        for to in self.turns.take(&self.table, self.config.stages) {
            self.send(to, outcomes.clone());
            if calls {
                self.call_round(to);
            }
        }
    }

    /// Calls the current round to a replica, with the weights that its group may have. Of several feeders none knows all
    /// grants, and none bounds weights.
    fn call_round(&mut self, to: Hop) {
        let (round, is_closing) = self.rounds.called_to(&to);
        let weight = |&member: &Instance| {
            let hop = Hop { instance: member, ..to };
            (member.peer, self.confirmed.weight(&hop, round.0))
        };
        let knows_all = self.table.feeders().nth(1).is_none();
        let group = self.rounds.group_of(&to).iter().filter(|_| knows_all);
        let weights = group.map(weight).collect();
        self.send(to, Message::RoundCall { round, is_closing, weights });
    }

    /// Announces to all replicas now.
    pub(super) fn announce_to_all(&mut self, now: Time) {
        self.turns.tell_all();
        self.announce_at = now;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::fixtures::{feeder, member};
    use crate::{Incarnation, Membership, PeerId};

    const STAGES: u16 = 3;

    fn table(version: u64, replicas_per_stage: u8) -> PeerTable {
        let mut table = PeerTable::new(feeder());
        let replica = |stage, key| {
            member(Hop::replica(
                StageIndex(stage),
                Instance::new(PeerId([key; 32]), Incarnation(stage.into())),
            ))
        };
        let stages = (0..STAGES).flat_map(|stage| {
            let first = u8::try_from(stage).unwrap() * 85;
            (first..first + replicas_per_stage).map(move |key| replica(stage, key + 1))
        });
        table.update(Membership { version, members: stages.collect(), ..Membership::default() });
        table
    }

    #[test]
    fn a_small_swarm_is_told_as_a_whole() {
        let (table, mut turns) = (table(1, 20), Turns::default());
        for _ in 0..3 {
            assert_eq!(turns.take(&table, STAGES).len(), 60);
        }
    }

    #[test]
    fn each_replica_of_a_large_swarm_has_its_turn() {
        let (table, mut turns) = (table(1, 80), Turns::default());
        let mut told: Vec<Hop> = (0..4).flat_map(|_| turns.take(&table, STAGES)).collect();
        assert_eq!(told.len(), 4 * TOLD_MIN);
        let again = told.split_off(240);
        assert_eq!(told.iter().collect::<BTreeSet<_>>().len(), 240, "each once");
        assert_eq!(again, told[..16], "in the same order again");
    }

    #[test]
    fn a_turn_goes_on_behind_a_replica_that_has_left() {
        let (before, after) = (table(1, 80), table(1, 50));
        let mut turns = Turns::default();
        turns.take(&before, STAGES);
        assert_eq!(turns.last.unwrap().peer(), PeerId([TOLD_MIN as u8; 32]));
        let told = turns.take(&after, STAGES);
        assert_eq!((told[0].stage, told.len()), (Some(StageIndex(1)), TOLD_MIN));
    }

    #[test]
    fn a_round_is_told_to_all_at_once() {
        let (table, mut turns) = (table(1, 80), Turns::default());
        turns.take(&table, STAGES);
        turns.tell_all();
        let told: BTreeSet<Hop> = turns.take(&table, STAGES).into_iter().collect();
        assert_eq!(told.len(), 240);
        assert_eq!(turns.take(&table, STAGES).len(), TOLD_MIN);
    }
}
