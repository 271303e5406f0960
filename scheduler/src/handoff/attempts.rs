//! Who a microbatch was handed to, sending by sending.

use crate::{Attempt, Hop};

/// Sendings of one microbatch whose answer is still accepted, at most; older ones are forgotten.
const SENDINGS_MAX: usize = 8;

/// Who a microbatch is exchanged with, and under which attempt number. Upstream and downstream numbers are apart:
/// a sending anew changes one of them only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Neighbour {
    pub(crate) hop: Hop,
    pub(crate) attempt: Attempt,
}

/// Where a microbatch was sent on to, the latest last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Sendings {
    next: Attempt,
    to: Vec<Neighbour>,
}

impl Sendings {
    /// Notes a sending to `hop`; its attempt number.
    pub(crate) fn add(&mut self, hop: Hop) -> Attempt {
        let attempt = self.next;
        self.next = Attempt(attempt.0.saturating_add(1));
        if self.to.len() >= SENDINGS_MAX {
            self.to.remove(0);
        }
        self.to.push(Neighbour { hop, attempt });
        attempt
    }

    pub(crate) fn latest(&self) -> Option<Neighbour> {
        self.to.last().copied()
    }

    pub(crate) fn contain(&self, sending: Neighbour) -> bool {
        self.to.contains(&sending)
    }

    /// None yet; the first will have this number.
    pub(crate) fn from(first: Attempt) -> Self {
        Self { next: first, to: Vec::new() }
    }

    pub(crate) fn any_with(&self, attempt: Attempt) -> bool {
        self.to.iter().any(|sending| sending.attempt == attempt)
    }

    /// Sendings so far, at most as many as are remembered.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.to.len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn any(&self) -> bool {
        !self.to.is_empty()
    }
}
