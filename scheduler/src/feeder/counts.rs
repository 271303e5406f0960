//! What a feeder counts: the outcomes of its microbatches, and what went wrong on the way.

use crate::router::Completion;
use crate::{Hop, Loss, MicrobatchId, Refusal};

/// What became of a microbatch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It came back, and a replica of every stage has the grant.
    Finished {
        /// The training loss.
        loss: Loss,
    },
    /// A replica refused it.
    Refused {
        /// The replica.
        by: Hop,
        /// Why.
        reason: Refusal,
    },
    /// An evaluation gave its loss.
    Evaluated {
        /// The loss.
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
    /// Sent to stage 0.
    pub injected: u64,
    /// Finished.
    pub finished: u64,
    /// Refused, whatever the reason.
    pub refused: u64,
    /// Those of them that were abandoned when they were taken over.
    pub abandoned: u64,
    /// Had their outcome before they were taken over; in no other count.
    pub inherited: u64,
    /// Injected, no outcome yet.
    pub in_flight: u64,
    /// Injected, but neither in flight nor with an outcome. A sound feeder has none.
    pub lost: u64,
    /// Stages of finished microbatches without a grant. A sound feeder has none.
    pub ungranted: u64,
    /// Sent to stage 0 again.
    pub retried: u64,
    /// Contributions granted to replicas that died before they were averaged.
    pub contributions_lost: u64,
    /// Claims denied because another replica has the grant: work done twice, applied once.
    pub denied: u64,
    /// Evaluations answered with a loss.
    pub evaluated: u64,
    /// Answers about microbatches that have their outcome.
    pub late: u64,
    /// Messages from a peer that was not asked.
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
