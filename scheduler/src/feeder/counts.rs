//! Counters of a feeder: the outcomes of its microbatches, and the incidents on the way.

use crate::router::Completion;
use crate::{Hop, Loss, MicrobatchId, Refusal};

/// The outcome of a microbatch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// The gradient came back, and a replica of every stage has the grant.
    Finished {
        /// The training loss.
        loss: Loss,
    },
    /// A replica refused the microbatch.
    Refused {
        /// The replica.
        by: Hop,
        /// The reason that it gave.
        reason: Refusal,
    },
    /// An evaluation microbatch was answered.
    Evaluated {
        /// Its loss on held-out text.
        loss: Loss,
    },
    /// An evaluation was sent [`EVALUATION_TRIES`](super::EVALUATION_TRIES) times and never answered.
    Unanswered,
}

impl Outcome {
    pub(super) fn evaluated(&self) -> Option<Loss> {
        if let Self::Evaluated { loss } = self { Some(*loss) } else { None }
    }

    pub(super) fn completion(&self) -> Completion {
        match self {
            Self::Finished { .. } | Self::Evaluated { .. } => Completion::Returned,
            Self::Refused { .. } => Completion::Refused,
            Self::Unanswered => Completion::Lost,
        }
    }
}

/// Totals of a feeder, those before a restart included. All but evaluations are about training microbatches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Microbatches sent to stage 0.
    pub injected: u64,
    /// Microbatches that came back.
    pub finished: u64,
    /// Microbatches refused, for any reason.
    pub refused: u64,
    /// Microbatches of `refused` that were abandoned in a takeover.
    pub abandoned: u64,
    /// Microbatches of a range taken over that had their outcome before; in no other count.
    pub inherited: u64,
    /// Microbatches injected that have no outcome yet.
    pub in_flight: u64,
    /// Microbatches injected, but neither in flight nor with an outcome. A sound feeder has none.
    pub lost: u64,
    /// Stages of finished microbatches without a grant. A sound feeder has none.
    pub ungranted: u64,
    /// Retries: microbatches sent to stage 0 again after a replica was lost.
    pub retried: u64,
    /// Contributions granted to replicas that died before they were averaged.
    pub contributions_lost: u64,
    /// Claims denied because another replica has the grant: work done twice, applied once.
    pub denied: u64,
    /// Claims, refusals and evaluations whose proof does not hold: a replica lies.
    pub forged: u64,
    /// Evaluations answered with a loss.
    pub evaluated: u64,
    /// Messages about microbatches that have their outcome.
    pub late: u64,
    /// Messages from a peer that the feeder did not expect them from.
    pub foreign: u64,
}

impl Counts {
    /// A microbatch has its outcome.
    pub(super) fn settle(&mut self, microbatch: MicrobatchId, outcome: &Outcome) {
        let trains = !microbatch.is_evaluation();
        self.in_flight -= u64::from(trains && self.in_flight > 0);
        match outcome {
            Outcome::Finished { .. } => self.finished += 1,
            Outcome::Refused { .. } => self.refused += u64::from(trains),
            Outcome::Evaluated { .. } => self.evaluated += 1,
            Outcome::Unanswered => {}
        }
    }
}
