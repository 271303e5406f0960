//! Quarantine of peers that failed, longer with every failure.

use std::collections::BTreeMap;

use crate::{Duration, Instance, Time};

/// Quarantine after the first failure of a peer. Doubles with every further failure.
pub const QUARANTINE_MIN: Duration = Duration::from_secs(5);

/// Longest quarantine of a peer at a time.
pub const QUARANTINE_MAX: Duration = Duration::from_secs(600);

/// The instances that failed, and the end of the quarantine of each.
///
/// One success clears. The owner adds members only and [`retain`](Self::retain)s those that stay: that bounds the
/// memory.
#[derive(Clone, Debug, Default)]
pub struct Quarantine {
    spells: BTreeMap<Instance, Spell>,
}

#[derive(Clone, Copy, Debug)]
struct Spell {
    length: Duration,
    until: Time,
}

impl Quarantine {
    /// A quarantine without instances.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An instance failed. Failures during a quarantine do not lengthen it: a broken connection fails every attempt
    /// under way at once.
    pub fn failed(&mut self, now: Time, instance: Instance) {
        let before = self.spells.get(&instance);
        if before.is_some_and(|spell| spell.until > now) {
            return;
        }
        let length = before.map_or(QUARANTINE_MIN, |spell| (spell.length * 2).min(QUARANTINE_MAX));
        self.spells.insert(instance, Spell { length, until: now + length });
    }

    /// A message of an instance arrived: its failures are forgotten.
    pub fn succeeded(&mut self, instance: Instance) {
        self.spells.remove(&instance);
    }

    /// Whether an instance is in quarantine now.
    #[must_use]
    pub fn holds(&self, now: Time, instance: Instance) -> bool {
        self.spells.get(&instance).is_some_and(|spell| spell.until > now)
    }

    /// The next end of a quarantine after `now`; `None` if no instance is in quarantine.
    #[must_use]
    pub fn next_release(&self, now: Time) -> Option<Time> {
        self.spells.values().map(|spell| spell.until).filter(|&until| until > now).min()
    }

    /// Forgets every instance for which `stays` is false.
    pub fn retain(&mut self, mut stays: impl FnMut(Instance) -> bool) {
        self.spells.retain(|&instance, _| stays(instance));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    const A: Instance = start(1, 1);

    const fn start(key: u8, incarnation: u64) -> Instance {
        Instance::new(PeerId([key; 32]), Incarnation(incarnation))
    }

    #[test]
    fn doubles_up_to_ten_minutes_and_one_success_clears() {
        let mut quarantine = Quarantine::new();
        let mut now = Time(0);
        for seconds in [5, 10, 20, 40, 80, 160, 320, 600, 600] {
            quarantine.failed(now, A);
            let end = now + Duration::from_secs(seconds);
            assert_eq!(quarantine.next_release(now), Some(end));
            assert!(quarantine.holds(now, A) && !quarantine.holds(end, A));
            now = end;
        }
        quarantine.succeeded(A);
        quarantine.failed(now, A);
        assert_eq!(quarantine.next_release(now), Some(now + QUARANTINE_MIN));
    }

    #[test]
    fn simultaneous_failures_count_once() {
        let mut quarantine = Quarantine::new();
        (0..9).for_each(|nanos| quarantine.failed(Time(nanos), A));
        assert_eq!(quarantine.next_release(Time(9)), Some(Time(0) + QUARANTINE_MIN));
    }

    #[test]
    fn another_start_is_another_peer() {
        let mut quarantine = Quarantine::new();
        quarantine.failed(Time(0), A);
        assert!(!quarantine.holds(Time(0), start(1, 2)));
    }
}
