//! Claims: each stage of a microbatch is granted to one replica. The contribution exists when the microbatch is finished;
//! it is lost with its replica, or if the replica never applies it.

use std::fmt::Debug;

use super::grants::Ruling;
use super::{Action, Feeder, Outcome, Record};
use crate::mutation::Mutation;
use crate::{Hop, Message, MicrobatchId, Time};

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Answers the claims of a replica, and takes back what it forfeits.
    pub(super) fn on_claim(
        &mut self,
        claimant: Hop,
        microbatches: &[MicrobatchId],
        mut forfeited: Vec<MicrobatchId>,
    ) {
        if !self.may_claim(&claimant) {
            return self.counts.foreign += 1;
        }
        if !forfeited.is_empty() {
            forfeited.retain(|&id| !self.succession.is_undecided(id));
            forfeited.iter().for_each(|&id| self.withdraw(id, claimant));
            self.send(claimant, Message::ClaimReply { granted: Vec::new(), denied: forfeited });
        }
        self.answer_claims(claimant, microbatches);
    }

    /// Grants the first claim of a stage; a replica that repeats its claim gets the same answer.
    pub(super) fn answer_claims(&mut self, claimant: Hop, microbatches: &[MicrobatchId]) {
        // The grants of a range that is being taken over are not known yet.
        let decided: Vec<_> =
            microbatches.iter().copied().filter(|&id| !self.succession.defers(claimant, id)).collect();
        // An empty claim asks for a sign of life.
        if decided.is_empty() && !microbatches.is_empty() {
            return;
        }
        let (granted, denied): (Vec<_>, Vec<_>) =
            decided.into_iter().partition(|&microbatch| self.grant(microbatch, claimant));
        self.counts.denied += denied.len() as u64;
        self.count_unheard(claimant, &denied);
        self.send(claimant, Message::ClaimReply { granted, denied });
    }

    fn may_claim(&self, claimant: &Hop) -> bool {
        let placed = self.table.placed(claimant) || self.config.breaks(Mutation::IgnoreIncarnation);
        placed && claimant.stage.is_some()
    }

    fn grant(&mut self, microbatch: MicrobatchId, claimant: Hop) -> bool {
        let ruling = self.grants.claim(microbatch, claimant);
        self.note_grant(microbatch, claimant, ruling);
        self.grants.answer(microbatch, claimant);
        ruling != Ruling::Denied || self.config.breaks(Mutation::GrantTwice)
    }

    pub(super) fn note_grant(&mut self, microbatch: MicrobatchId, to: Hop, ruling: Ruling) {
        if ruling == Ruling::New {
            self.actions.push_back(Action::Journal(Record::Granted { microbatch, to }));
        }
    }

    // --- Contributions --------------------------------------------------------------------------------------

    fn withdraw(&mut self, microbatch: MicrobatchId, from: Hop) {
        if self.grants.of(microbatch).contains(&from) {
            self.actions.push_back(Action::Journal(Record::Withdrawn { microbatch, from }));
            self.take_back(microbatch, from);
        }
    }

    /// The grant is free again while the microbatch is open. Afterwards the contribution is lost.
    pub(super) fn take_back(&mut self, microbatch: MicrobatchId, from: Hop) {
        let finished = self.grants.is_finished(microbatch);
        if self.grants.withdraw(microbatch, from) && finished {
            self.forfeit_contribution(from);
        }
    }

    /// From now on the contributions of a finished microbatch are in the weights of the replicas that have the grants.
    pub(super) fn note_contributions(&mut self, microbatch: MicrobatchId, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Finished { .. }) {
            return;
        }
        self.grants.finish(microbatch);
        for &hop in self.grants.of(microbatch) {
            self.contributions.grant(hop, self.rounds.called());
        }
    }

    /// Counts the contributions of replicas that left before the microbatch was finished.
    pub(super) fn lose_contributions_of_absent(&mut self, microbatch: MicrobatchId) {
        for hop in self.grants.of(microbatch) {
            if !self.table.placed(hop) {
                self.counts.contributions_lost += self.contributions.lose(hop);
            }
        }
    }

    pub(super) fn forget_old_grants(&mut self, now: Time) {
        for hop in self.grants.forget(now) {
            self.forfeit_contribution(hop);
        }
    }

    fn forfeit_contribution(&mut self, hop: Hop) {
        self.contributions.forfeit(&hop);
        self.counts.contributions_lost += u64::from(self.table.placed(&hop) || self.table.version() == 0);
    }
}
