//! The rest of an accumulation: contributions that wait for an optimizer step which no others will complete.
//!
//! A replica steps once for several contributions. When no more come, at the end of the run or when the replica leaves,
//! the contributions that are there make a step of their own. Otherwise they would be granted and in no weights.

use std::fmt::Debug;

use super::{Action, Replica};
use crate::mutation::Mutation;

/// The optimizer step that the replica is in.
#[derive(Debug)]
pub(super) struct Accumulation {
    /// Contributions of one step, at least 1.
    steps: u64,
    /// Contributions that the replica had applied when it stepped with fewer.
    stepped: u64,
}

impl Accumulation {
    /// No contribution yet.
    pub(super) fn new(gradient_accumulation_steps: u64) -> Self {
        Self { steps: gradient_accumulation_steps.max(1), stepped: 0 }
    }

    /// Contributions that wait for the rest of their step, of a replica that has `applied` so many.
    fn waiting(&self, applied: u64) -> u64 {
        applied.saturating_sub(self.stepped) % self.steps
    }

    /// The replica steps with those that wait. Returns whether there are any.
    fn step(&mut self, applied: u64) -> bool {
        let waits = self.waiting(applied) > 0;
        if waits {
            self.stepped = applied;
        }
        waits
    }
}

impl<P: Clone + Default + Debug> Replica<P> {
    /// In the last rounds, nothing more comes once no microbatch is held: the rest of the accumulation is stepped, so that
    /// these rounds carry it, and the final evaluation and keepers see it.
    pub(super) fn step_rest_at_the_end(&mut self) {
        if self.is_serving() && self.rounds.is_closing() && self.stage.held() == 0 {
            self.step_rest();
        }
    }

    /// Contributions that wait for the rest of their step.
    pub(super) fn waiting(&self) -> u64 {
        self.accumulation.waiting(self.stage.counts().applied)
    }

    /// Has the executor step with the contributions that wait for the rest of their step, if there are any.
    pub(super) fn step_rest(&mut self) {
        let applied = self.stage.counts().applied;
        if !self.config.stage.breaks(Mutation::KeepRest) && self.accumulation.step(applied) {
            self.actions.push_back(Action::StepRest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_with_fewer_contributions_begins_the_next_one() {
        let mut accumulation = Accumulation::new(4);
        assert_eq!([0, 3, 4, 9].map(|applied| accumulation.waiting(applied)), [0, 3, 0, 1]);
        assert!(!accumulation.step(8), "two whole steps");
        assert!(accumulation.step(10));
        assert!(!accumulation.step(10), "once");
        assert_eq!([11, 14, 15].map(|applied| accumulation.waiting(applied)), [1, 0, 1]);
        assert!(!Accumulation::new(1).step(7), "each contribution is a step");
    }
}
