//! The peers this one works with: what they last said of themselves, who of them lives, and who may be handed a
//! microbatch.

use std::collections::BTreeMap;

use crate::router::{Candidate, Router};
use crate::{Beat, Duration, Health, Hop, Incarnation, PeerId, Time, Verdict};

/// Neighbours on both sides.
#[derive(Clone, Debug, Default)]
pub(crate) struct Neighbours {
    health: Health,
    /// Everyone watched, and how many microbatches it lets this peer have unanswered; none before it said so.
    credits: BTreeMap<Hop, Option<u32>>,
}

impl Neighbours {
    /// From now on exactly these are watched.
    pub(crate) fn watch(&mut self, now: Time, hops: impl IntoIterator<Item = Hop>) {
        let before = std::mem::take(&mut self.credits);
        for hop in hops {
            self.health.watch(now, hop.peer, hop.incarnation);
            self.credits.insert(hop, before.get(&hop).copied().flatten());
        }
        for gone in before.keys().filter(|hop| !self.credits.contains_key(hop)) {
            self.health.forget(gone.peer, gone.incarnation);
        }
    }

    pub(crate) fn watches(&self, peer: PeerId, incarnation: Incarnation) -> bool {
        self.credits.keys().any(|hop| (hop.peer, hop.incarnation) == (peer, incarnation))
    }

    /// A neighbour says how it is.
    pub(crate) fn beat(&mut self, now: Time, sender: Hop, beat: Beat) {
        self.health.heard(now, sender.peer, sender.incarnation, beat);
        if let Some(credit) = self.credits.get_mut(&sender) {
            *credit = Some(beat.credit);
        }
    }

    /// A neighbour says anything else.
    pub(crate) fn message(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        self.health.message(now, peer, incarnation);
    }

    /// Somebody who is no neighbour was heard: the own link works.
    pub(crate) fn reached(&mut self, now: Time) {
        self.health.reached(now);
    }

    /// The connection to a neighbour is gone.
    pub(crate) fn lost(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        self.health.lost(now, peer, incarnation);
    }

    /// It said that no slot is free: nothing more until its next beat.
    pub(crate) fn busy(&mut self, hop: Hop) {
        if let Some(credit) = self.credits.get_mut(&hop) {
            *credit = Some(0);
        }
    }

    /// Who is thought of differently than when this was asked last.
    pub(crate) fn judge(&mut self, now: Time) -> Vec<(PeerId, Incarnation, Verdict)> {
        self.health.changes(now)
    }

    /// When a verdict may change.
    pub(crate) fn next_change(&self, now: Time) -> Option<Time> {
        self.health.next_change(now)
    }

    /// Those of `hops` that are healthy and have a credit left. Of one that has not said how much it takes, one
    /// microbatch is tried.
    pub(crate) fn candidates(
        &self,
        now: Time,
        hops: impl Iterator<Item = Hop>,
        router: &dyn Router,
    ) -> Vec<Candidate> {
        let takes = |hop: &Hop| {
            let credit = self.credits.get(hop).copied().flatten().unwrap_or(1);
            let healthy = self.health.verdict(now, hop.peer, hop.incarnation) == Verdict::Healthy;
            healthy && router.resident(hop) < credit
        };
        hops.filter(takes).map(|hop| self.candidate(hop)).collect()
    }

    fn candidate(&self, hop: Hop) -> Candidate {
        let service = self.health.service(hop.peer, hop.incarnation);
        Candidate { hop, service, rtt: Duration::ZERO }
    }
}
