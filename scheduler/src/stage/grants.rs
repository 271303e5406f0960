//! Claims and grants: for each microbatch and stage the feeder grants exactly one claim, and only the replica that has
//! the grant applies its gradients.
//!
//! The claim goes out when the forward arrives: its answer is there before the gradient, however far the feeder is. If it
//! is not, the executor keeps the gradients apart and computes no others.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::microbatch::{ClaimState, Microbatch, UpdateState};
use super::{Action, Job, Note, Stage};
use crate::{Duration, Hop, Instance, Message, MicrobatchId, Time};

/// A claim is given up after this time, if its feeder is heard. A successor answers none before it has asked every
/// replica.
const ANSWERED_WITHIN: Duration = Duration::from_secs(90);

impl<P: Clone + Default + Debug> Stage<P> {
    /// Claims a microbatch from its feeder, unless its grant was used or handed back here before.
    pub(super) fn claim(&mut self, now: Time, id: MicrobatchId) {
        let (applied, forfeited) = (self.applied.contains(id), self.forfeits.contain(id));
        if let Some(held) = self.microbatches.get_mut(&id)
            && matches!(held.claim, ClaimState::Unclaimed | ClaimState::Claimed { .. })
        {
            if applied || forfeited {
                held.claim = if applied { ClaimState::Denied } else { ClaimState::GivenUp };
                return;
            }
            held.claim = ClaimState::Claimed { at: now };
            let clock = self.handoff.neighbours.clock(now);
            held.claimed_since.get_or_insert(clock);
            let feeder = held.feeder();
            self.claims.push(id);
            self.await_feeder(now, feeder);
        }
    }

    /// Gives up the claims that a feeder leaves unanswered, although it is heard: the microbatches are relayed only.
    pub(super) fn give_up_unanswered(&mut self, now: Time) {
        let clock = self.handoff.neighbours.clock(now);
        let overdue = |held: &&mut Microbatch<P>| {
            let since = held.claimed_since.filter(|_| held.is_unanswered());
            since.is_some_and(|since| since + ANSWERED_WITHIN <= clock)
        };
        let feeders = &self.feeders;
        let is_heard = |feeder: &Hop| !feeders.is_lost(feeder.peer());
        let mut given_up = Vec::new();
        for (&id, held) in &mut self.microbatches {
            if let Some(held) = Some(held).filter(overdue)
                && let Some(feeder) = held.feeder().filter(is_heard)
            {
                held.claim = ClaimState::GivenUp;
                given_up.push((id, feeder));
            }
        }
        for (id, feeder) in given_up {
            self.forfeit(id, feeder);
            self.settle_update(id);
            self.release_if_over(now, id);
        }
    }

    /// One message a feeder for all claims of the current event, and for the grants that are handed back to it.
    pub(super) fn send_claims(&mut self) {
        let forfeiting = std::mem::take(&mut self.forfeiting);
        let mut by_feeder: BTreeMap<Hop, Vec<MicrobatchId>> =
            forfeiting.into_iter().map(|feeder| (feeder, Vec::new())).collect();
        for id in std::mem::take(&mut self.claims) {
            if let Some(feeder) = self.microbatches.get(&id).and_then(Microbatch::feeder) {
                by_feeder.entry(feeder).or_default().push(id);
            }
        }
        let stage = self.config.stage;
        for (feeder, ids) in by_feeder {
            let claimed: Vec<_> =
                ids.iter().filter_map(|id| Some(self.microbatches.get(id)?.proof(*id))).collect();
            let mut forfeited = self.forfeits.owed_to(feeder.peer());
            let chunks = claimed.chunks(self.config.claims_max()).map(<[_]>::to_vec);
            let none = ids.is_empty().then(Vec::new);
            for claimed in chunks.chain(none) {
                let forfeited = std::mem::take(&mut forfeited);
                self.send(feeder, Message::Claim { stage, claimed, forfeited });
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
        self.forfeits.acknowledged(from.peer, denied);
        let granted = granted.iter().map(|id| (id, ClaimState::Granted));
        for (&id, answer) in granted.chain(denied.iter().map(|id| (id, ClaimState::Denied))) {
            if answer == ClaimState::Granted && self.forfeits.contain(id) {
                self.forfeit(id, Hop::feeder(from));
            }
            let Some(held) = self.microbatches.get_mut(&id) else { continue };
            let claimed = matches!(held.claim, ClaimState::Claimed { .. });
            if claimed && held.feeder().is_some_and(|feeder| feeder.peer() == from.peer) {
                held.claim = answer;
                self.settle_update(id);
                self.release_if_over(now, id);
            }
        }
    }

    /// The feeder did not hand these microbatches to the sender that they came from: the sender lies, or was lied to.
    pub(super) fn on_forged(&mut self, now: Time, from: Instance, forged: &[MicrobatchId]) {
        for &id in forged {
            let Some(held) = self.microbatches.get(&id) else { continue };
            let claimed = matches!(held.claim, ClaimState::Claimed { .. });
            if claimed && held.feeder().is_some_and(|feeder| feeder.peer() == from.peer) {
                let by = held.upstream.hop.instance;
                self.distrust.note(now, from.peer, by.peer);
                self.count(Note::Forged(id, by));
                self.give_up(now, id);
            }
        }
    }

    /// The gradients of the weights are applied under the grant, dropped without it.
    pub(super) fn settle_update(&mut self, id: MicrobatchId) {
        let waiting = |held: &&mut Microbatch<P>| held.update == UpdateState::AwaitingGrant;
        let Some(held) = self.microbatches.get_mut(&id).filter(waiting) else { return };
        let unanswered = held.is_unanswered();
        let lost = held.feeder().filter(|feeder| unanswered && self.feeders.is_lost(feeder.peer()));
        if let Some(feeder) = lost {
            held.claim = ClaimState::GivenUp;
            self.forfeit(id, feeder);
        }
        let Some(held) = self.microbatches.get_mut(&id) else { return };
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
        self.tell_again();
        let told = self.microbatches.values().filter_map(Microbatch::feeder_told_at);
        let owes = self.feeders.lost().chain(self.forfeits.feeders()).next().map(|_| now);
        self.feeder_check_at = told.chain(owes).min().map(|at| at + after);
    }

    /// Repeats the grants handed back. An empty claim asks a lost feeder for a sign of life.
    fn tell_again(&mut self) {
        let feeders = self.feeders.lost().chain(self.forfeits.feeders());
        let members = feeders.filter_map(|feeder| self.table.instance(feeder)).map(Hop::feeder);
        self.forfeiting.extend(members.collect::<Vec<_>>());
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
