//! Claims: each stage of a microbatch is granted to one replica. The contribution exists when the microbatch is finished;
//! it is lost with its replica, or if the replica never applies it.

use std::fmt::Debug;

use super::grants::{Ruling, gone};
use super::suspicion::Belief;
use super::{Action, Feeder, Outcome, Record};
use crate::averaging::Round;
use crate::mutation::Mutation;
use crate::{Hop, Message, MicrobatchId, RouteProof, StageIndex, Time};

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Answers the claims of a replica, and takes back what it forfeits.
    pub(super) fn on_claim(
        &mut self,
        now: Time,
        claimant: Hop,
        mut claimed: Vec<RouteProof>,
        mut forfeited: Vec<MicrobatchId>,
    ) {
        if !self.may_claim(&claimant) {
            return self.counts.foreign += 1;
        }
        // The replica may know a newer table, which gives this feeder ids of another: it asks again.
        claimed.retain(|proof| self.decides(proof.microbatch));
        forfeited.retain(|&id| self.decides(id));
        if !forfeited.is_empty() {
            forfeited.retain(|&id| !self.succession.is_undecided(id));
            for &id in &forfeited {
                self.withdraw(id, claimant);
                self.note_forfeit(id, claimant);
            }
            self.reply(claimant, Vec::new(), forfeited, Vec::new());
        }
        // Its gradients wait for an answer, and its neighbours for them.
        if self.suspicion.is_struck(claimant.peer()) {
            let denied = claimed.into_iter().map(|proof| proof.microbatch).collect();
            return self.reply(claimant, Vec::new(), denied, Vec::new());
        }
        let (mut proven, mut misled, mut forged) = (Vec::new(), Vec::new(), Vec::new());
        for proof in claimed {
            let answer = match self.belief(&proof, claimant) {
                Belief::Sound => &mut proven,
                Belief::Misled => &mut misled,
                Belief::Forged => &mut forged,
            };
            answer.push(proof.microbatch);
        }
        if !misled.is_empty() {
            self.reply(claimant, Vec::new(), misled, Vec::new());
        }
        self.answer_claims(now, claimant, proven, forged);
    }

    /// Grants the first claim of a stage; a replica that repeats its claim gets the same answer.
    pub(super) fn answer_claims(
        &mut self,
        now: Time,
        claimant: Hop,
        claimed: Vec<MicrobatchId>,
        forged: Vec<MicrobatchId>,
    ) {
        let asks_for_life = claimed.is_empty();
        // The grants of a range that is being taken over are not known yet.
        let decided: Vec<_> =
            claimed.into_iter().filter(|&id| !self.succession.defers(claimant, id)).collect();
        if decided.is_empty() && forged.is_empty() && !asks_for_life {
            return;
        }
        let (granted, denied): (Vec<_>, Vec<_>) =
            decided.into_iter().partition(|&microbatch| self.grant(microbatch, claimant));
        self.counts.denied += denied.len() as u64;
        self.count_unheard(claimant, &denied);
        self.reply(claimant, granted.clone(), denied, forged);
        granted.into_iter().for_each(|id| self.finish_if_granted(now, id));
    }

    fn reply(
        &mut self,
        to: Hop,
        granted: Vec<MicrobatchId>,
        denied: Vec<MicrobatchId>,
        forged: Vec<MicrobatchId>,
    ) {
        self.send(to, Message::ClaimReply { granted, denied, forged });
    }

    /// Whether the replica was handed the microbatch.
    pub(super) fn believes(&mut self, proof: &RouteProof, shown_by: Hop) -> bool {
        self.belief(proof, shown_by) == Belief::Sound
    }

    /// Whether the replica was handed the microbatch. A false proof casts doubt on the replica, and on the replica that it
    /// names as its upstream. The keys of ids that were taken over are those of the former feeder: they prove nothing here.
    fn belief(&mut self, proof: &RouteProof, shown_by: Hop) -> Belief {
        let id = proof.microbatch;
        let taken_over = self.succession.took_over(id) || self.succession.is_undecided(id);
        if taken_over || self.config.breaks(Mutation::BelieveClaims) {
            return Belief::Sound;
        }
        let own = proof.route.first().is_some_and(|feeder| feeder.peer() == self.config.me.peer);
        let holds = own && proof.holds(&self.config.secret, shown_by);
        let upstream = proof.route.last().copied().filter(|hop| hop.stage.is_some());
        if holds {
            let both = [Some(shown_by), upstream].into_iter().flatten();
            // A proof that is shown again says nothing new.
            let is_news = self.grants.is_free(id, shown_by.stage);
            both.filter(|hop| is_news && self.table.placed(hop))
                .for_each(|hop| self.suspicion.sound(hop.peer()));
            return Belief::Sound;
        }
        self.counts.forged += 1;
        let is_misled = self.grants.is_misled(id, &proof.route, shown_by.peer());
        self.grants.note_forged(id, shown_by.peer());
        if is_misled {
            return Belief::Misled;
        }
        // All upstreams that have left are one: their pairs end with the replica.
        let placed = |hop: Hop| if self.table.placed(&hop) { hop } else { gone(StageIndex(0)) };
        let named = upstream.map(placed);
        let authors = self.suspicion.forged(self.now, named, shown_by);
        self.doubt(authors);
        Belief::Forged
    }

    /// One of these lies. A peer of which more is false than sound is struck.
    pub(super) fn doubt(&mut self, hops: Vec<Hop>) {
        for hop in hops {
            if self.table.placed(&hop)
                && let Some(evidence) = self.suspicion.doubt(hop.peer())
            {
                self.table.quarantine(self.now, hop.instance);
                self.actions.push_back(Action::Struck { replica: hop, evidence });
            }
        }
    }

    /// Whether the table gives the microbatch to this feeder.
    pub(super) fn decides(&self, microbatch: MicrobatchId) -> bool {
        self.table.lessee(microbatch) == Some(self.config.me.peer)
    }

    /// Whether the claimant is a replica that still has its place.
    pub(super) fn may_claim(&self, claimant: &Hop) -> bool {
        let placed = self.table.placed(claimant) || self.config.breaks(Mutation::IgnoreIncarnation);
        placed && claimant.stage.is_some()
    }

    fn grant(&mut self, microbatch: MicrobatchId, claimant: Hop) -> bool {
        let ruling = self.grants.claim(microbatch, claimant);
        self.note_grant(microbatch, claimant, ruling);
        ruling != Ruling::Denied || self.config.breaks(Mutation::GrantTwice)
    }

    pub(super) fn note_grant(&mut self, microbatch: MicrobatchId, to: Hop, ruling: Ruling) {
        if ruling == Ruling::New {
            self.actions.push_back(Action::Journal(Record::Granted { microbatch, to }));
            self.confirm(to);
        }
    }

    /// Counts a grant for the weight of a replica in means.
    pub(super) fn confirm(&mut self, hop: Hop) {
        let (Round(round), _) = self.rounds.called_to(&hop);
        self.confirmed.grant(hop, round, 1);
    }

    // --- Contributions --------------------------------------------------------------------------------------

    fn withdraw(&mut self, microbatch: MicrobatchId, from: Hop) {
        if self.grants.of(microbatch).contains(&from) {
            self.actions.push_back(Action::Journal(Record::Withdrawn { microbatch, from }));
            self.take_back(microbatch, from);
        }
    }

    /// The grant is free again while the microbatch is open. Afterwards the contribution is lost.
    fn take_back(&mut self, microbatch: MicrobatchId, from: Hop) {
        let finished = self.grants.is_finished(microbatch);
        if self.grants.withdraw(microbatch, from) && finished {
            self.contributions.forfeit(&from);
            self.counts.contributions_lost += 1;
        }
    }

    /// From now on the contributions of a finished microbatch are in the weights of the replicas that have the grants.
    pub(super) fn note_contributions(&mut self, microbatch: MicrobatchId, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Finished { .. }) {
            return;
        }
        self.grants.finish(microbatch);
        for &hop in self.grants.of(microbatch) {
            let (Round(round), _) = self.rounds.called_to(&hop);
            self.contributions.grant(hop, round);
        }
    }

    /// Counts the contributions of replicas that left before the microbatch was finished.
    pub(super) fn lose_contributions_of_absent(&mut self, microbatch: MicrobatchId) {
        let granted = self.grants.of(microbatch).iter();
        let absent: Vec<_> = granted.filter(|hop| !self.table.placed(hop)).copied().collect();
        absent.into_iter().for_each(|hop| self.lose_contributions(hop));
    }

    /// The replica has left: what no averaging round has carried is lost with it.
    pub(super) fn lose_contributions(&mut self, replica: Hop) {
        let contributions = self.contributions.lose(&replica);
        if contributions > 0 {
            self.counts.contributions_lost += contributions;
            self.actions.push_back(Action::Journal(Record::Lost { replica, contributions }));
        }
    }
}
