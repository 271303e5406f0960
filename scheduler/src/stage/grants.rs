//! Claims and grants: for each microbatch and stage the feeder grants exactly one claim, and only the replica that has
//! the grant applies its gradients.
//!
//! The claim goes out when the gradient arrives, so its answer is rarely waited for. Until it comes the executor keeps
//! the gradients apart and computes no others.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::microbatch::{ClaimState, Microbatch, UpdateState};
use super::{Action, Job, Note, Stage};
use crate::message::CLAIM_MAX;
use crate::{Hop, Instance, Message, MicrobatchId, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    /// Claims a microbatch from its feeder as early as possible: when its gradient is on its way into the executor.
    pub(super) fn claim(&mut self, now: Time, id: MicrobatchId) {
        let applied = self.applied.contains(id);
        if let Some(held) = self.microbatches.get_mut(&id)
            && matches!(held.claim, ClaimState::Unclaimed | ClaimState::Claimed { .. })
        {
            if applied {
                held.claim = ClaimState::Denied;
                return;
            }
            held.claim = ClaimState::Claimed { at: now };
            let feeder = held.feeder();
            self.claims.push(id);
            self.await_feeder(now, feeder);
        }
    }

    /// One message a feeder for all claims of the current event.
    pub(super) fn send_claims(&mut self) {
        let mut by_feeder: BTreeMap<Hop, Vec<MicrobatchId>> = BTreeMap::new();
        for id in std::mem::take(&mut self.claims) {
            if let Some(feeder) = self.microbatches.get(&id).and_then(Microbatch::feeder) {
                by_feeder.entry(feeder).or_default().push(id);
            }
        }
        let stage = self.config.stage;
        for (feeder, ids) in by_feeder {
            for microbatches in ids.chunks(CLAIM_MAX) {
                self.send(feeder, Message::Claim { stage, microbatches: microbatches.to_vec() });
            }
        }
    }

    pub(super) fn on_claim_reply(
        &mut self,
        now: Time,
        from: Instance,
        granted: &[MicrobatchId],
        denied: &[MicrobatchId],
    ) {
        let granted = granted.iter().map(|id| (id, ClaimState::Granted));
        for (&id, answer) in granted.chain(denied.iter().map(|id| (id, ClaimState::Denied))) {
            let Some(held) = self.microbatches.get_mut(&id) else { continue };
            let claimed = matches!(held.claim, ClaimState::Claimed { .. });
            if claimed && held.feeder().is_some_and(|feeder| feeder.peer() == from.peer) {
                held.claim = answer;
                self.settle_update(id);
                self.release_if_over(now, id);
            }
        }
    }

    /// The gradients of the weights are applied under the grant, dropped without it.
    pub(super) fn settle_update(&mut self, id: MicrobatchId) {
        let waiting = |held: &&mut Microbatch<P>| held.update == UpdateState::AwaitingGrant;
        let Some(held) = self.microbatches.get_mut(&id).filter(waiting) else { return };
        let unanswered = matches!(held.claim, ClaimState::Unclaimed | ClaimState::Claimed { .. });
        if unanswered && held.feeder().is_some_and(|feeder| self.feeders.is_lost(feeder.peer())) {
            held.claim = ClaimState::GivenUp;
        }
        match held.claim {
            ClaimState::Granted => {
                held.update = UpdateState::Applying;
                self.queue.started_short();
                self.actions.push_back(Action::Execute(Job::Apply { microbatch: id }));
            }
            ClaimState::Denied | ClaimState::GivenUp => {
                held.update = UpdateState::Done;
                self.queue.unblock(id);
                self.actions.push_back(Action::Execute(Job::Drop { microbatch: id }));
                self.count(Note::Relayed(id));
            }
            ClaimState::Unclaimed | ClaimState::Claimed { .. } => {}
        }
    }

    pub(super) fn applied(&mut self, id: MicrobatchId) {
        if let Some(held) = self.microbatches.get_mut(&id) {
            held.update = UpdateState::Done;
            self.queue.unblock(id);
            self.applied.insert(id);
            self.count(Note::Applied(id));
        }
    }

    /// Repeats the claims and refusals that a feeder has not answered for [`super::Config::status_after`].
    pub(super) fn remind_feeders(&mut self, now: Time) {
        if self.feeder_check_at.is_none_or(|at| at > now) {
            return;
        }
        let after = self.config.status_after;
        let overdue = |held: &Microbatch<P>| held.feeder_told_at().is_some_and(|at| at + after <= now);
        let ids: Vec<_> =
            self.microbatches.iter().filter(|(_, held)| overdue(held)).map(|(&id, _)| id).collect();
        for id in ids {
            self.tell_refused_again(now, id);
            if self.microbatches.get(&id).is_some_and(|held| matches!(held.claim, ClaimState::Claimed { .. }))
            {
                self.claim(now, id);
            }
        }
        self.probe_lost_feeders();
        let told = self.microbatches.values().filter_map(Microbatch::feeder_told_at);
        let probe = self.feeders.lost().next().map(|_| now);
        self.feeder_check_at = told.chain(probe).min().map(|at| at + after);
    }

    /// An empty claim asks a lost feeder for a sign of life.
    fn probe_lost_feeders(&mut self) {
        let lost: Vec<_> = self.feeders.lost().filter_map(|feeder| self.table.instance(feeder)).collect();
        for feeder in lost {
            let claim = Message::Claim { stage: self.config.stage, microbatches: Vec::new() };
            self.send(Hop::feeder(feeder), claim);
        }
    }

    /// A feeder was told something that it answers: it is reminded after [`super::Config::status_after`].
    pub(super) fn await_feeder(&mut self, now: Time, feeder: Option<Hop>) {
        let at = now + self.config.status_after;
        self.feeder_check_at = Some(self.feeder_check_at.map_or(at, |known| known.min(at)));
        if let Some(feeder) = feeder {
            self.feeders.asked(self.handoff.neighbours.clock(now), feeder.peer());
        }
    }
}
