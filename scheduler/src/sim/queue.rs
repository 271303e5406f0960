//! Virtual time, and the events to come.

use std::collections::BTreeMap;

use crate::alarms::Alarms;
use crate::{Duration, Time};

/// The next event or alarm.
#[derive(Debug)]
pub(crate) enum Next<E, M> {
    /// A scheduled event.
    Event(E),
    /// The alarm of a machine.
    Alarm(M),
}

/// Events in the order of their time, and one alarm a machine. Events of the same time come in the order in which they
/// were scheduled, so there are no ties; an alarm goes before an event of its time.
#[derive(Debug)]
pub(crate) struct EventQueue<E, M> {
    now: Time,
    steps: u64,
    sequence: u64,
    /// Boxed, because the map moves its entries.
    events: BTreeMap<(Time, u64), Box<E>>,
    alarms: Alarms<M>,
}

impl<E, M: Copy + Ord> EventQueue<E, M> {
    pub(crate) fn new() -> Self {
        Self { now: Time(0), steps: 0, sequence: 0, events: BTreeMap::new(), alarms: Alarms::default() }
    }

    /// The time of the latest event.
    pub(crate) fn now(&self) -> Time {
        self.now
    }

    /// Events and alarms so far.
    pub(crate) fn steps(&self) -> u64 {
        self.steps
    }

    pub(crate) fn schedule_in(&mut self, delay: Duration, event: E) {
        self.schedule(self.now + delay, event);
    }

    pub(crate) fn schedule(&mut self, at: Time, event: E) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), Box::new(event));
    }

    /// Replaces the alarm of a machine; called after every event of it.
    pub(crate) fn set_alarm(&mut self, machine: M, at: Option<Time>) {
        self.alarms.set(machine, at);
    }

    /// Takes the next event or alarm and moves to its time; `None` if there is none.
    pub(crate) fn pop(&mut self) -> Option<Next<E, M>> {
        let due = self.events.first_key_value().map(|(&(at, _), _)| at);
        let alarm = self.alarms.next().filter(|(at, _)| due.is_none_or(|due| *at <= due));
        let (at, next) = match alarm {
            Some((at, machine)) => {
                self.set_alarm(machine, None);
                (at, Next::Alarm(machine))
            }
            None => self.events.pop_first().map(|((at, _), event)| (at, Next::Event(*event)))?,
        };
        self.now = self.now.max(at);
        self.steps += 1;
        Some(next)
    }

    /// The events to come, in order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &E> {
        self.events.values().map(Box::as_ref)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_and_alarms_come_in_order_without_ties() {
        let mut queue = EventQueue::new();
        queue.schedule(Time(5), "second");
        queue.schedule(Time(5), "third");
        queue.schedule(Time(9), "fourth");
        queue.set_alarm('a', Some(Time(8)));
        queue.set_alarm('a', Some(Time(5)));
        queue.set_alarm('b', Some(Time(1)));
        queue.set_alarm('b', None);
        let mut order = Vec::new();
        while let Some(next) = queue.pop() {
            order.push(match next {
                Next::Event(event) => (queue.now().0, event),
                Next::Alarm(_) => (queue.now().0, "alarm"),
            });
        }
        assert_eq!(order, [(5, "alarm"), (5, "second"), (5, "third"), (9, "fourth")]);
        assert_eq!(queue.steps(), 4);
    }
}
