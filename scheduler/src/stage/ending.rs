//! The end of a microbatch at a replica: its outcome is announced, or it is refused here.

use std::fmt::Debug;

use super::microbatch::{Claim, Phase, Share, Visit};
use super::{Action, Done, Job, Note, Stage};
use crate::router::Settled;
use crate::{Hop, Message, MicrobatchId, Refusal, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    // --- Its outcome is known elsewhere ----------------------------------------------------------------------

    pub(super) fn release_ended(&mut self, now: Time) {
        let ended = |id: &&MicrobatchId| self.outcomes.contain(**id);
        let ids: Vec<_> = self.visits.keys().filter(ended).copied().collect();
        for id in ids {
            if let Some(visit) = self.visits.get_mut(&id) {
                visit.ended = true;
                self.release_if_over(now, id);
            }
        }
    }

    /// No feeder answers any more: what was not granted by now is not applied.
    pub(super) fn on_finished(&mut self, now: Time) {
        (self.draining, self.finished) = (true, true);
        let ids: Vec<_> = self.visits.keys().copied().collect();
        for id in ids {
            if let Some(visit) = self.visits.get_mut(&id) {
                visit.ended = true;
                if matches!(visit.claim, Claim::Asked { .. }) {
                    visit.claim = Claim::Denied;
                }
                self.settle_share(id);
                self.release_if_over(now, id);
            }
        }
    }

    /// Frees a microbatch that has its outcome, once nothing is owed for it here: neither an answer of the executor
    /// nor gradients that were granted.
    pub(super) fn release_if_over(&mut self, now: Time, id: MicrobatchId) {
        let Some(visit) = self.visits.get_mut(&id).filter(|visit| visit.ended) else { return };
        let claimed = matches!(visit.claim, Claim::Asked { .. } | Claim::Granted);
        let over = match visit.phase {
            Phase::ForwardQueued { .. }
            | Phase::Unrouted { .. }
            | Phase::Passed { .. }
            | Phase::BackwardQueued { .. } => !claimed,
            Phase::Forwarding if !claimed && visit.claim == Claim::None => {
                visit.phase = Phase::Cancelled;
                false
            }
            Phase::Forwarding | Phase::Backwarding { .. } | Phase::Cancelled => false,
            Phase::Answered(_) => visit.share == Share::Settled,
            Phase::Refused { .. } => true,
        };
        if over {
            self.remove(now, id, Settled::Returned);
        }
    }

    /// Takes a microbatch out of every list, and its stash out of the executor.
    pub(super) fn remove(&mut self, now: Time, id: MicrobatchId, how: Settled) {
        self.settle_sending(now, id, how);
        if let Some(visit) = self.visits.remove(&id) {
            let stashed = matches!(
                visit.phase,
                Phase::Unrouted { .. } | Phase::Passed { .. } | Phase::BackwardQueued { .. }
            );
            if stashed && visit.trains() {
                self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
            }
            self.tasks.remove(id);
            self.unrouted.retain(|&unrouted| unrouted != id);
        }
    }

    /// The latest sending is not awaited any more.
    pub(super) fn settle_sending(&mut self, now: Time, id: MicrobatchId, how: Settled) {
        if let Some(awaited) = self.visits.get(&id).and_then(Visit::awaited) {
            self.router.on_settled(now, awaited.hop, id, how);
        }
    }

    // --- What goes wrong here -------------------------------------------------------------------------------

    /// The bad end of a microbatch: the feeder hears of it and announces it to everyone.
    pub(super) fn refuse(&mut self, now: Time, id: MicrobatchId, reason: Refusal) {
        self.settle_sending(now, id, Settled::Refused);
        let Some(visit) = self.visits.get_mut(&id) else { return };
        let stashed = matches!(visit.phase, Phase::Unrouted { .. } | Phase::Passed { .. });
        let trains = visit.trains();
        let arbiter = visit.arbiter();
        visit.slotted = false;
        visit.share = Share::Settled;
        visit.phase = Phase::Refused { reason: reason.clone(), told: now };
        self.ungranted = self.ungranted.filter(|&ungranted| ungranted != id);
        self.unrouted.retain(|&unrouted| unrouted != id);
        if stashed && trains {
            self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
        }
        self.check_by(now + self.config.ask_after);
        self.tell_refused(arbiter, id, reason.clone());
        self.count(Note::Refused(id, reason));
        if !trains {
            self.visits.remove(&id);
        }
    }

    pub(super) fn tell_refused(&mut self, arbiter: Option<Hop>, id: MicrobatchId, reason: Refusal) {
        if let Some(feeder) = arbiter {
            self.send(feeder, Message::Refused { microbatch: id, by: self.config.hop(), reason });
        }
    }

    /// A forward that was never held and never will be.
    pub(super) fn decline(&mut self, id: MicrobatchId, arbiter: Option<Hop>) {
        let feeder = arbiter.filter(|hop| self.table.placed(hop) && hop.stage.is_none());
        let reason = Refusal::Malformed("the route does not lead here".to_owned());
        self.tell_refused(feeder, id, reason);
        self.count(Note::Malformed(id));
    }

    /// What the executor computed for a microbatch that ended in the meantime.
    pub(super) fn discard(&mut self, id: MicrobatchId, done: &Done<P>) {
        self.visits.remove(&id);
        if matches!(done, Done::Forwarded { .. }) {
            self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
        }
    }

    /// The executor answered another question than it was asked: a bug on this machine, survivable.
    pub(super) fn refuse_mismatch(&mut self, now: Time, id: MicrobatchId, phase: Phase<P>, done: &Done<P>) {
        if matches!(done, Done::Forwarded { .. }) {
            self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
        }
        self.count(Note::Unexpected(id));
        if matches!(phase, Phase::Answered(_)) {
            if let Some(visit) = self.visits.get_mut(&id) {
                visit.phase = phase;
            }
            return self.applied(id);
        }
        self.refuse(now, id, Refusal::Device("the executor answered another job".to_owned()));
    }
}
