//! A feeder is gone and another one takes over its ids.
//!
//! The coordinator's table says so. From then on the successor decides about what is held of the range, and the words of
//! the former feeder count for nothing. The successor knows nothing; it asks every replica for its inventory.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::microbatch::{Claim, Phase, Visit};
use super::{Note, Stage};
use crate::recovery_report::{INVENTORY_MAX, Inventory, Item, Stock};
use crate::{Duration, Hop, Incarnation, Lease, Message, MicrobatchId, PeerId, PeerTable, StageIndex, Time};

/// A replica may have left before this one heard of it: tables take their time.
const DOUBT_SLACK: Duration = Duration::from_secs(20);

/// When a replica of each stage left last, as this replica heard of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Departures {
    latest: BTreeMap<StageIndex, Time>,
}

impl Departures {
    /// Notes who was there `before` and is not any more.
    pub(super) fn note(&mut self, now: Time, before: &[Hop], table: &PeerTable) {
        for stage in before.iter().filter(|hop| !table.placed(hop)).filter_map(|hop| hop.stage) {
            self.latest.insert(stage, now);
        }
    }

    /// Stages of which a replica has left since.
    fn since(&self, time: Time) -> Vec<StageIndex> {
        let later = |(&stage, &left): (&StageIndex, &Time)| (left + DOUBT_SLACK > time).then_some(stage);
        self.latest.iter().filter_map(later).collect()
    }
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// What is held of ranges that have gone to a successor is its business now.
    pub(super) fn follow_successors(&mut self, now: Time) {
        let table = &self.table;
        let mut claimed = Vec::new();
        for (&id, visit) in &mut self.visits {
            let before = visit.arbiter();
            put_first(table.successor(id), &mut visit.route);
            if visit.arbiter() != before && matches!(visit.claim, Claim::Asked { .. }) {
                claimed.push(id);
            }
        }
        for id in claimed {
            self.claim(now, id);
        }
    }

    /// The successor of a feeder asks what is known here.
    pub(super) fn on_adopt(
        &mut self,
        from: PeerId,
        incarnation: Incarnation,
        (range, epoch): (MicrobatchId, u64),
        page: MicrobatchId,
    ) {
        let asked = |lease: &Lease| lease.first == range && lease.epoch == epoch;
        let mut successions = self.table.successions().iter();
        let lease = successions.find(|one| one.feeder == from && asked(&one.lease)).map(|one| one.lease);
        let Some(lease) = lease.filter(|_| self.table.feeds(from, incarnation)) else {
            // The table may be late: it asks again.
            return self.count(Note::Foreign(range));
        };
        let inventory = self.inventory(&lease, page);
        let feeder = Hop { stage: None, peer: from, incarnation };
        self.send(feeder, Message::Inventory(inventory));
    }

    fn inventory(&self, lease: &Lease, from: MicrobatchId) -> Inventory {
        let end = MicrobatchId(lease.first.0.saturating_add(lease.count));
        let ids = from.max(lease.first)..end.max(from);
        let held = self.visits.range(ids.clone()).filter(|(_, visit)| visit.trains()).map(|(&id, _)| id);
        let known: BTreeSet<_> = held.chain(self.ledger.range(ids)).collect();
        let mut open = known.into_iter().filter(|&id| !self.outcomes.contain(id));
        let items = open.by_ref().take(INVENTORY_MAX).map(|id| self.item(id)).collect();
        let Lease { first: range, epoch, .. } = *lease;
        let ended = self.outcomes.within(lease);
        Inventory { range, epoch, from, next: open.next(), stage: self.config.stage, ended, items }
    }

    fn item(&self, microbatch: MicrobatchId) -> Item {
        let visit = self.visits.get(&microbatch);
        let granted = match visit.map_or(Claim::None, |visit| visit.claim) {
            _ if self.ledger.contains(microbatch) => Some(true),
            Claim::Granted => Some(true),
            Claim::Denied => Some(false),
            Claim::None | Claim::Asked { .. } => None,
        };
        let doubted = visit.map_or_else(Vec::new, |visit| {
            // Who had it before it was lost is not known here.
            if visit.anew { self.stages() } else { self.departures.since(visit.taken) }
        });
        Item { microbatch, granted, stock: visit.map_or(Stock::Gone, Visit::stock), doubted }
    }

    fn stages(&self) -> Vec<StageIndex> {
        (0..self.config.stages).map(StageIndex).collect()
    }
}

/// Puts the successor in the place of the feeder a route begins with; `false` if it is a former feeder that sends.
pub(super) fn submit(table: &PeerTable, sender: Hop, microbatch: MicrobatchId, route: &mut [Hop]) -> bool {
    let successor = table.successor(microbatch);
    if sender.stage.is_none() {
        return successor.is_none_or(|successor| successor.peer == sender.peer);
    }
    put_first(successor, route);
    true
}

fn put_first(successor: Option<Hop>, route: &mut [Hop]) {
    if let (Some(successor), Some(feeder)) = (successor, route.first_mut())
        && feeder.peer != successor.peer
    {
        *feeder = successor;
    }
}

impl<P> Visit<P> {
    fn stock(&self) -> Stock {
        match self.phase {
            Phase::Answered(_) => Stock::Answered,
            Phase::Refused { .. } | Phase::Cancelled => Stock::Gone,
            Phase::ForwardQueued { .. }
            | Phase::Forwarding
            | Phase::Unrouted { .. }
            | Phase::Passed { .. }
            | Phase::BackwardQueued { .. }
            | Phase::Backwarding { .. } => Stock::Held,
        }
    }
}
