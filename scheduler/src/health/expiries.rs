//! The times at which verdicts may change, and the instances whose evidence has changed.

use std::collections::BTreeSet;

use crate::alarms::Alarms;
use crate::{Instance, Time};

/// Instances to judge again: at once, or when their time comes. Each instance has one time at most.
#[derive(Clone, Debug, Default)]
pub(super) struct Expiries {
    times: Alarms<Instance>,
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
        self.times.set(instance, at);
    }

    pub(super) fn forget(&mut self, instance: Instance) {
        self.set(instance, None);
        self.changed.remove(&instance);
    }

    /// Takes the instances that are to be judged now, by peer id.
    pub(super) fn take_due(&mut self, now: Time) -> BTreeSet<Instance> {
        let mut due = self.times.take_due(now);
        due.append(&mut self.changed);
        due
    }

    /// The earliest time set.
    pub(super) fn next(&self) -> Option<Time> {
        self.times.next().map(|(at, _)| at)
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
        assert_eq!(expiries.next(), None);
    }
}
