//! The end of a microbatch at a replica: its outcome is announced, or it is refused here.

use std::fmt::Debug;

use super::microbatch::{ClaimState, Microbatch, Phase, UpdateState};
use super::{Action, Job, JobOutcome, Note, Stage};
use crate::mutation::Mutation;
use crate::router::Completion;
use crate::{AckRange, Duration, Hop, Instance, Message, MicrobatchId, Refusal, RouteProof, Time};

/// When the run is finished, grants that were given before are awaited for this long.
const LAST_GRANTS_WITHIN: Duration = Duration::from_secs(2);

impl<P: Clone + Default + Debug> Stage<P> {
    // --- Announced outcomes ---------------------------------------------------------------------------------

    /// A feeder announces outcomes. Its word counts for the ids that the table gives it.
    pub(super) fn on_outcomes(&mut self, now: Time, from: Instance, mut ranges: Vec<AckRange>) {
        if self.config.breaks(Mutation::ReleaseOpen) {
            ranges.iter_mut().for_each(|range| range.open.clear());
        }
        let own: Vec<_> = self.table.leased_by(from.peer).collect();
        self.outcomes.announce(from.peer, &ranges, &own);
        self.outcomes.settle(self.table.leases());
        self.release_ended(now);
    }

    /// The clock of the run at a microbatch: the number of microbatches before it, of its own feeder by their ids, of others
    /// as far as this replica knows their outcomes. The learning rate follows it, since a replica's own steps depend on how
    /// many replicas share the work; and outcomes alone would lag by what is in flight. `None` in a synchronous run: its
    /// own steps tell a replica the time exactly.
    #[must_use]
    pub fn clock_at(&self, microbatch: MicrobatchId) -> Option<u64> {
        (!self.config.synchronous).then(|| self.outcomes.clock_at(microbatch))
    }

    /// The clock of the run at a job that computes gradients of the weights; `None` at any other job.
    pub(crate) fn clock_of_gradients(&self, job: &Job<P>) -> Option<u64> {
        job.granted().map(|_| self.outcomes.clock_at(job.microbatch()))
    }

    /// Whether the outcome of the microbatch is announced, or the table has closed its block: the announcement of a feeder
    /// that has ended may be lost.
    pub(super) fn has_ended(&self, id: MicrobatchId) -> bool {
        self.outcomes.contain(id) || self.table.is_closed(id)
    }

    pub(super) fn release_ended(&mut self, now: Time) {
        let (outcomes, table) = (&self.outcomes, &self.table);
        let ended = |id| outcomes.contain(id) || table.is_closed(id);
        self.forfeits.release(ended);
        self.given_back.release(ended);
        let ids: Vec<_> = self.microbatches.keys().copied().filter(|&id| ended(id)).collect();
        for id in ids {
            if let Some(held) = self.microbatches.get_mut(&id) {
                held.ended = true;
                self.release_if_over(now, id);
            }
        }
    }

    /// The run is finished: gradients without a grant are not applied, but a grant may still be on its way.
    pub(super) fn on_finished(&mut self, now: Time) {
        if !std::mem::replace(&mut self.finished, true) {
            self.draining = true;
            self.grants_until = Some(now + LAST_GRANTS_WITHIN);
        }
        let ids: Vec<_> = self.microbatches.keys().copied().collect();
        for id in ids {
            if let Some(held) = self.microbatches.get_mut(&id) {
                held.ended = true;
                self.release_if_over(now, id);
            }
        }
    }

    /// Denies the open claims once [`LAST_GRANTS_WITHIN`] is over: no feeder answers any more.
    pub(super) fn give_up_claims(&mut self, now: Time) {
        if self.grants_until.take_if(|until| *until <= now).is_none() {
            return;
        }
        let claimed = |held: &Microbatch<P>| matches!(held.claim, ClaimState::Claimed { .. });
        let ids: Vec<_> =
            self.microbatches.iter().filter(|(_, held)| claimed(held)).map(|(&id, _)| id).collect();
        for id in ids {
            if let Some(held) = self.microbatches.get_mut(&id) {
                held.claim = ClaimState::Denied;
                self.settle_update(id);
                self.release_if_over(now, id);
            }
        }
    }

    /// Frees a microbatch that has its outcome, unless the executor still owes a reply or granted gradients are not yet
    /// applied.
    pub(super) fn release_if_over(&mut self, now: Time, id: MicrobatchId) {
        let Some(held) = self.microbatches.get_mut(&id).filter(|held| held.ended) else { return };
        let claimed = matches!(held.claim, ClaimState::Claimed { .. } | ClaimState::Granted);
        let over = match held.phase {
            // The gradient went another way.
            Phase::ForwardQueued { .. } | Phase::Unrouted { .. } | Phase::HandedOn => true,
            Phase::BackwardQueued { .. } => !claimed,
            Phase::Forwarding if !self.config.is_last() => {
                held.phase = Phase::Cancelled;
                false
            }
            Phase::Forwarding | Phase::Backwarding { .. } | Phase::Cancelled => false,
            Phase::Returned(_) => held.update == UpdateState::Done,
            Phase::Refused { .. } => true,
        };
        if over {
            // What a neighbour still has came back from another: it earns nothing by that.
            self.remove(now, id, Completion::Refused);
        }
    }

    /// Takes a microbatch out of every list, and its stash out of the executor.
    pub(super) fn remove(&mut self, now: Time, id: MicrobatchId, how: Completion) {
        self.handoff.forget(now, id, how);
        if let Some(held) = self.microbatches.remove(&id) {
            if held.is_stashed() {
                self.forget_stash(id);
            }
            self.queue.remove(id);
            self.unrouted.retain(|&unrouted| unrouted != id);
            self.forfeit_unapplied(id, &held);
        }
    }

    fn forget_stash(&mut self, id: MicrobatchId) {
        self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
    }

    // --- Refusals -------------------------------------------------------------------------------------------

    /// Refuses a microbatch that was held: the feeder is told, and announces the outcome to every replica.
    pub(super) fn refuse(&mut self, now: Time, id: MicrobatchId, reason: Refusal) {
        self.handoff.complete(now, id, Completion::Refused);
        let Some(held) = self.microbatches.get_mut(&id) else { return };
        let stashed = matches!(held.phase, Phase::Unrouted { .. } | Phase::HandedOn) && held.trains();
        let (trains, proof) = (held.trains(), held.proof(id));
        let feeder = held.feeder();
        held.takes_slot = false;
        held.update = UpdateState::Done;
        held.phase = Phase::Refused { reason: reason.clone(), told_at: now };
        self.queue.unblock(id);
        self.unrouted.retain(|&unrouted| unrouted != id);
        if stashed {
            self.forget_stash(id);
        }
        self.await_feeder(now, feeder);
        self.tell_refused(feeder, proof, reason.clone());
        self.count(Note::Refused(id, reason));
        if !trains {
            self.remove(now, id, Completion::Refused);
        }
    }

    fn tell_refused(&mut self, feeder: Option<Hop>, proof: RouteProof, reason: Refusal) {
        if let Some(feeder) = feeder {
            self.send(feeder, Message::Refused { proof, by: self.config.hop(), reason });
        }
    }

    /// Repeats a refusal that the feeder has not announced.
    pub(super) fn tell_refused_again(&mut self, now: Time, id: MicrobatchId) {
        let Some(held) = self.microbatches.get_mut(&id) else { return };
        let (feeder, proof) = (held.feeder(), held.proof(id));
        if let Phase::Refused { reason, told_at } = &mut held.phase {
            *told_at = now;
            let reason = reason.clone();
            self.tell_refused(feeder, proof, reason);
        }
    }

    /// Refuses a forward that does not fit this stage and was never held.
    pub(super) fn decline(&mut self, proof: RouteProof) {
        let (id, feeder) = (proof.microbatch, proof.route.first().copied());
        let feeder = feeder.filter(|hop| self.table.placed(hop) && hop.stage.is_none());
        let reason = Refusal::Malformed("the route does not lead here".to_owned());
        self.tell_refused(feeder, proof, reason);
        self.count(Note::Malformed(id));
    }

    /// The executor's result for a microbatch that ended in the meantime.
    pub(super) fn discard(&mut self, now: Time, id: MicrobatchId, outcome: &JobOutcome<P>) {
        self.remove(now, id, Completion::Returned);
        if matches!(outcome, JobOutcome::Forwarded { .. }) {
            self.forget_stash(id);
        }
    }

    /// The executor replied to another job than it was given: a bug on this machine that costs one microbatch.
    pub(super) fn refuse_mismatch(
        &mut self,
        now: Time,
        id: MicrobatchId,
        phase: Phase<P>,
        outcome: &JobOutcome<P>,
    ) {
        if matches!(outcome, JobOutcome::Forwarded { .. }) {
            self.forget_stash(id);
        }
        self.count(Note::Unexpected(id));
        if matches!(phase, Phase::Returned(_)) {
            if let Some(held) = self.microbatches.get_mut(&id) {
                held.phase = phase;
            }
            return self.applied(id);
        }
        self.refuse(now, id, Refusal::Device("the executor replied to another job".to_owned()));
    }
}
