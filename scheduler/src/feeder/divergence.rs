//! Divergence: the point from which training cannot come back.
//!
//! Weights that are not finite make every number behind them not finite, so the microbatches of the run are refused one
//! after the other, or no held-out loss is a number. Time heals neither: the feeder ends the run, and says why.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::fmt::Debug;

use super::{End, Feeder, Measured, Outcome};
use crate::{Hop, Refusal};

/// The latest outcomes of training microbatches that are looked at. A burst of odd text is shorter.
pub const OUTCOMES_WATCHED: usize = 64;

/// More refusals than this among them are a divergence.
const REFUSALS_MAX: usize = OUTCOMES_WATCHED / 2;

/// The sign by which a divergence was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divergence {
    /// This many of the latest [`OUTCOMES_WATCHED`] microbatches were refused, since a number in them was not finite.
    Refusals(usize),
    /// The loss on held-out text is not finite.
    HeldOutLoss,
    /// Another feeder has reported it to the coordinator.
    Reported,
}

impl fmt::Display for Divergence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refusals(refused) => write!(
                f,
                "{refused} of the latest {OUTCOMES_WATCHED} microbatches were refused, for numbers in them that are not finite"
            ),
            Self::HeldOutLoss => f.write_str("the loss on held-out text is not finite"),
            Self::Reported => f.write_str("a feeder of the run has reported it"),
        }
    }
}

/// The latest outcomes; of those that were refused for numbers that are not finite, the replica `R` that refused.
#[derive(Clone, Debug)]
pub struct DivergenceWatch<R> {
    latest: VecDeque<Option<R>>,
}

impl<R> Default for DivergenceWatch<R> {
    fn default() -> Self {
        Self { latest: VecDeque::with_capacity(OUTCOMES_WATCHED) }
    }
}

impl<R: PartialEq> DivergenceWatch<R> {
    /// A microbatch has its outcome; `refused_by`: a number in it was not finite.
    pub fn note(&mut self, refused_by: Option<R>) {
        if self.latest.len() == OUTCOMES_WATCHED {
            self.latest.pop_front();
        }
        self.latest.push_back(refused_by);
    }

    /// The divergence that the latest outcomes show, if they do.
    #[must_use]
    pub fn sign(&self) -> Option<Divergence> {
        let refused = self.latest.iter().flatten().count();
        (refused > REFUSALS_MAX).then_some(Divergence::Refusals(refused))
    }

    /// The replica that is behind all refusals; `None` if there are several, or none.
    fn sole_refuser(&self) -> Option<&R> {
        let mut refusers = self.latest.iter().flatten();
        let first = refusers.next()?;
        refusers.all(|refuser| refuser == first).then_some(first)
    }
}

/// What a feeder has seen of a divergence.
#[derive(Clone, Debug, Default)]
pub(super) struct Signs {
    latest: DivergenceWatch<Hop>,
    /// The replicas that have refused microbatches of the measurement under way.
    evaluation_refusers: BTreeSet<Hop>,
    /// No microbatch of a measurement had a finite loss.
    held_out: bool,
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A microbatch has its outcome. Refusals for other reasons say nothing about the weights.
    pub(super) fn watch(&mut self, outcome: &Outcome, trains: bool) {
        let signs = &mut self.signs;
        match outcome {
            Outcome::Finished { .. } => signs.latest.note(None),
            Outcome::Refused { by, reason: Refusal::NonFinite } if trains => signs.latest.note(Some(*by)),
            Outcome::Refused { by, reason: Refusal::NonFinite } => {
                signs.evaluation_refusers.insert(*by);
            }
            Outcome::Refused { .. } | Outcome::Evaluated { .. } | Outcome::Unanswered => {}
        }
    }

    /// A measurement of the loss on held-out text is over.
    pub(super) fn watch_measured(&mut self, measured: &Measured) {
        let refusers = std::mem::take(&mut self.signs.evaluation_refusers);
        let sole = refusers.first().filter(|_| refusers.len() == 1);
        let is_of_the_run = !refusers.is_empty() && !sole.is_some_and(|refuser| self.has_twins(refuser));
        self.signs.held_out |= measured.answered == 0 && is_of_the_run;
    }

    /// Ends a run that has diverged: the coordinator is told, and tells all members.
    pub(super) fn notice_divergence(&mut self) {
        let latest = &self.signs.latest;
        let refusals = latest.sign().filter(|_| !latest.sole_refuser().is_some_and(|by| self.has_twins(by)));
        let held_out = self.signs.held_out.then_some(Divergence::HeldOutLoss);
        if let Some(sign) = refusals.or(held_out) {
            let at = self.settled_of_run();
            self.finish(End::Diverged { at, sign });
        }
    }

    /// Whether the stage of a replica has others: the weights, or the word, of one of several are not those of the run.
    fn has_twins(&self, replica: &Hop) -> bool {
        let twins = |stage| self.table.hops(stage).iter().any(|hop| hop.peer() != replica.peer());
        replica.stage.is_some_and(twins)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn most_of_the_latest_outcomes_are_a_divergence_and_half_of_them_are_none() {
        let mut watch = DivergenceWatch::default();
        for _ in 0..REFUSALS_MAX {
            watch.note(Some(1));
            watch.note(None);
        }
        assert_eq!(watch.sign(), None);
        watch.note(Some(2));
        assert_eq!(watch.sign(), None, "it came in place of an older refusal");
        watch.note(Some(2));
        assert_eq!(watch.sign(), Some(Divergence::Refusals(REFUSALS_MAX + 1)));
        assert_eq!(watch.sole_refuser(), None);
        (0..OUTCOMES_WATCHED).for_each(|_| watch.note(None));
        assert_eq!((watch.sign(), watch.sole_refuser()), (None, None));
        watch.note(Some(3));
        assert_eq!(watch.sole_refuser(), Some(&3));
    }
}
