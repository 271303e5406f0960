//! Evaluations: forward only, answered by replicas of the last stage.

use std::fmt::Debug;

use super::evaluation::Evaluation;
use super::{Action, Config, EVALUATION_TRIES, EVALUATIONS_MAX, EvaluationSchedule, Feeder, Outcome};
use crate::router::Completion;
use crate::{
    Attempt, Duration, Hop, Instance, Loss, MicrobatchId, Purpose, Refusal, RouteProof, StageIndex, Time,
};

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

    /// Begins the measurement that is due. It is left out if too many evaluations wait already.
    pub(super) fn evaluate_by_schedule(&mut self) {
        let Some(schedule) = self.own_schedule() else { return };
        let (injected, total) = (self.counts.injected, self.config.total);
        if let Some(purpose) = self.schedule.take_due(schedule, injected, total) {
            self.on_evaluate(0, schedule.microbatches, purpose);
        }
    }

    /// Begins the last measurements of the schedule, once.
    pub(super) fn evaluate_at_the_end(&mut self) {
        let Some(schedule) = self.own_schedule() else { return };
        for &purpose in self.schedule.take_last(self.config.stages) {
            self.on_evaluate(0, schedule.microbatches, purpose);
        }
    }

    /// The schedule of measurements, if it is this feeder that follows it.
    fn own_schedule(&self) -> Option<EvaluationSchedule> {
        self.config.evaluation.filter(|_| !self.stopped && self.is_caller())
    }

    pub(super) fn on_evaluated(
        &mut self,
        now: Time,
        from: Instance,
        proof: &RouteProof,
        attempt: Attempt,
        loss: Loss,
    ) {
        let id = proof.microbatch;
        let last = Hop::replica(StageIndex(self.config.stages.saturating_sub(1)), from);
        let asked = self.open.get(&id).is_some_and(|open| !open.trains())
            && self.handoff.contains_number(id, attempt);
        if !self.table.placed(&last) || !asked || !self.believes(proof, last) {
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

    /// A result has not arrived for a while. No replica can be asked for it, since replicas pass an evaluation on and
    /// forget it; while results of others arrive, it may wait behind them.
    pub(super) fn await_evaluated(&mut self, now: Time, id: MicrobatchId) {
        let sent_at = self.handoff.sent_at(id).unwrap_or_default();
        if now < sent_at.max(self.evaluation_heard) + self.patience(sent_at) {
            return self.handoff.restart_wait(now, id);
        }
        if self.handoff.attempts(id) >= EVALUATION_TRIES {
            return self.settle(now, id, Outcome::Unanswered);
        }
        self.handoff.fail(now, id, Completion::Lost);
        self.wait_for_replica(id);
    }

    /// How long a result is awaited while none arrives. Before the first return it depends on whether a
    /// replica has left since, which may have had the evaluation.
    fn patience(&self, sent_at: Time) -> Duration {
        let Config { status_after, evaluation_timeout, .. } = self.config;
        let unknown = if self.departure >= Some(sent_at) { status_after } else { evaluation_timeout };
        self.handoff.long_turnaround().unwrap_or(unknown).min(evaluation_timeout)
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
            self.watch_measured(&evaluation.measured());
            self.actions.push_back(Action::Evaluated(evaluation.measured()));
        }
    }
}
