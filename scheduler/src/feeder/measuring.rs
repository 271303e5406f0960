//! Evaluations wait until training has run dry, and are answered by the last stage.

use std::fmt::Debug;

use super::evaluation::Evaluation;
use super::open::Open;
use super::{Action, EVALUATION_TRIES, EVALUATIONS_MAX, Feeder, Outcome};
use crate::router::Settled;
use crate::{Attempt, Hop, Incarnation, Loss, MicrobatchId, PeerId, Purpose, Refusal, StageIndex, Time};

impl<P: Clone + Default + Debug> Feeder<P> {
    pub(super) fn on_evaluate(&mut self, first: u64, count: u64, purpose: Purpose) {
        if self.stopped || self.evaluations.len() >= EVALUATIONS_MAX {
            return self.actions.push_back(Action::EvaluationDeclined);
        }
        let purpose = if purpose == Purpose::Train { Purpose::Evaluate } else { purpose };
        let attempt = Attempt(self.evaluation_rounds);
        self.evaluation_rounds = self.evaluation_rounds.wrapping_add(EVALUATION_TRIES);
        self.evaluations.push_back(Evaluation::new(first, count, purpose, attempt));
        self.notice_measured();
    }

    pub(super) fn on_evaluated(
        &mut self,
        now: Time,
        from: PeerId,
        incarnation: Incarnation,
        id: MicrobatchId,
        attempt: Attempt,
        loss: Loss,
    ) {
        let last =
            Hop { stage: Some(StageIndex(self.config.stages.saturating_sub(1))), peer: from, incarnation };
        let asked = |open: &&Open<P>| !open.trains() && open.sendings.any_with(attempt);
        if !self.table.placed(&last) || self.open.get(&id).filter(asked).is_none() {
            return self.counts.late += 1;
        }
        self.evaluation_heard = now;
        let outcome = if loss.sum.is_finite() {
            Outcome::Evaluated { loss }
        } else {
            Outcome::Refused { by: last, reason: Refusal::NonFinite }
        };
        self.settle(now, id, outcome);
    }

    pub(super) fn evaluate_again(&mut self, now: Time, id: MicrobatchId) {
        if now.since(self.evaluation_heard) < self.config.evaluation_patience {
            return;
        }
        let tries = self.open.get(&id).map_or(0, |open| open.sendings.count());
        if tries >= EVALUATION_TRIES {
            return self.settle(now, id, Outcome::Unanswered);
        }
        self.send_anew(now, id, Settled::Lost);
    }

    pub(super) fn settle_evaluation(&mut self, loss: Option<Loss>) {
        self.evaluation_window.release();
        if let Some(evaluation) = self.evaluations.front_mut() {
            evaluation.settle(loss);
        }
        self.notice_measured();
    }

    pub(super) fn notice_measured(&mut self) {
        while let Some(evaluation) = self.evaluations.pop_front_if(|evaluation| evaluation.is_over()) {
            self.actions.push_back(Action::EvaluationDone(evaluation.measured()));
        }
    }
}
