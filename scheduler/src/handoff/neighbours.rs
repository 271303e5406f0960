//! The neighbours of a peer: their last heartbeats, the verdicts about them, and the candidates for the next
//! microbatch.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use crate::router::{CANDIDATES_MAX, Candidate};
use crate::{Duration, Health, Heartbeat, Hop, Instance, PeerTable, StageIndex, Time, Verdict};

/// Microbatches that a neighbour may have before it has returned any.
const EARNED_FIRST: u32 = 8;

/// A neighbour that keeps a microbatch is avoided for so long; the time doubles with each that it keeps in a row.
const AVOIDED_MIN: Duration = Duration::from_secs(10);
/// Doublings at most: ten seconds become twenty minutes.
const AVOIDED_DOUBLINGS: u32 = 7;

/// Neighbours upstream and downstream.
#[derive(Clone, Debug)]
pub(crate) struct Neighbours {
    /// The stage that takes the microbatches of this peer.
    next: StageIndex,
    health: Health,
    watched: BTreeMap<Instance, Neighbour>,
    /// The replicas of the next stage that are healthy and have credit left: what a decision looks at.
    open: BTreeSet<Hop>,
    /// The last candidate of the last decision. Where there are more than a decision looks at, the next one goes on
    /// behind it, so that each has its turn.
    last: Option<Hop>,
}

#[derive(Clone, Copy, Debug)]
struct Neighbour {
    hop: Hop,
    /// How many microbatches this peer may have unanswered there; `None` before the first heartbeat.
    credit: Option<u32>,
    /// How many it may have by what it returned so far: a neighbour that takes and returns nothing is sent little,
    /// whatever it says of itself.
    earned: u32,
    /// How many it has.
    outstanding: u32,
    healthy: bool,
    /// Times in a row that it kept microbatches, or gave them back.
    kept: u32,
    /// It is avoided until then, if there are others.
    avoided_until: Time,
    /// The latest smoothed round trip that the transport measured; zero if unknown.
    round_trip: Duration,
}

impl Neighbour {
    fn new(hop: Hop, outstanding: u32) -> Self {
        Self {
            hop,
            credit: None,
            earned: EARNED_FIRST,
            outstanding,
            healthy: true,
            kept: 0,
            avoided_until: Time::default(),
            round_trip: Duration::ZERO,
        }
    }

    /// A neighbour without a known credit is tried with one microbatch.
    fn is_open(&self) -> bool {
        self.healthy && self.outstanding < self.credit.unwrap_or(1).min(self.earned)
    }
}

impl Neighbours {
    /// No neighbours yet; microbatches will go to the stage `next`.
    pub(crate) fn new(next: StageIndex) -> Self {
        Self { next, health: Health::new(), watched: BTreeMap::new(), open: BTreeSet::new(), last: None }
    }

    /// Watches exactly `hops` from now on. A newcomer may have microbatches already: `outstanding` counts them.
    pub(crate) fn watch(
        &mut self,
        now: Time,
        hops: impl IntoIterator<Item = Hop>,
        outstanding: impl Fn(&Hop) -> u32,
    ) {
        let hops: BTreeMap<Instance, Hop> = hops.into_iter().map(|hop| (hop.instance, hop)).collect();
        let stays = |neighbour: &Neighbour| hops.get(&neighbour.hop.instance) == Some(&neighbour.hop);
        let gone: Vec<Hop> =
            self.watched.values().filter(|neighbour| !stays(neighbour)).map(|gone| gone.hop).collect();
        gone.into_iter().for_each(|hop| self.forget(hop));
        for &hop in hops.values() {
            if !self.watches(hop.instance) {
                self.watch_too(now, hop, outstanding(&hop));
            }
        }
    }

    /// Watches one more.
    pub(crate) fn watch_too(&mut self, now: Time, hop: Hop, outstanding: u32) {
        self.health.watch(now, hop.instance);
        self.watched.insert(hop.instance, Neighbour::new(hop, outstanding));
        self.update(hop.instance, |_| ());
    }

    /// Watches one less.
    pub(crate) fn forget(&mut self, hop: Hop) {
        if self.watched.get(&hop.instance).is_some_and(|neighbour| neighbour.hop == hop) {
            self.health.forget(hop.instance);
            self.watched.remove(&hop.instance);
        }
        self.open.remove(&hop);
    }

    pub(crate) fn watches(&self, instance: Instance) -> bool {
        self.watched.contains_key(&instance)
    }

    pub(crate) fn heartbeat(&mut self, now: Time, sender: Hop, heartbeat: Heartbeat) {
        self.health.heard(now, sender.instance, heartbeat);
        self.set_credit(sender, heartbeat.credit);
    }

    /// A message arrived from an instance, heartbeats included.
    pub(crate) fn message(&mut self, now: Time, from: Instance) {
        self.health.message(now, from);
    }

    /// The transport has measured the round trip to an instance. Only neighbours are remembered.
    pub(crate) fn measured(&mut self, instance: Instance, round_trip: Duration) {
        self.update(instance, |neighbour| neighbour.round_trip = round_trip);
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
        self.set_credit(hop, 0);
    }

    /// The neighbour has this many microbatches of this peer.
    pub(crate) fn has(&mut self, hop: Hop, outstanding: u32) {
        self.update(hop.instance, |neighbour| neighbour.outstanding = outstanding);
    }

    /// The neighbour returned a microbatch: it may have twice as many.
    pub(crate) fn earns(&mut self, hop: Hop) {
        self.update(hop.instance, |neighbour| {
            neighbour.earned = neighbour.earned.saturating_mul(2);
            neighbour.kept = 0;
        });
    }

    /// The neighbour keeps a microbatch too long, or gives it back: it is avoided, longer each time in a row.
    pub(crate) fn keeps(&mut self, now: Time, hop: Hop) {
        self.update(hop.instance, |neighbour| {
            // What it took before it was avoided counts once.
            if neighbour.avoided_until <= now {
                let times = 1_u32 << neighbour.kept.min(AVOIDED_DOUBLINGS);
                neighbour.kept += 1;
                neighbour.avoided_until = now + AVOIDED_MIN * times;
            }
        });
    }

    /// The neighbour lost a microbatch, or keeps it: it may have half as many.
    pub(crate) fn loses(&mut self, hop: Hop) {
        self.update(hop.instance, |neighbour| neighbour.earned = (neighbour.earned / 2).max(1));
    }

    /// The verdicts that have changed since the last call.
    pub(crate) fn judge(&mut self, now: Time) -> Vec<(Instance, Verdict)> {
        let changes = self.health.changes(now);
        for &(instance, verdict) in &changes {
            self.update(instance, |neighbour| neighbour.healthy = verdict == Verdict::Healthy);
        }
        changes
    }

    /// Whether any replica of the next stage lives and gives this peer credit, be it used up or not.
    pub(crate) fn next_stage_takes(&self, now: Time) -> bool {
        let mut next = self.watched.values().filter(|neighbour| neighbour.hop.stage == Some(self.next));
        let lives = |neighbour: &Neighbour| self.health.verdict(now, neighbour.hop.instance) != Verdict::Dead;
        next.any(|neighbour| neighbour.credit > Some(0) && lives(neighbour))
    }

    /// The time at which silence is measured: it stands still while the own link is down.
    pub(crate) fn clock(&self, now: Time) -> Time {
        self.health.clock(now)
    }

    /// When a verdict may change.
    pub(crate) fn next_change(&self, now: Time) -> Option<Time> {
        self.health.next_change(now)
    }

    /// Replicas of the next stage that are healthy and have credit left, by peer id, at most [`CANDIDATES_MAX`].
    /// Quarantined replicas only if there are no others: a doubtful replica is better than a stage that stands still.
    pub(crate) fn candidates(&mut self, now: Time, table: &PeerTable) -> Vec<Candidate> {
        let free = |hop: &&Hop| !table.is_quarantined(now, hop.instance) && !self.is_avoided(now, hop);
        let mut hops: Vec<Hop> = self.in_turn().filter(free).take(CANDIDATES_MAX).copied().collect();
        if hops.is_empty() {
            hops = self.in_turn().take(CANDIDATES_MAX).copied().collect();
        }
        self.last = hops.last().copied();
        hops.sort_unstable();
        hops.into_iter().map(|hop| self.candidate(hop)).collect()
    }

    /// The replicas that a decision may look at; those that had no turn yet come first.
    fn in_turn(&self) -> impl Iterator<Item = &Hop> {
        let all = self.open.len() <= CANDIDATES_MAX;
        let start = self.last.filter(|_| !all).map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.last.filter(|_| !all).into_iter().flat_map(|last| self.open.range(..=last));
        self.open.range((start, Bound::Unbounded)).chain(rest)
    }

    fn is_avoided(&self, now: Time, hop: &Hop) -> bool {
        self.watched.get(&hop.instance).is_some_and(|neighbour| neighbour.avoided_until > now)
    }

    fn candidate(&self, hop: Hop) -> Candidate {
        let service = self.health.service(hop.instance);
        let rtt = self.watched.get(&hop.instance).map_or(Duration::ZERO, |neighbour| neighbour.round_trip);
        Candidate { hop, service, rtt }
    }

    fn set_credit(&mut self, hop: Hop, credit: u32) {
        if self.watched.get(&hop.instance).is_some_and(|neighbour| neighbour.hop == hop) {
            self.update(hop.instance, |neighbour| neighbour.credit = Some(credit));
        }
    }

    /// Changes what is known of a neighbour, and whether it is open.
    fn update(&mut self, instance: Instance, change: impl FnOnce(&mut Neighbour)) {
        let Some(neighbour) = self.watched.get_mut(&instance) else { return };
        change(neighbour);
        if neighbour.hop.stage == Some(self.next) && neighbour.is_open() {
            self.open.insert(neighbour.hop);
        } else {
            self.open.remove(&neighbour.hop);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    const NEXT: StageIndex = StageIndex(1);
    const NOW: Time = Time(0);

    fn hop(index: u16) -> Hop {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&index.to_be_bytes());
        Hop::replica(NEXT, Instance::new(PeerId(key), Incarnation(1)))
    }

    fn neighbours(hops: std::ops::Range<u16>) -> Neighbours {
        let mut neighbours = Neighbours::new(NEXT);
        neighbours.watch(NOW, hops.map(hop), |_| 0);
        neighbours
    }

    fn chosen(neighbours: &mut Neighbours, table: &PeerTable) -> Vec<Hop> {
        neighbours.candidates(NOW, table).into_iter().map(|candidate| candidate.hop).collect()
    }

    #[test]
    fn a_neighbour_that_returns_nothing_is_sent_little_whatever_credit_it_gives() {
        let (mut neighbours, table) = (neighbours(0..1), PeerTable::default());
        neighbours.set_credit(hop(0), u32::MAX);
        let open = |neighbours: &mut Neighbours, outstanding| {
            neighbours.has(hop(0), outstanding);
            !chosen(neighbours, &table).is_empty()
        };
        assert!(open(&mut neighbours, EARNED_FIRST - 1) && !open(&mut neighbours, EARNED_FIRST));
        neighbours.earns(hop(0));
        assert!(open(&mut neighbours, 2 * EARNED_FIRST - 1));
        (0..9).for_each(|_| neighbours.loses(hop(0)));
        assert!(open(&mut neighbours, 0) && !open(&mut neighbours, 1));
        (0..99).for_each(|_| neighbours.earns(hop(0)));
        assert!(open(&mut neighbours, u32::MAX - 1));
    }

    #[test]
    fn each_of_many_replicas_has_its_turn() {
        let (mut neighbours, table) = (neighbours(0..200), PeerTable::default());
        let mut seen = BTreeSet::new();
        for _ in 0..4 {
            let candidates = chosen(&mut neighbours, &table);
            assert!(candidates.len() == CANDIDATES_MAX && candidates.is_sorted());
            seen.extend(candidates);
        }
        assert_eq!(seen.len(), 200);
    }

    #[test]
    fn a_replica_without_credit_or_health_is_no_candidate() {
        let (mut neighbours, table) = (neighbours(0..3), PeerTable::default());
        neighbours.has(hop(0), 1);
        neighbours.lost(NOW, hop(1).instance);
        neighbours.judge(NOW);
        assert_eq!(chosen(&mut neighbours, &table), [hop(2)]);
        neighbours.heartbeat(NOW, hop(0), Heartbeat { credit: 2, ..Heartbeat::default() });
        neighbours.message(NOW, hop(1).instance);
        neighbours.judge(NOW);
        neighbours.busy(hop(2));
        assert_eq!(chosen(&mut neighbours, &table), [hop(0), hop(1)]);
    }

    #[test]
    fn replicas_in_quarantine_are_candidates_only_if_there_are_no_others() {
        let (mut neighbours, mut table) = (neighbours(0..2), PeerTable::default());
        let members = (0..2).map(|index| crate::fixtures::member(hop(index))).collect();
        table.update(crate::Membership { version: 1, members, ..crate::Membership::default() });
        table.quarantine(NOW, hop(0).instance);
        assert_eq!(chosen(&mut neighbours, &table), [hop(1)]);
        table.quarantine(NOW, hop(1).instance);
        assert_eq!(chosen(&mut neighbours, &table), [hop(0), hop(1)]);
    }

    #[test]
    fn a_neighbour_that_stays_keeps_its_credit_and_its_round_trip() {
        let (mut neighbours, table) = (neighbours(0..2), PeerTable::default());
        neighbours.busy(hop(0));
        neighbours.measured(hop(1).instance, Duration::from_millis(9));
        neighbours.watch(NOW, (0..3).map(hop), |_| 1);
        let candidates = neighbours.candidates(NOW, &table);
        assert_eq!(candidates.len(), 1, "0 is busy, and 2 has one already");
        assert_eq!(candidates[0].rtt, Duration::from_millis(9));
    }
}
