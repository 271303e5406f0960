//! The state that a journal amounts to: what a restarted feeder needs, however long the run is.
//!
//! Records are folded into it one by one. In place of all records so far a journal begins with a snapshot, so its length
//! and the time of a restart follow from the microbatches in flight, not from those that are done.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;
use std::ops::Range;

use super::contributions::Contributions;
use super::open::Open;
use super::{AveragingSchedule, Feeder, Outcome, Record, TakenOver};
use crate::{Attempt, BlockTally, Hop, IdSet, Lease, MicrobatchId, Purpose, StageIndex, Time};

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
    /// Contributions by replica and by the averaging rounds called before them.
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
    /// Contributions of finished microbatches whose grant was handed back.
    pub forfeited: u64,
}

impl Snapshot {
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
        }
    }

    fn lease(&mut self, lease: Lease) {
        if let Some(JournaledRange { lease: last, taken_over: None }) = self.ranges.last_mut()
            && last.epoch == lease.epoch
            && (last.first..=MicrobatchId(last.ids().end)).contains(&lease.first)
        {
            last.count = last.count.max(lease.ids().end - last.first.0);
        } else {
            self.ranges.push(JournaledRange { lease, taken_over: None });
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
            self.totals.forfeited += 1;
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

    fn contribute(&mut self, hop: Hop, averaging: Option<AveragingSchedule>) {
        let rounds = hop.stage.and_then(|stage| self.rounds.get(&stage)).copied().unwrap_or(0);
        let averaged = Contributions::averaged_before(averaging, rounds);
        let old: Vec<_> = self.contributions.range((hop, 0)..(hop, averaged)).map(|(&key, _)| key).collect();
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
        let mut going_on = IdSet::default();
        continued.iter().for_each(|one| going_on.insert(one.microbatch));
        for run in going_on.gaps(lease.ids().start..end.0.clamp(lease.ids().start, lease.ids().end)) {
            self.ended.insert_run(run);
        }
    }
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Takes the state of a snapshot; the feeder must be new.
    pub(super) fn restore(&mut self, snapshot: &Snapshot) {
        let Snapshot { ranges, ended, open, late, contributions, rounds, totals } = snapshot;
        for range in ranges {
            self.restore_range(range, open);
        }
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
        for (&(hop, round), &count) in contributions {
            self.contributions.restore(hop, round, count);
            self.confirmed.grant(hop, round, count);
        }
        rounds.iter().for_each(|(&stage, &rounds)| self.rounds.remember(stage, rounds));
        self.restore_progress(snapshot);
        self.restore_totals(totals);
    }

    /// Ids of a block are injected in order, so the last one that is known says how many were.
    fn restore_progress(&mut self, Snapshot { ranges, ended, open, .. }: &Snapshot) {
        for block in ranges.iter().map(|range| range.lease.first.block()) {
            let ids = block.ids();
            let settled = ended.runs(ids.clone()).map(|run| run.end - run.start).sum();
            let last_ended = ended.runs(ids.clone()).last().map_or(ids.start, |run| run.end);
            let flying = open.range(MicrobatchId(ids.start)..MicrobatchId(ids.end));
            let last_open = flying.last().map_or(ids.start, |(id, _)| id.0 + 1);
            let injected = last_ended.max(last_open) - ids.start;
            self.progress.restore(BlockTally { block, leased: injected, injected, settled });
        }
    }

    fn restore_range(&mut self, range: &JournaledRange, open: &BTreeMap<MicrobatchId, InFlight>) {
        match range.taken_over {
            None => {
                self.ranges.add(&range.lease);
                self.announcement.lease(&range.lease);
            }
            Some(end) => {
                let going_on = open.keys().copied().filter(|&id| range.lease.contains(id));
                self.announcement.take_over(&range.lease, end, going_on);
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
        self.counts.contributions_lost = totals.forfeited;
        self.counts.in_flight = self.open.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::feeder::{Config, Continued};
    use crate::fixtures::{a, b, feeder};
    use crate::router::{RouterFactory, UniformConfig};
    use crate::{Admission, Loss, Rng};

    const SCHEDULE: Option<AveragingSchedule> = Some(AveragingSchedule { interval: 10, fragments: 3 });

    fn resumed(journal: impl IntoIterator<Item = Record>) -> Feeder<()> {
        let mut config = Config::new(feeder().instance, 2, 1_000, Admission::Asynchronous(64));
        config.averaging = SCHEDULE;
        Feeder::resume(config, UniformConfig.build(1), journal)
    }

    /// All that a restarted feeder knows, as text.
    fn knowledge(mut feeder: Feeder<()>) -> String {
        let grants: Vec<_> = (0..1_000).map(|id| feeder.grants.of(MicrobatchId(id)).to_vec()).collect();
        let lost: Vec<_> = [a(0), b(0), a(1), b(1)].map(|hop| feeder.contributions.lose(&hop)).to_vec();
        let latest: Vec<_> = (0..1_000).map(|id| feeder.handoff.latest(MicrobatchId(id))).collect();
        let left: Vec<_> = std::iter::from_fn(|| feeder.ranges.take()).collect();
        let drawn: Vec<_> = std::iter::from_fn(|| feeder.poll_action()).collect();
        format!(
            "{:?} {} {:?} {grants:?} {lost:?} {latest:?} {left:?} {drawn:?} {:?} {:?}",
            feeder.counts(),
            feeder.admitted,
            feeder.announcement.announce(),
            feeder.open,
            [a(0), a(1)].map(|hop| feeder.rounds.called_to(&hop)),
        )
    }

    /// A journal as a feeder writes it: leases, and microbatches that are sent, granted and ended in random order.
    fn history(rng: &mut Rng, length: u64) -> Vec<Record> {
        let mut journal = vec![Record::Leased(Lease { first: MicrobatchId(0), count: 16, epoch: 0 })];
        let (mut leased, mut next, mut open) = (16, 0, Vec::new());
        for _ in 0..length {
            match rng.below(8) {
                0 if leased < 600 => {
                    let first = MicrobatchId(leased + rng.below(2) * 5);
                    if first.0 > leased {
                        next = next.max(first.0);
                    }
                    journal.push(Record::Leased(Lease { first, count: 16, epoch: 0 }));
                    leased = first.0 + 16;
                }
                1 => journal.push(Record::RoundCalled { stage: StageIndex(rng.below(2) as u16) }),
                2 | 3 if next < leased => {
                    let to = if rng.below(2) == 0 { a(0) } else { b(0) };
                    journal.push(Record::Sent { microbatch: MicrobatchId(next), to });
                    open.push(MicrobatchId(next));
                    next += 1;
                }
                4 | 5 if !open.is_empty() => {
                    let microbatch = open[rng.below(open.len() as u64) as usize];
                    let stage = rng.below(2) as u16;
                    let granted = journal.iter().any(|record| {
                        matches!(record, Record::Granted { microbatch: id, to }
                            if *id == microbatch && to.stage == Some(StageIndex(stage)))
                    });
                    if !granted {
                        let to = if rng.below(2) == 0 { a(stage) } else { b(stage) };
                        journal.push(Record::Granted { microbatch, to });
                    }
                }
                7 => {
                    if let Some(Record::Granted { microbatch, to }) = rng.pick(&journal).cloned() {
                        journal.push(Record::Withdrawn { microbatch, from: to });
                    }
                }
                6 if !open.is_empty() => {
                    let microbatch = open.swap_remove(rng.below(open.len() as u64) as usize);
                    let outcome = Outcome::Finished { loss: Loss { sum: 1.0, tokens: 5 } };
                    journal.push(Record::Ended { microbatch, outcome });
                }
                _ => {}
            }
        }
        journal
    }

    #[test]
    fn a_journal_that_begins_with_a_snapshot_restores_the_same_feeder() {
        for seed in 0..200 {
            let mut rng = Rng::new(seed);
            let mut journal = history(&mut rng, 300);
            if seed % 3 == 0 {
                let continued = Continued { microbatch: MicrobatchId(905), to: b(0), grants: vec![a(1)] };
                journal.push(Record::TakenOver(TakenOver {
                    lease: Lease { first: MicrobatchId(900), count: 32, epoch: 1 },
                    ended: 5,
                    end: MicrobatchId(908),
                    continued: vec![continued],
                    abandoned: vec![MicrobatchId(906), MicrobatchId(907)],
                }));
            }
            let cut = rng.below(journal.len() as u64 + 1) as usize;
            let mut snapshot = Snapshot::default();
            journal[..cut].iter().for_each(|record| snapshot.fold(record, SCHEDULE));
            let shortened =
                [Record::Snapshot(Box::new(snapshot))].into_iter().chain(journal[cut..].iter().cloned());
            assert_eq!(knowledge(resumed(shortened)), knowledge(resumed(journal.clone())), "seed {seed}");
        }
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
        assert_eq!((snapshot.late.len(), snapshot.contributions.len()), (LATE_MAX, 4));
        assert_eq!(snapshot.ended.runs(0..u64::MAX).count(), 1);
        assert_eq!((snapshot.totals.finished, snapshot.totals.tokens), (100_000, 500_000));
    }
}
