//! When each machine wants to be woken, in order.

use std::collections::{BTreeMap, BTreeSet};

use crate::Time;

/// A state machine of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Machine {
    Feeder(usize),
    Coordinator,
    Replica(usize),
    /// The averaging of a replica.
    Rounds(usize),
}

/// One time a machine at most.
#[derive(Debug, Default)]
pub(super) struct Alarms {
    by_machine: BTreeMap<Machine, Time>,
    by_time: BTreeSet<(Time, Machine)>,
}

impl Alarms {
    /// What the machine says after every event.
    pub(super) fn set(&mut self, machine: Machine, at: Option<Time>) {
        let before = match at {
            Some(at) => self.by_machine.insert(machine, at),
            None => self.by_machine.remove(&machine),
        };
        if before == at {
            return;
        }
        if let Some(before) = before {
            self.by_time.remove(&(before, machine));
        }
        if let Some(at) = at {
            self.by_time.insert((at, machine));
        }
    }

    /// Takes out the first that is not after `due`.
    pub(super) fn pop_until(&mut self, due: Option<Time>) -> Option<(Time, Machine)> {
        let &(at, machine) = self.by_time.first().filter(|(at, _)| due.is_none_or(|due| *at <= due))?;
        self.set(machine, None);
        Some((at, machine))
    }
}
