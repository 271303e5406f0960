//! Leaves peers alone that failed, the longer the more often they did.

use std::collections::BTreeMap;

use crate::{Duration, Hop, Incarnation, PeerId, Time};

/// How long a peer is left alone after its first failure. Doubles with every further one.
pub const QUARANTINE_MIN: Duration = Duration::from_secs(5);

/// The longest a peer is left alone at a time.
pub const QUARANTINE_MAX: Duration = Duration::from_secs(600);

/// Who failed, how often, and until when each is left alone.
///
/// One success clears. The owner sees to it that only members get in and [`retain`](Self::retain)s those that stay:
/// that bounds the memory.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    spells: BTreeMap<(PeerId, Incarnation), Spell>,
}

#[derive(Clone, Copy, Debug)]
struct Spell {
    length: Duration,
    until: Time,
}

impl Quarantine {
    /// Leaves nobody alone.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// A peer failed. Failures while it is left alone count as the one that began it: a broken connection fails
    /// everything under way at once.
    pub fn failed(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        let before = self.spells.get(&(peer, incarnation));
        if before.is_some_and(|spell| spell.until > now) {
            return;
        }
        let length = before.map_or(QUARANTINE_MIN, |spell| (spell.length * 2).min(QUARANTINE_MAX));
        self.spells.insert((peer, incarnation), Spell { length, until: now + length });
    }

    /// A peer was heard, or did what it was asked.
    pub fn succeeded(&mut self, peer: PeerId, incarnation: Incarnation) {
        self.spells.remove(&(peer, incarnation));
    }

    /// Whether a peer is left alone now.
    #[must_use]
    pub fn holds(&self, now: Time, peer: PeerId, incarnation: Incarnation) -> bool {
        self.spells.get(&(peer, incarnation)).is_some_and(|spell| spell.until > now)
    }

    /// Those of a stage's replicas that may be tried; all of them if none is left otherwise, since trying somebody
    /// doubtful beats holding the stage up.
    pub fn admit(&self, now: Time, replicas: &[Hop]) -> impl Iterator<Item = Hop> {
        let held = move |hop: &Hop| self.holds(now, hop.peer, hop.incarnation);
        let ignored = replicas.iter().all(held);
        replicas.iter().copied().filter(move |hop| ignored || !held(hop))
    }

    /// When the next peer that is left alone now may be tried.
    #[must_use]
    pub fn next_release(&self, now: Time) -> Option<Time> {
        self.spells.values().map(|spell| spell.until).filter(|&until| until > now).min()
    }

    /// Forgets everybody for whom `stays` is false.
    pub fn retain(&mut self, mut stays: impl FnMut(PeerId, Incarnation) -> bool) {
        self.spells.retain(|&(peer, incarnation), _| stays(peer, incarnation));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: PeerId = PeerId([1; 32]);
    const START: Incarnation = Incarnation(1);

    fn hop(key: u8) -> Hop {
        Hop { stage: None, peer: PeerId([key; 32]), incarnation: START }
    }

    #[test]
    fn doubles_up_to_ten_minutes_and_one_success_clears() {
        let mut quarantine = Quarantine::new();
        let mut now = Time(0);
        for seconds in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            quarantine.failed(now, A, START);
            let end = now + Duration::from_secs(seconds);
            assert_eq!(quarantine.next_release(now), Some(end));
            assert!(quarantine.holds(now, A, START) && !quarantine.holds(end, A, START));
            now = end;
        }
        quarantine.succeeded(A, START);
        quarantine.failed(now, A, START);
        assert_eq!(quarantine.next_release(now), Some(now + QUARANTINE_MIN));
    }

    #[test]
    fn what_fails_together_fails_once() {
        let mut quarantine = Quarantine::new();
        (0..9).for_each(|nanos| quarantine.failed(Time(nanos), A, START));
        assert_eq!(quarantine.next_release(Time(9)), Some(Time(0) + QUARANTINE_MIN));
    }

    #[test]
    fn ignored_when_it_would_leave_nobody() {
        let mut quarantine = Quarantine::new();
        let replicas = [hop(1), hop(2)];
        let admitted = |quarantine: &Quarantine| quarantine.admit(Time(0), &replicas).collect::<Vec<_>>();
        quarantine.failed(Time(0), A, START);
        assert_eq!(admitted(&quarantine), [hop(2)]);
        quarantine.failed(Time(0), hop(2).peer, START);
        assert_eq!(admitted(&quarantine), replicas);
        quarantine.retain(|peer, _| peer != A);
        assert_eq!(admitted(&quarantine), [hop(1)]);
        assert_eq!(quarantine.admit(Time(0), &[]).count(), 0);
    }

    #[test]
    fn another_start_is_another_peer() {
        let mut quarantine = Quarantine::new();
        quarantine.failed(Time(0), A, START);
        assert!(!quarantine.holds(Time(0), A, Incarnation(2)));
    }
}
