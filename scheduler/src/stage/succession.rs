//! A feeder is gone and a successor takes over its ids.
//!
//! The coordinator's table names the successor. From then on the successor decides about the microbatches of the range,
//! and messages of the former feeder are ignored. The successor knows nothing of the range: it asks every replica for a
//! recovery report.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::microbatch::{ClaimState, Microbatch, Phase};
use super::{Note, Stage};
use crate::recovery_report::{Item, Possession, RECOVERY_ITEMS_MAX, RecoveryReport};
use crate::{Duration, Hop, Instance, Lease, Message, MicrobatchId, PeerTable, StageIndex, Time};

/// The departure of a replica may reach this replica so much later: tables take their time.
const TABLE_DELAY_MAX: Duration = Duration::from_secs(20);

/// For each stage, the time at which this replica last saw a replica leave.
#[derive(Clone, Debug, Default)]
pub(super) struct DepartureLog {
    latest: BTreeMap<StageIndex, Time>,
}

impl DepartureLog {
    /// Notes the stages of the replicas that have `departed`.
    pub(super) fn note(&mut self, now: Time, departed: &[Hop]) {
        for stage in departed.iter().filter_map(|hop| hop.stage) {
            self.latest.insert(stage, now);
        }
    }

    /// Stages of which a replica has left since `time`.
    fn since(&self, time: Time) -> Vec<StageIndex> {
        let later = |(&stage, &left): (&StageIndex, &Time)| (left + TABLE_DELAY_MAX > time).then_some(stage);
        self.latest.iter().filter_map(later).collect()
    }
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// Replaces the former feeder by its successor in every microbatch held, and repeats the open claims. What was set
    /// aside waits for the executor again, even if its claim was denied: upstream waits for the gradient.
    pub(super) fn follow_successors(&mut self, now: Time) {
        let table = &self.table;
        let mut inherited = Vec::new();
        for (&id, held) in &mut self.microbatches {
            let before = held.feeder();
            put_first(table.feeder_of(id), &mut held.route);
            if held.feeder() != before {
                held.claimed_since = None;
                inherited.push((id, matches!(held.claim, ClaimState::Claimed { .. })));
            }
        }
        for (id, is_claimed) in inherited {
            if is_claimed {
                self.claim(now, id);
            }
            self.queue_again(id);
        }
    }

    /// The successor of a feeder asks for a recovery report.
    pub(super) fn on_recover_range(
        &mut self,
        from: Instance,
        (first, epoch): (MicrobatchId, u64),
        page: MicrobatchId,
    ) {
        let asked = |lease: &Lease| lease.first == first && lease.epoch == epoch;
        let mut taken_over = self.table.leases().iter().filter(|leased| leased.is_taken_over());
        let lease = taken_over.find(|one| one.feeder == from.peer && asked(&one.lease)).map(|one| one.lease);
        let Some(lease) = lease.filter(|_| self.table.feeds(from)) else {
            // The table may be late: the successor asks again.
            return self.count(Note::Foreign(first));
        };
        let report = self.recovery_report(&lease, page);
        self.send(Hop::feeder(from), Message::RecoveryReport(report));
    }

    fn recovery_report(&self, lease: &Lease, from: MicrobatchId) -> RecoveryReport {
        let end = MicrobatchId(lease.ids().end);
        let ids = from.max(lease.first)..end.max(from);
        let held = self.microbatches.range(ids.clone()).filter(|(_, held)| held.trains()).map(|(&id, _)| id);
        let known: BTreeSet<_> = held.chain(self.applied.range(ids)).collect();
        let mut open = known.into_iter().filter(|&id| !self.outcomes.contain(id));
        let items = open.by_ref().take(RECOVERY_ITEMS_MAX).map(|id| self.item(id)).collect();
        let Lease { first, epoch, .. } = *lease;
        let ended = self.outcomes.within(lease).into_iter().collect();
        RecoveryReport { first, epoch, from, next: open.next(), stage: self.config.stage, ended, items }
    }

    fn item(&self, microbatch: MicrobatchId) -> Item {
        let held = self.microbatches.get(&microbatch);
        let granted = match held.map_or(ClaimState::Unclaimed, |held| held.claim) {
            _ if self.applied.contains(microbatch) => Some(true),
            ClaimState::Granted => Some(true),
            ClaimState::Denied => Some(false),
            ClaimState::Unclaimed | ClaimState::Claimed { .. } | ClaimState::GivenUp => None,
        };
        let may_have_been_granted = held.map_or_else(Vec::new, |held| {
            // This replica does not know which replicas had a retried microbatch before.
            if held.is_retry { self.stages() } else { self.departures.since(held.taken_at) }
        });
        let possession = held.map_or(Possession::Gone, Microbatch::possession);
        Item { microbatch, granted, possession, may_have_been_granted }
    }

    fn stages(&self) -> Vec<StageIndex> {
        (0..self.config.stages).map(StageIndex).collect()
    }
}

/// Puts the feeder that decides about the microbatch at the beginning of its route, where a former feeder may stand;
/// `false` if the sender is a former feeder, or the route begins with a peer that never had these ids.
pub(super) fn replace_feeder(
    table: &PeerTable,
    sender: Hop,
    microbatch: MicrobatchId,
    route: &mut [Hop],
) -> bool {
    let Some(lessee) = table.lessee(microbatch) else { return false };
    if sender.stage.is_none() {
        return lessee == sender.peer();
    }
    put_first(table.feeder_of(microbatch), route);
    // A route that begins with a replica is malformed, and refused as such.
    route.first().is_none_or(|first| first.stage.is_some() || first.peer() == lessee)
}

fn put_first(lessee: Option<Hop>, route: &mut [Hop]) {
    if let (Some(lessee), Some(feeder)) = (lessee, route.first_mut())
        && feeder.stage.is_none()
        && feeder.peer() != lessee.peer()
    {
        *feeder = lessee;
    }
}

impl<P> Microbatch<P> {
    fn possession(&self) -> Possession {
        match self.phase {
            Phase::Returned(_) => Possession::Returned,
            Phase::Refused { .. } | Phase::Cancelled => Possession::Gone,
            Phase::ForwardQueued { .. }
            | Phase::Forwarding
            | Phase::Unrouted { .. }
            | Phase::HandedOn
            | Phase::BackwardQueued { .. }
            | Phase::Backwarding { .. } => Possession::Held,
        }
    }
}
