//! The state that a journal amounts to: what a restarted feeder needs, however long the run is.
//!
//! Records are folded into it one by one. In place of all records so far a journal begins with a snapshot, so its length
//! and the time of a restart follow from the microbatches in flight, not from those that are done.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::ops::Range;

use super::confirmed::TURNS;
use super::contributions::Contributions;
use super::open::Open;
use super::{AveragingSchedule, Feeder, Outcome, Record, TakenOver};
use crate::{Attempt, Block, BlockTally, Hop, IdSet, Lease, MicrobatchId, Purpose, StageIndex, Time};

/// Microbatches with an outcome whose grants are kept at most, for claims that come late.
const LATE_MAX: usize = 8_192;

/// The records of a journal, folded.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshot {
    /// The ranges leased or taken over, oldest first; leases that touch are one.
    pub ranges: Vec<JournaledRange>,
    /// Ids with an outcome.
    pub ended: IdSet,
    /// Microbatches in flight.
    pub open: BTreeMap<MicrobatchId, InFlight>,
    /// The microbatches that ended last, oldest first; at most 8,192.
    pub late: VecDeque<(MicrobatchId, Late)>,
    /// Contributions by replica and by the averaging rounds called before them, of the last two turns of every fragment.
    pub contributions: BTreeMap<(Hop, u64), u64>,
    /// Averaging rounds called, by stage.
    pub rounds: BTreeMap<StageIndex, u64>,
    /// Totals.
    pub totals: Totals,
}

/// A range of ids in a snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JournaledRange {
    /// The ids.
    pub lease: Lease,
    /// For a range taken over: the id after the last that may be injected.
    pub taken_over: Option<MicrobatchId>,
}

/// A microbatch in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InFlight {
    /// The replica of stage 0 that it was sent to last.
    pub to: Hop,
    /// Number of times that it was sent.
    pub attempts: u32,
    /// The replicas that have a grant.
    pub grants: Vec<Hop>,
}

/// A microbatch that ended lately.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Late {
    /// The replicas that have a grant.
    pub grants: Vec<Hop>,
    /// Its gradient came back.
    pub finished: bool,
}

/// Totals of a journal; see [`Counts`](super::Counts).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Microbatches of the feeder: injected, or taken over with an outcome.
    pub admitted: u64,
    /// Microbatches sent to stage 0.
    pub injected: u64,
    /// Microbatches that came back.
    pub finished: u64,
    /// Microbatches refused.
    pub refused: u64,
    /// Those of `refused` that a takeover abandoned.
    pub abandoned: u64,
    /// Microbatches taken over that had their outcome.
    pub inherited: u64,
    /// Tokens of the microbatches that came back.
    pub tokens: u64,
    /// Contributions of finished microbatches that were lost: their grant was handed back, or their replica left.
    pub contributions_lost: u64,
    /// Time of training, milliseconds.
    pub trained_ms: u64,
}

impl Snapshot {
    /// All records of a journal, folded. `averaging` is the schedule of the run.
    #[must_use]
    pub fn of<'a>(
        journal: impl IntoIterator<Item = &'a Record>,
        averaging: Option<AveragingSchedule>,
    ) -> Self {
        let mut snapshot = Self::default();
        journal.into_iter().for_each(|record| snapshot.fold(record, averaging));
        snapshot
    }

    /// Whether no record is folded into it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Folds the next record into the snapshot. `averaging` is the schedule of the run; without it every contribution
    /// is kept apart for good.
    pub fn fold(&mut self, record: &Record, averaging: Option<AveragingSchedule>) {
        match record {
            Record::Snapshot(snapshot) => self.clone_from(snapshot),
            Record::Leased(lease) => self.lease(*lease),
            Record::Sent { microbatch, to } => self.sent(*microbatch, *to),
            Record::Granted { microbatch, to } => self.granted(*microbatch, *to),
            Record::Withdrawn { microbatch, from } => self.withdrawn(*microbatch, from),
            Record::Ended { microbatch, outcome } => self.end(*microbatch, outcome, averaging),
            Record::TakenOver(taken) => self.take_over(taken),
            Record::RoundCalled { stage } => *self.rounds.entry(*stage).or_default() += 1,
            Record::Lost { replica, contributions } => self.lose(replica, *contributions),
            Record::Trained { milliseconds } => self.totals.trained_ms = *milliseconds,
        }
    }

    fn lease(&mut self, lease: Lease) {
        if let Some(JournaledRange { lease: last, taken_over: None }) = self.ranges.last_mut()
            && last.epoch == lease.epoch
            && (last.first..=MicrobatchId(last.ids().end)).contains(&lease.first)
        {
            last.count = last.count.max(lease.ids().end - last.first.0);
        } else {
            self.inherit(&lease);
            self.ranges.push(JournaledRange { lease, taken_over: None });
        }
    }

    /// The ids of a block before its first lease had their outcome before this launch of the run.
    fn inherit(&mut self, lease: &Lease) {
        let block = lease.first.block();
        if self.ranges.iter().all(|range| range.lease.first.block() != block) {
            self.totals.admitted += lease.first.index();
            self.totals.inherited += lease.first.index();
        }
    }

    fn sent(&mut self, microbatch: MicrobatchId, to: Hop) {
        if let Some(open) = self.open.get_mut(&microbatch) {
            (open.to, open.attempts) = (to, open.attempts.saturating_add(1));
            return;
        }
        self.open.insert(microbatch, InFlight { to, attempts: 1, grants: Vec::new() });
        self.totals.admitted += 1;
        self.totals.injected += 1;
    }

    fn granted(&mut self, microbatch: MicrobatchId, to: Hop) {
        if let Some((grants, _)) = self.grants_of(microbatch)
            && grants.iter().all(|granted| granted.stage != to.stage)
        {
            grants.push(to);
        }
    }

    fn withdrawn(&mut self, microbatch: MicrobatchId, from: &Hop) {
        let Some((grants, finished)) = self.grants_of(microbatch) else { return };
        let Some(index) = grants.iter().position(|granted| granted == from) else { return };
        grants.swap_remove(index);
        if finished {
            self.totals.contributions_lost += 1;
            self.forfeit(from);
        }
    }

    /// The grants of a microbatch, and whether its gradient came back.
    fn grants_of(&mut self, microbatch: MicrobatchId) -> Option<(&mut Vec<Hop>, bool)> {
        if let Some(open) = self.open.get_mut(&microbatch) {
            return Some((&mut open.grants, false));
        }
        let late = self.late.iter_mut().rev().find(|(id, _)| *id == microbatch);
        late.map(|(_, late)| (&mut late.grants, late.finished))
    }

    /// One of the latest contributions of a replica was never applied.
    fn forfeit(&mut self, hop: &Hop) {
        let latest = self.contributions.range_mut((*hop, 0)..=(*hop, u64::MAX)).next_back();
        if let Some((&key, count)) = latest {
            *count -= 1;
            if *count == 0 {
                self.contributions.remove(&key);
            }
        }
    }

    /// A replica left with contributions that are counted from now on as lost.
    fn lose(&mut self, hop: &Hop, contributions: u64) {
        let of_hop: Vec<_> =
            self.contributions.range((*hop, 0)..=(*hop, u64::MAX)).map(|(&key, _)| key).collect();
        for key in of_hop {
            self.contributions.remove(&key);
        }
        self.totals.contributions_lost = self.totals.contributions_lost.saturating_add(contributions);
    }

    fn contribute(&mut self, hop: Hop, averaging: Option<AveragingSchedule>) {
        let rounds = hop.stage.and_then(|stage| self.rounds.get(&stage)).copied().unwrap_or(0);
        let turns = averaging.map_or(u64::MAX, |schedule| schedule.fragments.saturating_mul(TURNS));
        let kept = rounds.saturating_sub(turns);
        let old: Vec<_> = self.contributions.range((hop, 0)..(hop, kept)).map(|(&key, _)| key).collect();
        for key in old {
            self.contributions.remove(&key);
        }
        *self.contributions.entry((hop, rounds)).or_default() += 1;
    }

    fn end(&mut self, microbatch: MicrobatchId, outcome: &Outcome, averaging: Option<AveragingSchedule>) {
        let grants = self.open.remove(&microbatch).map_or_else(Vec::new, |open| open.grants);
        let finished = matches!(outcome, Outcome::Finished { .. });
        if finished {
            grants.iter().for_each(|&hop| self.contribute(hop, averaging));
        }
        self.late.push_back((microbatch, Late { grants, finished }));
        if self.late.len() > LATE_MAX {
            self.late.pop_front();
        }
        self.ended.insert(microbatch);
        match outcome {
            Outcome::Finished { loss } => {
                self.totals.finished += 1;
                self.totals.tokens = self.totals.tokens.saturating_add(u64::from(loss.tokens));
            }
            Outcome::Refused { .. } => self.totals.refused += 1,
            Outcome::Evaluated { .. } | Outcome::Unanswered => {}
        }
    }

    fn take_over(&mut self, taken: &TakenOver) {
        let TakenOver { lease, ended, end, continued, abandoned } = taken;
        let (open, refused) = (continued.len() as u64, abandoned.len() as u64);
        self.ranges.push(JournaledRange { lease: *lease, taken_over: Some(*end) });
        self.totals.admitted += ended + open + refused;
        self.totals.inherited += ended;
        self.totals.injected += open + refused;
        self.totals.refused += refused;
        self.totals.abandoned += refused;
        for one in continued {
            let in_flight = InFlight { to: one.to, attempts: 1, grants: one.grants.clone() };
            self.open.insert(one.microbatch, in_flight);
        }
        taken.ended_runs().into_iter().for_each(|run| self.ended.insert_run(run));
    }
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Takes the state of a snapshot; the feeder must be new.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        let Snapshot { ranges, ended, open, late, contributions, rounds, totals } = snapshot;
        ranges.iter().for_each(|range| self.restore_range(range));
        let all = 0..u64::MAX;
        let opened = open.keys().map(|id| id.0..id.0.saturating_add(1));
        ended.runs(all.clone()).chain(opened).for_each(|run| self.ranges.remove_run(run));
        ended.runs(all).for_each(|run: Range<u64>| self.announcement.end_run(run));
        for (microbatch, Late { grants, finished }) in late {
            self.restore_grants(*microbatch, grants);
            if *finished {
                self.grants.finish(*microbatch);
            }
            self.grants.end(Time::default(), *microbatch);
        }
        for (&microbatch, InFlight { to, attempts, grants }) in open {
            self.restore_grants(microbatch, grants);
            self.handoff.number_from(microbatch, Attempt(attempts.saturating_sub(1)));
            self.handoff.remember(microbatch, *to);
            self.open.insert(microbatch, Open::new(Purpose::Train));
        }
        rounds.iter().for_each(|(&stage, &rounds)| self.rounds.remember(stage, rounds));
        self.restore_contributions(contributions);
        open.values().flat_map(|open| &open.grants).for_each(|&hop| self.confirm(hop));
        self.restore_progress(snapshot);
        self.restore_totals(totals);
    }

    /// Ids of a block are injected in order, so the last one that is known says how many were. Those before its first range
    /// had their outcome before this launch of the run.
    fn restore_progress(&mut self, Snapshot { ranges, ended, open, .. }: &Snapshot) {
        let mut blocks: BTreeMap<Block, u64> = BTreeMap::new();
        for first in ranges.iter().map(|range| range.lease.first) {
            let inherited = blocks.entry(first.block()).or_insert(first.index());
            *inherited = first.index().min(*inherited);
        }
        for (block, inherited) in blocks {
            let ids = block.first().0 + inherited..block.ids().end;
            let ended_here: u64 = ended.runs(ids.clone()).map(|run| run.end - run.start).sum();
            let last_ended = ended.runs(ids.clone()).last().map_or(ids.start, |run| run.end);
            let flying = open.range(MicrobatchId(ids.start)..MicrobatchId(ids.end));
            let last_open = flying.last().map_or(ids.start, |(id, _)| id.0 + 1);
            let injected = last_ended.max(last_open) - block.first().0;
            let settled = inherited + ended_here;
            self.progress.restore(BlockTally { block, leased: injected, injected, settled });
        }
    }

    /// Contributions that were averaged since may weigh in a mean, but are lost with no replica.
    fn restore_contributions(&mut self, contributions: &BTreeMap<(Hop, u64), u64>) {
        for (&(hop, round), &count) in contributions {
            let of_hop = contributions.range((hop, 0)..=(hop, u64::MAX));
            let latest = of_hop.last().map_or(round, |(&(_, latest), _)| latest);
            if round >= Contributions::averaged_before(self.config.averaging, latest) {
                self.contributions.restore(hop, round, count);
            }
            self.confirmed.grant(hop, round, count);
        }
    }

    fn restore_range(&mut self, range: &JournaledRange) {
        match range.taken_over {
            None => {
                self.ranges.add(&range.lease);
                self.announcement.lease(&range.lease);
            }
            Some(end) => {
                self.announcement.take_over(&range.lease, end);
                self.succession.remember(range.lease);
            }
        }
    }

    fn restore_grants(&mut self, microbatch: MicrobatchId, grants: &[Hop]) {
        self.grants.open(microbatch);
        for &hop in grants {
            self.grants.claim(microbatch, hop);
        }
    }

    fn restore_totals(&mut self, totals: &Totals) {
        self.admitted = totals.admitted;
        self.counts.injected = totals.injected;
        self.counts.finished = totals.finished;
        self.counts.refused = totals.refused;
        self.counts.abandoned = totals.abandoned;
        self.counts.inherited = totals.inherited;
        self.counts.contributions_lost = totals.contributions_lost;
        self.counts.in_flight = self.open.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeder::Continued;
    use crate::fixtures::{a, b};
    use crate::{Incarnation, Instance, Loss, PeerId};

    const SCHEDULE: Option<AveragingSchedule> = Some(AveragingSchedule { interval: 10, fragments: 3 });

    /// The records of a microbatch that `hop` alone applies.
    fn life(microbatch: MicrobatchId, hop: Hop) -> [Record; 3] {
        let outcome = Outcome::Finished { loss: Loss { sum: 1.0, tokens: 5 } };
        [
            Record::Sent { microbatch, to: a(0) },
            Record::Granted { microbatch, to: hop },
            Record::Ended { microbatch, outcome },
        ]
    }

    #[test]
    fn a_journal_that_begins_with_a_snapshot_amounts_to_the_same() {
        let (one, other) = (life(MicrobatchId(0), a(1)), life(MicrobatchId(1), b(1)));
        let lease = Record::Leased(Lease { first: MicrobatchId(0), count: 16, epoch: 0 });
        let withdrawn = Record::Withdrawn { microbatch: MicrobatchId(1), from: b(1) };
        let whole: Vec<_> = [lease].into_iter().chain(one).chain(other).chain([withdrawn]).collect();
        for cut in 0..=whole.len() {
            let beginning = Record::Snapshot(Box::new(Snapshot::of(&whole[..cut], SCHEDULE)));
            let shortened = [&beginning].into_iter().chain(&whole[cut..]);
            assert_eq!(Snapshot::of(shortened, SCHEDULE), Snapshot::of(&whole, SCHEDULE), "cut at {cut}");
        }
    }

    #[test]
    fn of_a_range_taken_over_every_id_has_ended_except_those_that_go_on() {
        let continued = Continued { microbatch: MicrobatchId(905), to: b(0), grants: vec![a(1)] };
        let taken = Record::TakenOver(TakenOver {
            lease: Lease { first: MicrobatchId(900), count: 32, epoch: 1 },
            ended: 5,
            end: MicrobatchId(908),
            continued: vec![continued],
            abandoned: vec![MicrobatchId(906), MicrobatchId(907)],
        });
        let snapshot = Snapshot::of([&taken], SCHEDULE);
        assert_eq!(snapshot.ended.runs(0..u64::MAX).collect::<Vec<_>>(), [900..905, 906..908]);
        assert_eq!(snapshot.open[&MicrobatchId(905)].grants, [a(1)]);
    }

    #[test]
    fn a_snapshot_does_not_grow_with_the_replicas_that_came_and_went() {
        let mut snapshot = Snapshot::default();
        for id in 0..1_000_u64 {
            let replica = Hop::replica(StageIndex(1), Instance::new(PeerId([9; 32]), Incarnation(id)));
            life(MicrobatchId(id), replica).iter().for_each(|record| snapshot.fold(record, SCHEDULE));
            snapshot.fold(&Record::Lost { replica, contributions: 1 }, SCHEDULE);
        }
        assert_eq!((snapshot.contributions.len(), snapshot.totals.contributions_lost), (0, 1_000));
    }

    #[test]
    fn a_snapshot_does_not_grow_with_the_run() {
        let mut snapshot = Snapshot::default();
        for id in (0..100_000).map(MicrobatchId) {
            if id.0 % 1_000 == 0 {
                snapshot.fold(&Record::Leased(Lease { first: id, count: 1_000, epoch: 0 }), SCHEDULE);
                snapshot.fold(&Record::RoundCalled { stage: StageIndex(0) }, SCHEDULE);
            }
            snapshot.fold(&Record::Sent { microbatch: id, to: a(0) }, SCHEDULE);
            snapshot.fold(&Record::Granted { microbatch: id, to: a(0) }, SCHEDULE);
            let outcome = Outcome::Finished { loss: Loss { sum: 1.0, tokens: 5 } };
            snapshot.fold(&Record::Ended { microbatch: id, outcome }, SCHEDULE);
        }
        assert_eq!((snapshot.ranges.len(), snapshot.open.len()), (1, 0));
        assert_eq!((snapshot.late.len(), snapshot.contributions.len()), (LATE_MAX, 7));
        assert_eq!(snapshot.ended.runs(0..u64::MAX).count(), 1);
        assert_eq!((snapshot.totals.finished, snapshot.totals.tokens), (100_000, 500_000));
    }
}
