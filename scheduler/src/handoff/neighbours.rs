//! The neighbours of a peer: their last heartbeats, the verdicts about them, and the candidates for the next
//! microbatch.

use std::collections::BTreeMap;

use crate::router::{Candidate, Router};
use crate::{Duration, Health, Heartbeat, Hop, Instance, Time, Verdict};

/// Neighbours upstream and downstream.
#[derive(Clone, Debug, Default)]
pub(crate) struct Neighbours {
    health: Health,
    /// The credit of each watched neighbour: how many microbatches this peer may have unanswered there; `None` before
    /// the neighbour's first heartbeat.
    credits: BTreeMap<Hop, Option<u32>>,
    /// The latest smoothed round trips that the transport measured.
    round_trips: BTreeMap<Instance, Duration>,
}

impl Neighbours {
    /// Watches exactly `hops` from now on.
    pub(crate) fn watch(&mut self, now: Time, hops: impl IntoIterator<Item = Hop>) {
        let before = std::mem::take(&mut self.credits);
        for hop in hops {
            self.health.watch(now, hop.instance);
            self.credits.insert(hop, before.get(&hop).copied().flatten());
        }
        for gone in before.keys().filter(|hop| !self.credits.contains_key(hop)) {
            self.health.forget(gone.instance);
            self.round_trips.remove(&gone.instance);
        }
    }

    pub(crate) fn watches(&self, instance: Instance) -> bool {
        self.credits.keys().any(|hop| hop.instance == instance)
    }

    pub(crate) fn heartbeat(&mut self, now: Time, sender: Hop, heartbeat: Heartbeat) {
        self.health.heard(now, sender.instance, heartbeat);
        if let Some(credit) = self.credits.get_mut(&sender) {
            *credit = Some(heartbeat.credit);
        }
    }

    /// A message arrived from an instance, heartbeats included.
    pub(crate) fn message(&mut self, now: Time, from: Instance) {
        self.health.message(now, from);
    }

    /// The transport has measured the round trip to an instance. Only neighbours are remembered.
    pub(crate) fn measured(&mut self, instance: Instance, round_trip: Duration) {
        if self.watches(instance) {
            self.round_trips.insert(instance, round_trip);
        }
    }

    /// The coordinator replied: the own link works.
    pub(crate) fn reached(&mut self, now: Time) {
        self.health.reached(now);
    }

    /// The connection to a neighbour is gone.
    pub(crate) fn lost(&mut self, now: Time, instance: Instance) {
        self.health.lost(now, instance);
    }

    /// A neighbour said that it has no free slot: it is sent nothing more until its next heartbeat.
    pub(crate) fn busy(&mut self, hop: Hop) {
        if let Some(credit) = self.credits.get_mut(&hop) {
            *credit = Some(0);
        }
    }

    /// The verdicts that have changed since the last call.
    pub(crate) fn judge(&mut self, now: Time) -> Vec<(Instance, Verdict)> {
        self.health.changes(now)
    }

    /// When a verdict may change.
    pub(crate) fn next_change(&self, now: Time) -> Option<Time> {
        self.health.next_change(now)
    }

    /// The members of `hops` that are healthy and have credit left. A neighbour without a known credit is tried with
    /// one microbatch.
    pub(crate) fn candidates(
        &self,
        now: Time,
        hops: impl Iterator<Item = Hop>,
        router: &dyn Router,
    ) -> Vec<Candidate> {
        let takes = |hop: &Hop| {
            let credit = self.credits.get(hop).copied().flatten().unwrap_or(1);
            let healthy = self.health.verdict(now, hop.instance) == Verdict::Healthy;
            healthy && router.outstanding_at(hop) < credit
        };
        hops.filter(takes).map(|hop| self.candidate(hop)).collect()
    }

    fn candidate(&self, hop: Hop) -> Candidate {
        let service = self.health.service(hop.instance);
        let rtt = self.round_trips.get(&hop.instance).copied().unwrap_or_default();
        Candidate { hop, service, rtt }
    }
}
