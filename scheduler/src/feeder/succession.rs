//! Taking over the ids of a feeder that is gone.
//!
//! The coordinator's table names the range and its successor. The successor knows nothing of it, so it asks every
//! replica for its inventory; each of them takes no more grants from the former feeder, whatever it may still say. What
//! is then known to be held at stage 0 goes on there. What was injected and cannot safely go on is abandoned, and
//! counted so: nothing is injected twice, and nothing is granted of which somebody who left may have had the grant.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::grants::gone;
use super::journal::{Continued, TakenOver};
use super::open::Open;
use super::{Action, Feeder, Outcome, Record};
use crate::message::CLAIM_MAX;
use crate::recovery_report::{INVENTORY_MAX, Inventory, Item, Stock};
use crate::{
    Duration, Hop, Incarnation, Lease, Message, MicrobatchId, PeerId, Purpose, Refusal, Span, StageIndex,
    Time,
};

/// Replicas that have not answered are asked again this often.
const ASK_EVERY: Duration = Duration::from_secs(1);
/// A replica that stays in the table and does not answer for so long is doubted like one that has left.
pub const ADOPTION_PATIENCE: Duration = Duration::from_secs(60);
/// Ids without an outcome that are listened to in one range; windows are smaller.
const KNOWN_MAX: usize = 1 << 17;

/// The ranges to take over.
#[derive(Clone, Debug, Default)]
pub(super) struct Succession {
    /// By first id.
    under_way: BTreeMap<MicrobatchId, Takeover>,
    /// The ranges that were taken over, by first id.
    done: BTreeMap<MicrobatchId, Lease>,
    /// Claims that came before it was known what to say; answered at the end.
    early: BTreeMap<Hop, BTreeSet<MicrobatchId>>,
    /// Claims that came too late for the former feeder's answer.
    unheard: BTreeSet<(MicrobatchId, Hop)>,
    ask_at: Option<Time>,
}

/// One range and what is known of it so far.
#[derive(Clone, Debug)]
struct Takeover {
    lease: Lease,
    began: Time,
    /// Who owes which page.
    owing: BTreeMap<Hop, MicrobatchId>,
    /// Stages of which a replica has not answered and never will.
    silent: BTreeSet<StageIndex>,
    ended: Vec<Span>,
    known: BTreeMap<MicrobatchId, Known>,
}

/// What is known of an id without an outcome.
#[derive(Clone, Debug, Default)]
struct Known {
    grants: Vec<Hop>,
    /// Stages where somebody else than the answering replica has the grant.
    denied: BTreeSet<StageIndex>,
    /// Who holds it at stage 0.
    held: Option<Held>,
}

#[derive(Clone, Debug)]
struct Held {
    by: Hop,
    stock: Stock,
    doubted: BTreeSet<StageIndex>,
}

impl Succession {
    pub(super) fn is_over(&self) -> bool {
        self.under_way.is_empty()
    }

    pub(super) fn ask_at(&self) -> Option<Time> {
        self.ask_at
    }

    /// Keeps a claim of which nobody can say yet what became of its microbatch; `false` if it can be answered.
    pub(super) fn defers(&mut self, claimant: Hop, microbatch: MicrobatchId) -> bool {
        let undecided = self.under_way.values().any(|takeover| takeover.lease.contains(microbatch));
        if undecided {
            let early = self.early.entry(claimant).or_default();
            if early.len() < CLAIM_MAX {
                early.insert(microbatch);
            }
        }
        undecided
    }

    fn took_over(&self, microbatch: MicrobatchId) -> bool {
        let before = self.done.range(..=microbatch).next_back();
        before.is_some_and(|(_, lease)| lease.contains(microbatch))
    }

    pub(super) fn give_up(&mut self) {
        self.under_way.clear();
        self.ask_at = None;
    }
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A newer table: perhaps there is something to take over, or somebody has taken over what was here.
    pub(super) fn follow_successions(&mut self, now: Time) {
        let (me, replicas) = (self.config.peer, self.table.replicas());
        for succession in self.table.successions().to_vec() {
            let lease = succession.lease;
            if succession.feeder != me {
                if self.announcement.covers(lease.first) {
                    return self.yield_to(succession.feeder);
                }
                continue;
            }
            let known = self.succession.under_way.get(&lease.first).map(|takeover| takeover.lease.epoch);
            let newest = known.max(self.succession.done.get(&lease.first).map(|done| done.epoch));
            if !self.stopped && newest < Some(lease.epoch) {
                self.succession.under_way.insert(lease.first, Takeover::new(now, lease, &replicas));
                self.succession.ask_at = Some(now);
            }
        }
        for takeover in self.succession.under_way.values_mut() {
            takeover.doubt(|hop| !replicas.contains(hop));
        }
    }

    /// Another feeder decides about these ids now: whatever is said here counts for nothing any more.
    fn yield_to(&mut self, by: PeerId) {
        self.succeeded = true;
        self.actions.push_back(Action::Succeeded { by });
    }

    /// Asks those who owe an answer, and takes over what nobody owes one about.
    pub(super) fn take_over_ranges(&mut self, now: Time) {
        self.ask_for_inventories(now);
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
            for (claimant, early) in std::mem::take(&mut self.succession.early) {
                self.on_claim(claimant, &early.into_iter().collect::<Vec<_>>());
            }
        }
    }

    fn ask_for_inventories(&mut self, now: Time) {
        if self.succession.ask_at.is_none_or(|at| at > now) {
            return;
        }
        self.succession.ask_at = Some(now + ASK_EVERY);
        for takeover in self.succession.under_way.values_mut() {
            if takeover.began + ADOPTION_PATIENCE <= now {
                takeover.doubt(|_| true);
            }
            let asks = takeover.owing.iter().map(|(hop, &page)| takeover.ask(hop, page));
            self.actions.extend(asks);
        }
    }

    /// A page of what a replica knows; the next one is asked for at once.
    pub(super) fn on_inventory(&mut self, from: PeerId, incarnation: Incarnation, inventory: Inventory) {
        let hop = Hop { stage: Some(inventory.stage), peer: from, incarnation };
        let takeover = self.succession.under_way.get_mut(&inventory.range);
        let Some(takeover) = takeover.filter(|takeover| takeover.expects(&hop, &inventory)) else {
            return self.counts.foreign += 1;
        };
        let Inventory { from: page, next, ended, items, .. } = inventory;
        takeover.ended.extend(ended);
        for item in items.into_iter().take(INVENTORY_MAX) {
            takeover.learn(hop, item);
        }
        match next.filter(|&next| next > page && takeover.known.len() < KNOWN_MAX) {
            Some(next) => {
                takeover.owing.insert(hop, next);
                let ask = takeover.ask(&hop, next);
                self.actions.push_back(ask);
            }
            None => {
                takeover.owing.remove(&hop);
            }
        }
    }

    /// Whether a claim to what had its outcome already was granted, the former feeder took to its grave. It is denied, so
    /// the contribution may be lost.
    pub(super) fn count_unheard(&mut self, claimant: Hop, denied: &[MicrobatchId]) {
        for &id in denied {
            let unknown = self.succession.took_over(id) && self.grants.of(id).is_empty();
            if unknown
                && self.succession.unheard.len() < KNOWN_MAX
                && self.succession.unheard.insert((id, claimant))
            {
                self.counts.contributions_lost += 1;
            }
        }
    }

    fn conclude(&mut self, taken: TakenOver) {
        self.actions.push_back(Action::Journal(Record::TakenOver(taken.clone())));
        self.remember_taken_over(&taken);
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

    /// What is continued is open as after a restart: who had it is asked for it.
    pub(super) fn remember_taken_over(&mut self, taken: &TakenOver) {
        let TakenOver { lease, ended, end, continued, abandoned } = taken;
        let (open, refused) = (continued.len() as u64, abandoned.len() as u64);
        self.succession.done.insert(lease.first, *lease);
        self.announcement.take_over(lease, *end, continued.iter().map(|one| one.microbatch));
        self.admitted += ended + open + refused;
        self.counts.inherited += ended;
        self.counts.injected += open + refused;
        self.counts.in_flight += open;
        self.counts.refused += refused;
        self.counts.abandoned += refused;
        for Continued { microbatch, to, grants } in continued {
            self.grants.open(*microbatch);
            for &hop in grants {
                self.grants.claim(*microbatch, hop);
                self.contributions.grant(hop, self.rounds.called());
            }
            let mut open = Open::new(Purpose::Train);
            open.sendings.add(*to);
            (open.recalled, open.lost) = (true, true);
            self.open.insert(*microbatch, open);
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
            ended: Vec::new(),
            known: BTreeMap::new(),
        }
    }

    fn ask<P>(&self, hop: &Hop, from: MicrobatchId) -> Action<P> {
        let message = Message::Adopt { range: self.lease.first, epoch: self.lease.epoch, from };
        Action::Send { to: hop.peer, message }
    }

    fn expects(&self, hop: &Hop, inventory: &Inventory) -> bool {
        inventory.epoch == self.lease.epoch && self.owing.get(hop) == Some(&inventory.from)
    }

    /// Nothing more is heard of those who are `gone`.
    fn doubt(&mut self, gone: impl Fn(&Hop) -> bool) {
        for (hop, _) in self.owing.extract_if(.., |hop, _| gone(hop)) {
            self.silent.extend(hop.stage);
        }
    }

    fn learn(&mut self, by: Hop, item: Item) {
        if !self.lease.contains(item.microbatch) {
            return;
        }
        let known = self.known.entry(item.microbatch).or_default();
        let stages = || by.stage.into_iter();
        match item.granted {
            Some(true) => known.grants.push(by),
            Some(false) => known.denied.extend(stages()),
            None => {}
        }
        if by.stage == Some(StageIndex(0)) && item.stock != Stock::Gone {
            let held = Held { by, stock: item.stock, doubted: item.doubted.into_iter().collect() };
            known.held = Some(held.or_better(known.held.take()));
        }
    }

    fn conclude(self) -> TakenOver {
        let ended = Ended::of(&self.lease, &self.ended);
        let last = self.known.last_key_value().map_or(self.lease.first.0, |(id, _)| id.0 + 1);
        let end = MicrobatchId(last.max(ended.end()));
        let (mut continued, mut abandoned) = (Vec::new(), Vec::new());
        let Self { lease, silent, mut known, .. } = self;
        // Ids are injected in order, so those before the last known one were, even if nobody knows of them.
        for microbatch in ended.missing(lease.first, end).take(KNOWN_MAX) {
            let known = known.remove(&microbatch).unwrap_or_default();
            match known.go_on(microbatch, &silent) {
                Some(one) => continued.push(one),
                None => abandoned.push(microbatch),
            }
        }
        TakenOver { lease, ended: ended.count(), end, continued, abandoned }
    }
}

impl Held {
    /// The one from whom it can go on with less doubt.
    fn or_better(self, other: Option<Self>) -> Self {
        let doubt = |held: &Self| (held.stock != Stock::Answered, held.doubted.len());
        match other {
            Some(other) if doubt(&other) < doubt(&self) => other,
            Some(_) | None => self,
        }
    }
}

impl Known {
    /// How it goes on, if it can: it is held at stage 0, and of each stage it is known who has the grant, or that nobody
    /// can have it. Where the gradient is there already, its path tells the rest.
    fn go_on(self, microbatch: MicrobatchId, silent: &BTreeSet<StageIndex>) -> Option<Continued> {
        let Held { by, stock, doubted } = self.held?;
        let granted: BTreeSet<_> = self.grants.iter().filter_map(|hop| hop.stage).collect();
        let open: BTreeSet<_> =
            doubted.union(silent).filter(|stage| !granted.contains(stage)).copied().collect();
        if stock != Stock::Answered && !open.is_subset(&self.denied) {
            return None;
        }
        let closed =
            open.union(&self.denied).filter(|stage| !granted.contains(stage)).map(|&stage| gone(stage));
        let grants = self.grants.iter().copied().chain(closed).collect();
        Some(Continued { microbatch, to: by, grants })
    }
}

/// The ids of a range that have their outcome, as the former feeder announced them.
struct Ended {
    /// Disjoint, ascending, half-open.
    runs: Vec<(u64, u64)>,
}

impl Ended {
    fn of(lease: &Lease, spans: &[Span]) -> Self {
        let (first, end) = (lease.first.0, lease.first.0.saturating_add(lease.count));
        let bits = |span: &Span| {
            let (below, span) = (span.below, span.clone());
            let ids = below..below.saturating_add(8 * span.beyond.len() as u64);
            ids.filter(move |&id| span.contains(MicrobatchId(id))).map(|id| (id, id + 1))
        };
        let told = spans.iter().flat_map(|span| std::iter::once((span.first, span.below)).chain(bits(span)));
        let mut told: Vec<_> =
            told.map(|(from, to)| (from.max(first), to.min(end))).filter(|(from, to)| from < to).collect();
        told.sort_unstable();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for (from, to) in told {
            match runs.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                Some(_) | None => runs.push((from, to)),
            }
        }
        Self { runs }
    }

    /// The ids of a range that are not among them.
    fn missing(&self, first: MicrobatchId, end: MicrobatchId) -> impl Iterator<Item = MicrobatchId> {
        let begins = std::iter::once(first.0).chain(self.runs.iter().map(|run| run.1));
        let ends = self.runs.iter().map(|run| run.0).chain([end.0]);
        begins.zip(ends).flat_map(|(from, to)| from..to).map(MicrobatchId)
    }

    fn count(&self) -> u64 {
        self.runs.iter().map(|(from, to)| to - from).sum()
    }

    fn end(&self) -> u64 {
        self.runs.last().map_or(0, |&(_, to)| to)
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

    fn item(microbatch: u64, granted: Option<bool>, stock: Stock, doubted: &[u16]) -> Item {
        let doubted = doubted.iter().copied().map(StageIndex).collect();
        Item { microbatch: id(microbatch), granted, stock, doubted }
    }

    fn continued(microbatch: u64, grants: Vec<Hop>) -> Continued {
        Continued { microbatch: id(microbatch), to: a(0), grants }
    }

    #[test]
    fn what_stage_0_holds_goes_on_and_what_it_does_not_is_abandoned() {
        let mut takeover = takeover(&[a(0), a(1)]);
        takeover.ended = vec![Span { first: 10, below: 12, beyond: vec![0b100] }];
        takeover.learn(a(0), item(12, None, Stock::Held, &[]));
        takeover.learn(a(1), item(12, Some(true), Stock::Held, &[]));
        takeover.learn(a(1), item(16, None, Stock::Held, &[]));
        takeover.learn(a(0), item(17, None, Stock::Gone, &[]));
        takeover.learn(a(1), item(900, Some(true), Stock::Held, &[]));
        let taken = takeover.conclude();
        assert_eq!((taken.ended, taken.end), (3, id(18)));
        assert_eq!(taken.continued, [continued(12, vec![a(1)])]);
        assert_eq!(
            taken.abandoned,
            [13, 15, 16, 17].map(id),
            "13 and 15 were injected, and nobody knows them"
        );
    }

    #[test]
    fn nothing_is_granted_of_which_a_replica_that_left_may_have_the_grant() {
        let mut takeover = takeover(&[a(0), a(1)]);
        takeover.learn(a(0), item(10, None, Stock::Held, &[1]));
        takeover.learn(a(0), item(11, None, Stock::Held, &[1]));
        takeover.learn(a(1), item(11, Some(true), Stock::Held, &[]));
        takeover.learn(a(0), item(12, None, Stock::Held, &[1]));
        takeover.learn(a(1), item(12, Some(false), Stock::Held, &[]));
        takeover.learn(a(0), item(13, Some(true), Stock::Answered, &[1]));
        let taken = takeover.conclude();
        assert_eq!(taken.abandoned, [id(10)]);
        let one = gone(StageIndex(1));
        let expected = [(11, vec![a(1)]), (12, vec![one]), (13, vec![a(0), one])];
        assert_eq!(taken.continued, expected.map(|(id, grants)| continued(id, grants)));
    }

    #[test]
    fn who_leaves_without_an_answer_is_doubted() {
        let mut takeover = takeover(&[a(0), a(1)]);
        takeover.learn(a(0), item(10, Some(true), Stock::Held, &[]));
        takeover.doubt(|hop| *hop == a(1));
        assert_eq!(takeover.owing.keys().copied().collect::<Vec<_>>(), [a(0)]);
        assert_eq!(takeover.conclude().abandoned, [id(10)]);
    }

    #[test]
    fn of_two_holders_the_one_with_less_doubt_is_asked() {
        let mut takeover = takeover(&[a(0), b(0)]);
        takeover.learn(b(0), item(10, None, Stock::Held, &[0, 1]));
        takeover.learn(a(0), item(10, None, Stock::Held, &[]));
        takeover.learn(b(0), item(11, None, Stock::Held, &[]));
        takeover.learn(a(0), item(11, None, Stock::Answered, &[0, 1]));
        let held_by: Vec<_> = takeover.conclude().continued.iter().map(|one| one.to).collect();
        assert_eq!(held_by, [a(0), a(0)]);
    }
}
