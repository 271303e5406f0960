//! Admission: the limit of microbatches that a feeder has in flight.

use super::growth::Growth;
use crate::Time;

/// The rule for the injection of the next microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Groups of this many: all of a group have an outcome before the next group starts, so every stage sees
    /// the same weights for the whole group. 0 counts as 1.
    Synchronous(u32),
    /// At most this many in flight, in any order. 0 counts as 1.
    Asynchronous(u32),
    /// In any order, at most `start` in flight at first, then as many as raise the throughput.
    Adaptive {
        /// The least limit. 0 counts as 1.
        start: u32,
        /// The highest limit: it bounds how stale a gradient can be.
        max: u32,
    },
}

/// Counts places in flight under an [`Admission`].
#[derive(Clone, Debug)]
pub struct Window {
    admission: Admission,
    growth: Growth,
    in_flight: u32,
    /// Places left in the current group; synchronous only.
    group_left: u32,
}

impl Window {
    /// A window with no microbatch in flight.
    #[must_use]
    pub fn new(admission: Admission) -> Self {
        let (start, max) = match admission {
            Admission::Synchronous(limit) | Admission::Asynchronous(limit) => (limit, limit),
            Admission::Adaptive { start, max } => (start, max),
        };
        Self { admission, growth: Growth::new(start, max), in_flight: 0, group_left: 0 }
    }

    /// The highest number of microbatches in flight at once, for now; at least 1.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.growth.limit()
    }

    /// A microbatch finished. `is_scarce`: others wait for a replica that takes them.
    pub fn finished(&mut self, now: Time, is_scarce: bool) {
        if matches!(self.admission, Admission::Adaptive { .. }) {
            self.growth.outcome(now, is_scarce);
        }
    }

    /// The narrowest stage has this many replicas.
    pub fn served_by(&mut self, width: usize) {
        self.growth.served_by(width);
    }

    /// Whether microbatches see weights that no other microbatch changes meanwhile.
    #[must_use]
    pub fn is_in_step(&self) -> bool {
        matches!(self.admission, Admission::Synchronous(_)) || self.limit() == 1
    }

    /// Microbatches in flight.
    #[must_use]
    pub fn in_flight(&self) -> u32 {
        self.in_flight
    }

    /// Takes a place; `false` if there is none now.
    pub fn admit(&mut self) -> bool {
        let admitted = match self.admission {
            Admission::Synchronous(_) => self.admit_to_group(),
            Admission::Asynchronous(_) | Admission::Adaptive { .. } => self.in_flight < self.limit(),
        };
        self.in_flight += u32::from(admitted);
        admitted
    }

    /// Takes a place for a microbatch that was in flight before a restart, regardless of the limit.
    pub fn readmit(&mut self) {
        self.in_flight = self.in_flight.saturating_add(1);
    }

    /// Gives a place back: the microbatch has its outcome.
    pub fn release(&mut self) {
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    fn admit_to_group(&mut self) -> bool {
        if self.group_left == 0 && self.in_flight == 0 {
            self.group_left = self.limit();
        }
        let open = self.group_left > 0;
        self.group_left = self.group_left.saturating_sub(1);
        open
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(window: &mut Window) -> u32 {
        (0..100).map(|_| u32::from(window.admit())).sum()
    }

    #[test]
    fn asynchronous_refills_as_places_return() {
        let mut window = Window::new(Admission::Asynchronous(3));
        assert_eq!(admitted(&mut window), 3);
        window.release();
        assert_eq!(admitted(&mut window), 1);
        assert_eq!(window.in_flight(), 3);
    }

    #[test]
    fn synchronous_waits_for_the_whole_group() {
        let mut window = Window::new(Admission::Synchronous(3));
        assert_eq!(admitted(&mut window), 3);
        window.release();
        window.release();
        assert_eq!(admitted(&mut window), 0);
        window.release();
        assert_eq!(admitted(&mut window), 3);
    }

    #[test]
    fn a_group_goes_on_after_an_early_outcome() {
        let mut window = Window::new(Admission::Synchronous(2));
        assert!(window.admit());
        window.release();
        assert!(window.admit(), "second of the same group");
        assert!(!window.admit());
    }

    #[test]
    fn a_limit_of_nothing_is_one() {
        assert_eq!(admitted(&mut Window::new(Admission::Synchronous(0))), 1);
        assert_eq!(admitted(&mut Window::new(Admission::Asynchronous(0))), 1);
    }
}
