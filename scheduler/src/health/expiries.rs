//! The times at which verdicts may change, and the instances whose evidence has changed.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Instance, Time};

/// Instances to judge again: at once, or when their time comes. Each instance has one time at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Expiries {
    by_time: BTreeSet<(Time, Instance)>,
    times: BTreeMap<Instance, Time>,
    /// Instances with new evidence.
    changed: BTreeSet<Instance>,
}

impl Expiries {
    /// The instance is to be judged at once.
    pub(super) fn judge(&mut self, instance: Instance) {
        self.changed.insert(instance);
    }

    /// The instance is to be judged at this time, instead of the time set before; `None` is never.
    pub(super) fn set(&mut self, instance: Instance, at: Option<Time>) {
        let before = match at {
            Some(at) => self.times.insert(instance, at),
            None => self.times.remove(&instance),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, instance));
        }
        if let Some(at) = at {
            self.by_time.insert((at, instance));
        }
    }

    pub(super) fn forget(&mut self, instance: Instance) {
        self.set(instance, None);
        self.changed.remove(&instance);
    }

    /// Takes the instances that are to be judged now, by peer id.
    pub(super) fn take_due(&mut self, now: Time) -> BTreeSet<Instance> {
        while let Some(&(_, instance)) = self.by_time.first().filter(|(at, _)| *at <= now) {
            self.set(instance, None);
            self.changed.insert(instance);
        }
        std::mem::take(&mut self.changed)
    }

    /// The earliest time set.
    pub(super) fn next(&self) -> Option<Time> {
        self.by_time.first().map(|(at, _)| *at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    fn peer(key: u8) -> Instance {
        Instance::new(PeerId([key; 32]), Incarnation(1))
    }

    #[test]
    fn each_instance_is_judged_at_its_latest_time_and_at_once_if_there_is_evidence() {
        let mut expiries = Expiries::default();
        expiries.set(peer(1), Some(Time(5)));
        expiries.set(peer(2), Some(Time(6)));
        expiries.set(peer(1), Some(Time(7)));
        expiries.judge(peer(3));
        assert_eq!(expiries.take_due(Time(5)), [peer(3)].into());
        assert_eq!(expiries.next(), Some(Time(6)));
        assert_eq!(expiries.take_due(Time(7)), [peer(1), peer(2)].into());
        assert_eq!((expiries.take_due(Time(9)), expiries.next()), ([].into(), None));
    }

    #[test]
    fn a_forgotten_instance_is_not_judged() {
        let mut expiries = Expiries::default();
        expiries.set(peer(1), Some(Time(5)));
        expiries.judge(peer(1));
        expiries.forget(peer(1));
        assert_eq!(expiries.take_due(Time(9)), [].into());
        assert!(expiries.times.is_empty() && expiries.by_time.is_empty());
    }
}
