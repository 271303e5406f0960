//! Peers that are caught lying.
//!
//! A false proof has two possible authors: the replica that shows it, and the upstream that it says it was handed the
//! microbatch by. The feeder tells the replica, and an honest replica then takes nothing from that upstream for a while,
//! and soon nothing at all ([`crate::stage`]). So an innocent pair is contested a few times at most: for those both are
//! doubted, and from then on only the replica that shows the proof. A peer is struck when more of its statements are
//! false than sound; one liar alone brings no other peer so far.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Duration, Evidence, Hop, PeerId, Time};

/// Statements of one peer remembered; beyond that old ones count half.
const REMEMBERED: u32 = 1_024;

/// False proofs of one pair within this time are one contest: the replica may not have heard of the first.
const CONTEST: Duration = Duration::from_secs(30);

/// Contests of one pair in which both may be the liar.
const CONTESTS_MAX: u32 = 4;

/// Pairs that are remembered.
const PAIRS_MAX: usize = 16_384;

/// What a proof shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Belief {
    /// The replica was handed the microbatch.
    Sound,
    /// It was not, and neither was a replica further up the route: that one was lied to, or lies.
    Misled,
    /// It was not: the replica lies, or its upstream does.
    Forged,
}

/// Statements about microbatches, by peer and by pair of neighbours.
#[derive(Clone, Debug, Default)]
pub(super) struct Suspicion {
    by_peer: BTreeMap<PeerId, Evidence>,
    struck: BTreeSet<PeerId>,
    contests: BTreeMap<(PeerId, PeerId), Contests>,
}

#[derive(Clone, Copy, Debug)]
struct Contests {
    count: u32,
    until: Time,
}

impl Suspicion {
    /// A statement of the peer proved sound.
    pub(super) fn sound(&mut self, peer: PeerId) {
        self.note(peer, |evidence| evidence.sound += 1);
    }

    /// The peer may be the author of a false statement. Returns the evidence if it is struck for it.
    pub(super) fn doubt(&mut self, peer: PeerId) -> Option<Evidence> {
        let evidence = self.note(peer, |evidence| evidence.false_ones += 1);
        (evidence.convicts() && self.struck.insert(peer)).then_some(evidence)
    }

    pub(super) fn is_struck(&self, peer: PeerId) -> bool {
        self.struck.contains(&peer)
    }

    /// A replica shows a false proof. Returns the hops that may be its author.
    pub(super) fn forged(&mut self, now: Time, upstream: Option<Hop>, shown_by: Hop) -> Vec<Hop> {
        let Some(upstream) = upstream else { return vec![shown_by] };
        match self.contest(now, &upstream, &shown_by) {
            None => Vec::new(),
            Some(count) if count > CONTESTS_MAX => vec![shown_by],
            Some(_) => vec![upstream, shown_by],
        }
    }

    /// `sender` brought a path that names replicas which claim nothing. Returns the hops that may lie. A replica that is
    /// named cannot know that it is: it is not doubted for long.
    pub(super) fn unclaimed(&mut self, now: Time, sender: Hop, mut named: Vec<Hop>) -> Vec<Hop> {
        named.retain(|hop| {
            *hop != sender && self.contest(now, &sender, hop).is_some_and(|count| count <= CONTESTS_MAX)
        });
        named.extend(self.contest(now, &sender, &sender).map(|_| sender));
        named
    }

    /// Forgets a peer that has left.
    pub(super) fn forget(&mut self, peer: PeerId) {
        self.by_peer.remove(&peer);
        self.struck.remove(&peer);
        self.contests.retain(|&(upstream, downstream), _| upstream != peer && downstream != peer);
    }

    /// The number of the contest that begins now; `None` if the last one still lasts, or there are too many pairs.
    fn contest(&mut self, now: Time, upstream: &Hop, downstream: &Hop) -> Option<u32> {
        let pair = (upstream.peer(), downstream.peer());
        if self.contests.len() >= PAIRS_MAX && !self.contests.contains_key(&pair) {
            return None;
        }
        let contests = self.contests.entry(pair).or_insert(Contests { count: 0, until: now });
        if contests.until > now {
            return None;
        }
        *contests = Contests { count: contests.count.saturating_add(1), until: now + CONTEST };
        Some(contests.count)
    }

    fn note(&mut self, peer: PeerId, change: impl FnOnce(&mut Evidence)) -> Evidence {
        let statements = self.by_peer.entry(peer).or_default();
        change(statements);
        if statements.sound + statements.false_ones > REMEMBERED {
            *statements = Evidence { sound: statements.sound / 2, false_ones: statements.false_ones / 2 };
        }
        *statements
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b};

    const LIAR: PeerId = PeerId([1; 32]);
    const HONEST: PeerId = PeerId([2; 32]);

    /// What a peer is doubted for if one pair shows a false proof a second for this long: upstream, downstream.
    fn doubted(seconds: u64) -> (usize, usize) {
        let mut suspicion = Suspicion::default();
        let show = |second| suspicion.forged(Time::default() + Duration::from_secs(second), Some(a(0)), a(1));
        let doubted: Vec<_> = (0..seconds).flat_map(show).collect();
        let times = |of| doubted.iter().filter(|&&hop| hop == of).count();
        (times(a(0)), times(a(1)))
    }

    #[test]
    fn the_liar_is_struck_once_and_the_peer_that_it_names_is_not() {
        let mut suspicion = Suspicion::default();
        (0..20).for_each(|_| suspicion.sound(HONEST));
        let struck: Vec<_> = (0..20).filter(|_| suspicion.doubt(LIAR).is_some()).collect();
        assert_eq!(struck, [7]);
        assert!((0..20).all(|_| suspicion.doubt(HONEST).is_none()));
        assert!(suspicion.is_struck(LIAR) && !suspicion.is_struck(HONEST));
        suspicion.forget(LIAR);
        assert!(!suspicion.is_struck(LIAR));
    }

    #[test]
    fn a_burst_of_false_proofs_is_one_contest_and_a_pair_that_goes_on_is_the_fault_of_the_replica_that_shows_them()
     {
        assert_eq!(doubted(30), (1, 1));
        assert_eq!(doubted(120), (4, 4));
        assert_eq!(doubted(600), (4, 20));
    }

    #[test]
    fn a_replica_without_an_upstream_to_blame_is_doubted_each_time() {
        let mut suspicion = Suspicion::default();
        let doubted: Vec<_> = (0..9).flat_map(|_| suspicion.forged(Time(0), None, a(0))).collect();
        assert_eq!(doubted, [a(0); 9]);
    }

    #[test]
    fn a_path_without_claims_is_held_against_those_that_it_names_a_few_times_only() {
        let mut suspicion = Suspicion::default();
        let minute = |minutes: u64| Time::default() + Duration::from_secs(60 * minutes);
        let named = vec![a(0), b(1), b(2)];
        let doubted: Vec<_> =
            (0..50).flat_map(|now| suspicion.unclaimed(minute(now), a(0), named.clone())).collect();
        let times = |of| doubted.iter().filter(|&&hop| hop == of).count() as u32;
        assert_eq!([a(0), b(1), b(2)].map(times), [50, CONTESTS_MAX, CONTESTS_MAX]);
    }

    #[test]
    fn old_statements_fade() {
        let mut suspicion = Suspicion::default();
        (0..100_000).for_each(|_| suspicion.sound(LIAR));
        assert!((0..3 * REMEMBERED).any(|_| suspicion.doubt(LIAR).is_some()));
    }
}
