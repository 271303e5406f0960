//! Succession: taking over the ids of a feeder that is gone.
//!
//! The coordinator's table names the range and its successor. The successor knows nothing of the range, so it asks
//! every replica for a recovery report; a replica with that table takes no grant from the former feeder, even if it
//! still lives. A microbatch that a replica of stage 0 holds is asked for there. An injected microbatch that cannot
//! safely go on is abandoned, and counted so: no id is injected twice, and no claim is granted that a replica which has
//! left may have been granted.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::grants::gone;
use super::journal::{Continued, TakenOver};
use super::open::Open;
use super::{Action, End, Feeder, Outcome, Record};
use crate::message::CLAIM_MAX;
use crate::recovery_report::{Item, Possession, RECOVERY_ITEMS_MAX, RecoveryReport};
use crate::{
    ACK_OPEN_MAX, AckRange, BlockTally, Duration, Hop, IdSet, Instance, Lease, LeasedRange, Message,
    MicrobatchId, PeerId, Purpose, Refusal, StageIndex, Time,
};

/// Time between two requests to a replica that has not answered.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A replica that stays in the table and does not answer for so long counts as a replica that has left.
const RECOVERY_TIMEOUT: Duration = Duration::from_secs(60);
/// Ids without an outcome that are remembered of one range, at most; windows are smaller.
const KNOWN_MAX: usize = 1 << 17;

/// The ranges to take over.
#[derive(Clone, Debug, Default)]
pub(super) struct Succession {
    /// The ranges that are not fully reported, by first id.
    under_way: BTreeMap<MicrobatchId, Takeover>,
    /// The ranges that were taken over, by first id.
    done: BTreeMap<MicrobatchId, Lease>,
    /// Claims that came before the successor could decide; answered when every range is taken over.
    deferred: BTreeMap<Hop, BTreeSet<MicrobatchId>>,
    /// Denied claims whose answer only the former feeder knew.
    unheard: BTreeSet<(MicrobatchId, Hop)>,
    ask_at: Option<Time>,
}

/// One range, and the reports about it so far.
#[derive(Clone, Debug)]
struct Takeover {
    lease: Lease,
    began: Time,
    /// The replicas that owe a page of their report, and the id that the page begins at.
    owing: BTreeMap<Hop, MicrobatchId>,
    /// Stages with a replica that has not answered and never will.
    silent: BTreeSet<StageIndex>,
    /// The outcomes that the former feeder announced, as each replica heard them.
    ended: BTreeMap<Hop, IdSet>,
    known: BTreeMap<MicrobatchId, Known>,
}

/// The reports about an id without an outcome.
#[derive(Clone, Debug, Default)]
struct Known {
    reporters: BTreeSet<PeerId>,
    grants: Vec<Hop>,
    /// Stages where another replica than the reporting one has the grant.
    denied: BTreeSet<StageIndex>,
    /// The replica of stage 0 that holds the microbatch.
    held: Option<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    by: Hop,
    possession: Possession,
    /// Stages whose grant may be with a replica that has left.
    doubtful: BTreeSet<StageIndex>,
}

impl Succession {
    pub(super) fn is_over(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn ask_at(&self) -> Option<Time> {
        self.ask_at
    }

    /// Keeps a claim that cannot be decided yet; `false` if it can.
    pub(super) fn defers(&mut self, claimant: Hop, microbatch: MicrobatchId) -> bool {
        let undecided = self.is_undecided(microbatch);
        if undecided {
            let deferred = self.deferred.entry(claimant).or_default();
            if deferred.len() < CLAIM_MAX {
                deferred.insert(microbatch);
            }
        }
        undecided
    }

    /// Whether the grants of the microbatch are not known yet.
    pub(super) fn is_undecided(&self, microbatch: MicrobatchId) -> bool {
        self.under_way.values().any(|takeover| takeover.lease.contains(microbatch))
    }

    pub(super) fn took_over(&self, microbatch: MicrobatchId) -> bool {
        let before = self.done.range(..=microbatch).next_back();
        before.is_some_and(|(_, lease)| lease.contains(microbatch))
    }

    /// A former start of the feeder took the range over.
    pub(super) fn remember(&mut self, lease: Lease) {
        self.done.insert(lease.first, lease);
    }

    pub(super) fn give_up(&mut self) {
        self.under_way.clear();
        self.ask_at = None;
    }
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A newer table: begins the takeover of ranges that it gives to this feeder, and ends if a range of this feeder
    /// went to another.
    pub(super) fn follow_successions(&mut self, now: Time) {
        let me = self.config.me.peer;
        let taken_over = |leased: &&LeasedRange| leased.is_taken_over();
        for succession in self.table.leases().iter().filter(taken_over).copied().collect::<Vec<_>>() {
            let lease = succession.lease;
            if succession.feeder != me {
                if self.announcement.covers(lease.first) {
                    // From now on the other feeder decides about these ids.
                    return self.finish(End::Succeeded { by: succession.feeder });
                }
                continue;
            }
            let known = self.succession.under_way.get(&lease.first).map(|takeover| takeover.lease.epoch);
            let newest = known.max(self.succession.done.get(&lease.first).map(|done| done.epoch));
            if !self.stopped && succession.is_open() && newest < Some(lease.epoch) {
                self.succession
                    .under_way
                    .insert(lease.first, Takeover::new(now, lease, &self.table.replicas()));
                self.succession.ask_at = Some(now);
                self.progress.begin_takeover(now);
            }
        }
        for takeover in self.succession.under_way.values_mut() {
            takeover.give_up_on(|hop| !self.table.placed(hop));
        }
    }

    /// Asks the replicas that owe a report, and takes over the ranges that are fully reported.
    pub(super) fn take_over_ranges(&mut self, now: Time) {
        self.request_reports(now);
        let complete = |takeover: &Takeover| takeover.owing.is_empty();
        while let Some(first) =
            self.succession.under_way.iter().find(|(_, takeover)| complete(takeover)).map(|(&first, _)| first)
        {
            if let Some(takeover) = self.succession.under_way.remove(&first) {
                self.conclude(takeover.conclude());
            }
        }
        if self.succession.is_over() {
            self.succession.ask_at = None;
            let mut deferred = std::mem::take(&mut self.succession.deferred);
            deferred.retain(|claimant, _| self.may_claim(claimant));
            for (claimant, ids) in deferred {
                self.answer_claims(now, claimant, ids.into_iter().collect(), Vec::new());
            }
        }
    }

    fn request_reports(&mut self, now: Time) {
        if self.succession.ask_at.is_none_or(|at| at > now) {
            return;
        }
        self.succession.ask_at = Some(now + ASK_EVERY);
        for takeover in self.succession.under_way.values_mut() {
            if takeover.began + RECOVERY_TIMEOUT <= now {
                takeover.give_up_on(|_| true);
            }
            let requests = takeover.owing.iter().map(|(hop, &page)| takeover.request(hop, page));
            self.actions.extend(requests);
        }
    }

    /// A page of a recovery report arrived; the next page is requested at once.
    pub(super) fn on_recovery_report(&mut self, from: Instance, report: RecoveryReport) {
        let hop = Hop::replica(report.stage, from);
        let takeover = self.succession.under_way.get_mut(&report.first);
        let Some(takeover) = takeover.filter(|takeover| takeover.expects(&hop, &report)) else {
            return self.counts.foreign += 1;
        };
        let RecoveryReport { from: page, next, ended, items, .. } = report;
        takeover.note_ended(hop, &ended);
        let items = takeover.of_page(page, items);
        let last = items.iter().map(|item| item.microbatch).max();
        items.into_iter().for_each(|item| takeover.learn(hop, item));
        // Each page but the last brings items, so a report has an end.
        let goes_on = |next: &MicrobatchId| *next > page && last.is_some_and(|last| last < *next);
        match next.filter(goes_on).filter(|_| takeover.known.len() < KNOWN_MAX) {
            Some(next) => {
                takeover.owing.insert(hop, next);
                let request = takeover.request(&hop, next);
                self.actions.push_back(request);
            }
            None => {
                takeover.owing.remove(&hop);
            }
        }
    }

    /// Counts claims that are denied although no known replica has the grant: the former feeder had given it to a
    /// replica that left, or to the claimant. The contribution may be lost.
    pub(super) fn count_unheard(&mut self, claimant: Hop, denied: &[MicrobatchId]) {
        for &id in denied {
            let unknown = self.succession.took_over(id) && !self.is_granted(id, claimant.stage);
            if unknown
                && self.succession.unheard.len() < KNOWN_MAX
                && self.succession.unheard.insert((id, claimant))
            {
                self.counts.contributions_lost += 1;
            }
        }
    }

    /// Whether a known replica has the grant.
    fn is_granted(&self, microbatch: MicrobatchId, stage: Option<StageIndex>) -> bool {
        let mut grants = self.grants.of(microbatch).iter();
        let granted = grants.find(|granted| granted.stage == stage);
        granted.is_some_and(|hop| stage.map(gone).as_ref() != Some(hop))
    }

    fn conclude(&mut self, taken: TakenOver) {
        self.actions.push_back(Action::Journal(Record::TakenOver(taken.clone())));
        self.apply_takeover(&taken);
        let by = self.config.hop();
        for microbatch in taken.abandoned {
            let outcome = Outcome::Refused { by, reason: Refusal::Abandoned };
            self.actions.push_back(Action::Outcome { microbatch, outcome });
        }
        for Continued { microbatch, .. } in taken.continued {
            self.window.readmit();
            self.actions.push_back(Action::Draw { microbatch, purpose: Purpose::Train });
        }
    }

    /// Applies the decisions about a range. A continued microbatch is open as after a restart: its holder is asked for
    /// it.
    fn apply_takeover(&mut self, taken: &TakenOver) {
        let TakenOver { lease, ended, end, continued, abandoned } = taken;
        let (open, refused) = (continued.len() as u64, abandoned.len() as u64);
        self.succession.remember(*lease);
        self.announcement.take_over(lease, *end);
        taken.ended_runs().into_iter().for_each(|run| self.announcement.end_run(run));
        self.admitted += ended + open + refused;
        self.progress.restore(BlockTally {
            block: lease.first.block(),
            leased: ended + open + refused,
            injected: ended + open + refused,
            settled: ended + refused,
        });
        self.counts.inherited += ended;
        self.counts.injected += open + refused;
        self.counts.in_flight += open;
        self.counts.refused += refused;
        self.counts.abandoned += refused;
        for Continued { microbatch, to, grants } in continued {
            self.grants.open(*microbatch);
            for &hop in grants {
                self.grants.claim(*microbatch, hop);
                self.confirm(hop);
            }
            self.handoff.remember(*microbatch, *to);
            self.handoff.mark_failed(*microbatch);
            self.open.insert(*microbatch, Open { recalled: true, ..Open::new(Purpose::Train) });
        }
    }
}

impl Takeover {
    fn new(now: Time, lease: Lease, replicas: &[Hop]) -> Self {
        Self {
            lease,
            began: now,
            owing: replicas.iter().map(|&hop| (hop, lease.first)).collect(),
            silent: BTreeSet::new(),
            ended: BTreeMap::new(),
            known: BTreeMap::new(),
        }
    }

    fn request<P: Default>(&self, hop: &Hop, from: MicrobatchId) -> Action<P> {
        let Lease { first, epoch, .. } = self.lease;
        Action::Send { to: hop.peer(), envelope: Message::RecoverRange { first, epoch, from }.into() }
    }

    fn expects(&self, hop: &Hop, report: &RecoveryReport) -> bool {
        report.epoch == self.lease.epoch && self.owing.get(hop) == Some(&report.from)
    }

    fn note_ended(&mut self, by: Hop, ended: &[AckRange]) {
        let ids = self.lease.ids();
        let heard = self.ended.entry(by).or_default();
        for run in ended.iter().flat_map(AckRange::runs) {
            heard.insert_run(run.start.max(ids.start)..run.end.min(ids.end));
        }
        heard.keep_last_runs(KNOWN_MAX);
    }

    /// The ids that had their outcome: at least two replicas have heard so, for one alone may lie. If only one replica
    /// has answered, its word counts.
    fn agreed_outcomes(&self) -> IdSet {
        let needed = self.ended.len().min(2);
        let runs = self.ended.values().flat_map(|heard| heard.runs(self.lease.ids()));
        let mut edges: Vec<_> = runs.flat_map(|run| [(run.start, true), (run.end, false)]).collect();
        edges.sort_unstable();
        let (mut agreed, mut voices) = (IdSet::default(), 0_usize);
        for (index, &(from, begins)) in edges.iter().enumerate() {
            voices = if begins { voices + 1 } else { voices.saturating_sub(1) };
            if let Some(&(to, _)) = edges.get(index + 1).filter(|_| voices >= needed) {
                agreed.insert_run(from..to);
            }
        }
        agreed
    }

    /// Replicas that are `gone` will not report.
    fn give_up_on(&mut self, gone: impl Fn(&Hop) -> bool) {
        for (hop, _) in self.owing.extract_if(.., |hop, _| gone(hop)) {
            self.silent.extend(hop.stage);
        }
    }

    /// The items that may stand on a page that begins at an id.
    fn of_page(&self, page: MicrobatchId, items: Vec<Item>) -> Vec<Item> {
        let counts = |item: &Item| item.microbatch >= page && self.lease.contains(item.microbatch);
        items.into_iter().take(RECOVERY_ITEMS_MAX).filter(counts).collect()
    }

    fn learn(&mut self, by: Hop, item: Item) {
        let known = self.known.entry(item.microbatch).or_default();
        known.reporters.insert(by.peer());
        let stages = || by.stage.into_iter();
        match item.granted {
            Some(true) => known.grants.push(by),
            Some(false) => known.denied.extend(stages()),
            None => {}
        }
        if by.stage == Some(StageIndex(0)) && item.possession != Possession::Gone {
            let doubtful = item.may_have_been_granted.into_iter().collect();
            let held = Held { by, possession: item.possession, doubtful };
            known.held = Some(held.or_better(known.held.take()));
        }
    }

    /// The id after the last that was injected, as far as reports tell. A feeder injects no id [`ACK_OPEN_MAX`] or more
    /// beyond one without an outcome. So of ids that are further apart only some are true, and those are believed that most
    /// replicas know of: a liar may have made up an id, and handed it to others.
    fn known_end(&self) -> u64 {
        let mut clusters: Vec<(BTreeSet<&PeerId>, u64)> = Vec::new();
        for (&MicrobatchId(id), known) in &self.known {
            match clusters.last_mut().filter(|(_, end)| id - *end < ACK_OPEN_MAX as u64) {
                Some((reporters, end)) => {
                    reporters.extend(&known.reporters);
                    *end = id + 1;
                }
                None => clusters.push((known.reporters.iter().collect(), id + 1)),
            }
        }
        let believed = clusters.iter().rev().max_by_key(|(reporters, _)| reporters.len());
        believed.map_or(self.lease.first.0, |&(_, end)| end)
    }

    fn conclude(self) -> TakenOver {
        let ended = self.agreed_outcomes();
        let end = MicrobatchId(self.known_end().max(ended.end()));
        let (mut continued, mut abandoned) = (Vec::new(), Vec::new());
        let Self { lease, silent, mut known, .. } = self;
        // Ids are injected in order, so every id before the last known id was, even if no replica knows it.
        let open = ended.gaps(lease.first.0..end.0).flatten().take(KNOWN_MAX);
        for microbatch in open.map(MicrobatchId) {
            let known = known.remove(&microbatch).unwrap_or_default();
            match known.go_on(microbatch, &silent) {
                Some(one) => continued.push(one),
                None => abandoned.push(microbatch),
            }
        }
        let ended = lease.first.index().saturating_add(ended.len());
        TakenOver { lease, ended, end, continued, abandoned }
    }
}

impl Held {
    /// The holder with less doubt.
    fn or_better(self, other: Option<Self>) -> Self {
        let doubt = |held: &Self| (held.possession != Possession::Returned, held.doubtful.len());
        match other {
            Some(other) if doubt(&other) < doubt(&self) => other,
            Some(_) | None => self,
        }
    }
}

impl Known {
    /// The microbatch to continue; `None` if no replica of stage 0 holds it, or a replica that is not known may have
    /// the grant of a stage. A gradient that has come back names the replicas of every stage by its path.
    fn go_on(self, microbatch: MicrobatchId, silent: &BTreeSet<StageIndex>) -> Option<Continued> {
        let Held { by, possession, doubtful } = self.held?;
        let granted: BTreeSet<_> = self.grants.iter().filter_map(|hop| hop.stage).collect();
        let open: BTreeSet<_> =
            doubtful.union(silent).filter(|stage| !granted.contains(stage)).copied().collect();
        if possession != Possession::Returned && !open.is_subset(&self.denied) {
            return None;
        }
        let closed =
            open.union(&self.denied).filter(|stage| !granted.contains(stage)).map(|&stage| gone(stage));
        let grants = self.grants.iter().copied().chain(closed).collect();
        Some(Continued { microbatch, to: by, grants })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b};

    fn id(id: u64) -> MicrobatchId {
        MicrobatchId(id)
    }

    fn takeover(replicas: &[Hop]) -> Takeover {
        let lease = Lease { first: id(10), count: 100, epoch: 1 };
        Takeover::new(Time(0), lease, replicas)
    }

    fn item(microbatch: u64, granted: Option<bool>, possession: Possession, doubtful: &[u16]) -> Item {
        let may_have_been_granted = doubtful.iter().copied().map(StageIndex).collect();
        Item { microbatch: id(microbatch), granted, possession, may_have_been_granted }
    }

    fn continued(microbatch: u64, grants: Vec<Hop>) -> Continued {
        Continued { microbatch: id(microbatch), to: a(0), grants }
    }

    #[test]
    fn a_microbatch_held_at_stage_0_goes_on_and_others_are_abandoned() {
        let mut takeover = takeover(&[a(0), a(1)]);
        for hop in [a(0), a(1)] {
            takeover.note_ended(hop, &[AckRange { first: 10, end: 15, open: vec![12, 13] }]);
        }
        takeover.learn(a(0), item(12, None, Possession::Held, &[]));
        takeover.learn(a(1), item(12, Some(true), Possession::Held, &[]));
        takeover.learn(a(1), item(16, None, Possession::Held, &[]));
        takeover.learn(a(0), item(17, None, Possession::Gone, &[]));
        let others = [11, 900].map(|id| item(id, Some(true), Possession::Held, &[]));
        assert_eq!(takeover.of_page(id(12), others.into()), [], "on an earlier page, and of another lease");
        let taken = takeover.conclude();
        assert_eq!((taken.ended, taken.end), (10 + 3, id(18)), "those before the range included");
        assert_eq!(taken.continued, [continued(12, vec![a(1)])]);
        assert_eq!(
            taken.abandoned,
            [13, 15, 16, 17].map(id),
            "13 and 15 were injected, and no replica knows them"
        );
    }

    #[test]
    fn an_id_that_a_liar_made_up_far_beyond_the_others_ends_no_microbatch() {
        let lease = Lease { first: id(10), count: 1 << 40, epoch: 1 };
        let mut takeover = Takeover::new(Time(0), lease, &[a(0), a(1), b(1)]);
        takeover.learn(a(0), item(12, None, Possession::Held, &[]));
        takeover.learn(b(1), item(12, Some(true), Possession::Held, &[]));
        for liar_or_deceived in [a(1), b(1)] {
            takeover.learn(liar_or_deceived, item(1 << 39, None, Possession::Held, &[]));
        }
        let taken = takeover.conclude();
        assert_eq!(
            (taken.ended, taken.end),
            (10, id(13)),
            "as many replicas know of both, and the lower is believed"
        );
        assert_eq!(taken.abandoned, [10, 11].map(id));
        assert_eq!(taken.continued, [continued(12, vec![b(1)])]);
    }

    #[test]
    fn one_replica_ends_no_microbatch() {
        let all = [AckRange { first: 0, end: u64::MAX, open: Vec::new() }];
        let mut takeover = takeover(&[a(0), a(1), b(1)]);
        takeover.note_ended(b(1), &all);
        takeover.note_ended(a(0), &[AckRange { first: 10, end: 12, open: Vec::new() }]);
        takeover.note_ended(a(1), &[]);
        takeover.learn(a(0), item(12, None, Possession::Held, &[]));
        let taken = takeover.conclude();
        assert_eq!((taken.ended, taken.end, taken.abandoned.len()), (10 + 2, id(13), 0));
        assert_eq!(taken.continued, [continued(12, Vec::new())]);

        let mut alone = Takeover::new(Time(0), Lease { first: id(10), count: 100, epoch: 1 }, &[b(1)]);
        alone.note_ended(b(1), &all);
        assert_eq!(
            alone.conclude().ended,
            10 + 100,
            "no other replica knows better, and the lease bounds its word"
        );
    }

    #[test]
    fn no_claim_is_granted_that_a_replica_which_left_may_have_been_granted() {
        let mut takeover = takeover(&[a(0), a(1)]);
        takeover.learn(a(0), item(10, None, Possession::Held, &[1]));
        takeover.learn(a(0), item(11, None, Possession::Held, &[1]));
        takeover.learn(a(1), item(11, Some(true), Possession::Held, &[]));
        takeover.learn(a(0), item(12, None, Possession::Held, &[1]));
        takeover.learn(a(1), item(12, Some(false), Possession::Held, &[]));
        takeover.learn(a(0), item(13, Some(true), Possession::Returned, &[1]));
        let taken = takeover.conclude();
        assert_eq!(taken.abandoned, [id(10)]);
        let one = gone(StageIndex(1));
        let expected = [(11, vec![a(1)]), (12, vec![one]), (13, vec![a(0), one])];
        assert_eq!(taken.continued, expected.map(|(id, grants)| continued(id, grants)));
    }

    #[test]
    fn a_replica_that_leaves_without_a_report_casts_doubt() {
        let mut takeover = takeover(&[a(0), a(1)]);
        takeover.learn(a(0), item(10, Some(true), Possession::Held, &[]));
        takeover.give_up_on(|hop| *hop == a(1));
        assert_eq!(takeover.owing.keys().copied().collect::<Vec<_>>(), [a(0)]);
        assert_eq!(takeover.conclude().abandoned, [id(10)]);
    }

    #[test]
    fn of_two_holders_the_one_with_less_doubt_is_asked() {
        let mut takeover = takeover(&[a(0), b(0)]);
        takeover.learn(b(0), item(10, None, Possession::Held, &[0, 1]));
        takeover.learn(a(0), item(10, None, Possession::Held, &[]));
        takeover.learn(b(0), item(11, None, Possession::Held, &[]));
        takeover.learn(a(0), item(11, None, Possession::Returned, &[0, 1]));
        let held_by: Vec<_> = takeover.conclude().continued.iter().map(|one| one.to).collect();
        assert_eq!(held_by, [a(0), a(0)]);
    }
}
