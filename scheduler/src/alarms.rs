//! Times at which something is due, one for each key at most.

use std::collections::{BTreeMap, BTreeSet};

use crate::Time;

/// The time at which each key is due, found by key and by time.
#[derive(Clone, Debug)]
pub(crate) struct Alarms<K> {
    times: BTreeMap<K, Time>,
    by_time: BTreeSet<(Time, K)>,
}

impl<K> Default for Alarms<K> {
    fn default() -> Self {
        Self { times: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Copy + Ord> Alarms<K> {
    /// The key is due at this time, instead of the time set before; `None` is never.
    pub(crate) fn set(&mut self, key: K, at: Option<Time>) {
        let before = match at {
            Some(at) => self.times.insert(key, at),
            None => self.times.remove(&key),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, key));
        }
        self.by_time.extend(at.map(|at| (at, key)));
    }

    /// The time set for a key.
    pub(crate) fn get(&self, key: &K) -> Option<Time> {
        self.times.get(key).copied()
    }

    /// The earliest time set, and its key.
    pub(crate) fn next(&self) -> Option<(Time, K)> {
        self.in_order().next()
    }

    /// All times set, the earliest first, and their keys.
    pub(crate) fn in_order(&self) -> impl Iterator<Item = (Time, K)> {
        self.by_time.iter().copied()
    }

    /// Takes the keys that are due now, in their order. They have no time any more.
    pub(crate) fn take_due(&mut self, now: Time) -> BTreeSet<K> {
        let mut due = BTreeSet::new();
        while let Some((_, key)) = self.next().filter(|(at, _)| *at <= now) {
            self.set(key, None);
            due.insert(key);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_is_due_once_at_the_time_set_last() {
        let mut alarms = Alarms::default();
        alarms.set('b', Some(Time(5)));
        alarms.set('a', Some(Time(6)));
        alarms.set('b', Some(Time(6)));
        assert_eq!((alarms.get(&'b'), alarms.get(&'c')), (Some(Time(6)), None));
        assert_eq!((alarms.next(), alarms.take_due(Time(5))), (Some((Time(6), 'a')), [].into()));
        assert_eq!((alarms.take_due(Time(6)), alarms.next()), (['a', 'b'].into(), None));
        assert!(alarms.times.is_empty() && alarms.by_time.is_empty());
    }

    #[test]
    fn a_key_without_a_time_is_never_due() {
        let mut alarms = Alarms::default();
        alarms.set('a', Some(Time(5)));
        alarms.set('a', None);
        assert_eq!(alarms.take_due(Time(9)), [].into());
        assert!(alarms.times.is_empty() && alarms.by_time.is_empty());
    }
}
