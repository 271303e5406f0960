//! The microbatches that a replica gave back. If one comes again, its attempts are numbered on: a late reply to an earlier
//! attempt must not pass for a reply to a later one.

use std::collections::BTreeMap;

use crate::{Attempt, MicrobatchId};

/// Microbatches remembered at most; the lowest id is forgotten first.
const GIVEN_BACK_MAX: usize = 8_192;

/// For each microbatch given back, the number of its next attempt.
#[derive(Clone, Debug, Default)]
pub(super) struct GivenBack {
    next: BTreeMap<MicrobatchId, Attempt>,
}

impl GivenBack {
    pub(super) fn insert(&mut self, microbatch: MicrobatchId, latest: Option<Attempt>) {
        let next = latest.map_or(Attempt(0), |latest| Attempt(latest.0.saturating_add(1)));
        let known = self.next.entry(microbatch).or_default();
        *known = next.max(*known);
        if self.next.len() > GIVEN_BACK_MAX {
            self.next.pop_first();
        }
    }

    /// The number of the next attempt to hand the microbatch on, if it was given back before.
    pub(super) fn next_attempt(&self, microbatch: MicrobatchId) -> Option<Attempt> {
        self.next.get(&microbatch).copied()
    }

    /// Forgets the microbatches that have their outcome.
    pub(super) fn release(&mut self, has_ended: impl Fn(MicrobatchId) -> bool) {
        self.next.retain(|&id, _| !has_ended(id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attempts_are_numbered_on_until_the_outcome() {
        let (id, mut given_back) = (MicrobatchId(4), GivenBack::default());
        for latest in [Some(Attempt(2)), None] {
            given_back.insert(id, latest);
        }
        assert_eq!(given_back.next_attempt(id), Some(Attempt(3)));
        given_back.release(|_| true);
        assert_eq!(given_back.next_attempt(id), None);
        (0..2 * GIVEN_BACK_MAX as u64).for_each(|id| given_back.insert(MicrobatchId(id), None));
        assert_eq!(given_back.next.len(), GIVEN_BACK_MAX);
    }
}
