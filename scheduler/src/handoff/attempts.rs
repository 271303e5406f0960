//! The replicas that a microbatch was handed to, attempt by attempt.

use crate::{Attempt, Hop};

/// Attempts of one microbatch whose reply is still accepted, at most; older ones are forgotten.
const ATTEMPTS_MAX: usize = 8;

/// One direction of an exchange about a microbatch: the neighbour, and the number of the attempt. Attempts are numbered
/// per direction, so a retry changes only one of the two numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Leg {
    pub(crate) hop: Hop,
    pub(crate) attempt: Attempt,
}

/// The attempts to hand one microbatch on, the latest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Attempts {
    next: Attempt,
    legs: Vec<Leg>,
}

impl Attempts {
    /// No attempt yet; the first will have this number.
    pub(crate) fn from(first: Attempt) -> Self {
        Self { next: first, legs: Vec::new() }
    }

    /// Notes an attempt with `hop` and returns its number.
    pub(crate) fn add(&mut self, hop: Hop) -> Attempt {
        let attempt = self.next;
        self.next = Attempt(attempt.0.saturating_add(1));
        if self.legs.len() >= ATTEMPTS_MAX {
            self.legs.remove(0);
        }
        self.legs.push(Leg { hop, attempt });
        attempt
    }

    pub(crate) fn latest(&self) -> Option<Leg> {
        self.legs.last().copied()
    }

    pub(crate) fn contain(&self, leg: Leg) -> bool {
        self.legs.contains(&leg)
    }

    pub(crate) fn contain_number(&self, attempt: Attempt) -> bool {
        self.legs.iter().any(|leg| leg.attempt == attempt)
    }

    /// Attempts so far, at most as many as are remembered.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.legs.len()).unwrap_or(u32::MAX)
    }
}
