//! The clocks of averaging rounds: the feeder decides when each round of a stage begins.
//!
//! Each stage has a clock of its own (`rounds/stage_rounds.rs`), so a stage whose rounds are long, or whose replicas are
//! late, holds up no other.

mod stage_rounds;

use crate::averaging::Round;
use crate::{Hop, Instance, PeerTable, StageIndex, Time};

use super::AveragingSchedule;
use stage_rounds::StageRounds;

/// The clocks of all stages.
#[derive(Clone, Debug)]
pub(super) struct Rounds {
    stages: Vec<StageRounds>,
}

/// The progress of training.
#[derive(Clone, Copy, Debug)]
pub(super) struct Training {
    /// Microbatches finished.
    pub(super) finished: u64,
    /// Every microbatch has its outcome.
    pub(super) over: bool,
}

/// A round that is called now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Called {
    pub(super) stage: StageIndex,
    pub(super) round: Round,
    /// The members know of later rounds than this feeder did.
    pub(super) catches_up: bool,
}

impl Rounds {
    /// Clocks at round 0; without a `schedule` they call no round before the last. Where replicas accumulate, every stage has
    /// a last round.
    pub(super) fn new(schedule: Option<AveragingSchedule>, stages: u16, accumulates: bool) -> Self {
        let schedule = schedule.unwrap_or(AveragingSchedule { interval: 0, fragments: 0 });
        let stage = StageRounds::new(schedule, accumulates);
        Self { stages: vec![stage; usize::from(stages)] }
    }

    /// The current round of the stage of a replica, and whether it is one of the last.
    pub(super) fn called_to(&self, replica: &Hop) -> (Round, bool) {
        let rounds = replica.stage.and_then(|stage| self.stages.get(usize::from(stage.0)));
        rounds.map_or((Round(0), false), |rounds| (rounds.current(), rounds.closes()))
    }

    /// The replicas that average with a replica in the current round, as this feeder's table has them.
    pub(super) fn group_of(&self, replica: &Hop) -> &[Instance] {
        let rounds = replica.stage.and_then(|stage| self.stages.get(usize::from(stage.0)));
        rounds.map_or(&[], |rounds| rounds.group_of(replica.instance))
    }

    /// Former starts of the feeder called this many rounds more.
    pub(super) fn remember(&mut self, stage: StageIndex, rounds: u64) {
        if let Some(stage) = self.stages.get_mut(usize::from(stage.0)) {
            stage.remember(rounds);
        }
    }

    /// Whether the last round of every stage has ended.
    pub(super) fn is_over(&self) -> bool {
        self.stages.iter().all(StageRounds::is_over)
    }

    /// The first time after `now` at which a stage waits no longer.
    pub(super) fn deadline(&self, now: Time) -> Option<Time> {
        self.stages.iter().filter_map(|stage| stage.deadline(now)).min()
    }

    /// Follows a newer table: the replicas that serve a stage average.
    pub(super) fn follow(&mut self, table: &PeerTable) {
        for hop in table.moved() {
            let Some(stage) = hop.stage else { continue };
            let Some(rounds) = self.stages.get_mut(usize::from(stage.0)) else { continue };
            if table.hops(stage).contains(hop) {
                rounds.enter(hop.instance);
            } else {
                rounds.leave(hop.instance);
            }
        }
    }

    /// A member has ended this round of its stage and all before it; `carried`: every fragment was averaged with its
    /// contribution since then.
    pub(super) fn ended(&mut self, now: Time, member: &Hop, round: Round, carried: Option<Round>) {
        if let Some(rounds) = member.stage.and_then(|stage| self.stages.get_mut(usize::from(stage.0))) {
            rounds.ended(now, member.instance, round, carried);
        }
    }

    /// Another feeder calls: the members of a stage say how far it has come.
    pub(super) fn learn(&mut self, stage: StageIndex) -> Option<Called> {
        let rounds = self.stages.get_mut(usize::from(stage.0))?;
        let before = rounds.current().0;
        let round = rounds.learn();
        (round.0 > before).then(|| Called { stage, round, catches_up: round.0 - before > 1 })
    }

    /// Calls the next round of each stage where it is due and the feeder waits for no member any more.
    pub(super) fn proceed(&mut self, now: Time, training: Training) -> Vec<Called> {
        let mut called = Vec::new();
        for (stage, rounds) in (0..).map(StageIndex).zip(&mut self.stages) {
            let before = rounds.current().0;
            if rounds.proceed(now, training) {
                let round = rounds.current();
                called.push(Called { stage, round, catches_up: round.0.saturating_sub(before) > 1 });
            }
        }
        called
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Membership, PeerId, fixtures};

    fn replica(stage: u16, key: u8) -> Hop {
        Hop::replica(StageIndex(stage), Instance::new(PeerId([key; 32]), Incarnation(1)))
    }

    #[test]
    fn a_round_that_no_replica_would_follow_is_not_believed() {
        let hop = replica(0, 1);
        let mut rounds = Rounds::new(Some(AveragingSchedule { interval: 10, fragments: 2 }), 1, false);
        let mut table = PeerTable::new(fixtures::feeder());
        table.update(Membership {
            version: 1,
            members: vec![fixtures::member(hop)],
            ..Membership::default()
        });
        rounds.follow(&table);
        let mut learn = |ended| {
            rounds.ended(Time(0), &hop, Round(ended), None);
            rounds.learn(StageIndex(0)).map(|called| called.round.0)
        };
        assert_eq!([u64::MAX, 1 << 50].map(&mut learn), [Some(1), None]);
        assert_eq!(learn(40), Some(41));
        assert_eq!([1 << 40, u64::MAX, 41].map(&mut learn), [None, None, Some(42)]);
    }

    #[test]
    fn a_stage_whose_round_takes_long_holds_up_no_other() {
        let hops = [replica(0, 1), replica(0, 2), replica(1, 3), replica(1, 4)];
        let mut rounds = Rounds::new(Some(AveragingSchedule { interval: 10, fragments: 2 }), 2, false);
        let members = hops.into_iter().map(fixtures::member).collect();
        let mut table = PeerTable::new(fixtures::feeder());
        table.update(Membership { version: 1, members, ..Membership::default() });
        rounds.follow(&table);
        let at = |finished| Training { finished, over: false };
        assert_eq!(rounds.proceed(Time(0), at(10)).len(), 2);
        for round in 1..=5 {
            for key in [3, 4] {
                rounds.ended(Time(round), &replica(1, key), Round(round), None);
            }
            let next = Called { stage: StageIndex(1), round: Round(round + 1), catches_up: false };
            assert_eq!(rounds.proceed(Time(round), at(10 + 10 * round)), [next]);
        }
        assert_eq!(rounds.called_to(&replica(0, 1)), (Round(1), false));
        assert!(!rounds.is_over());
    }
}
