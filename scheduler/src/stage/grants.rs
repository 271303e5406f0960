//! Who may apply the gradients of a microbatch: the feeder says, once for each stage.
//!
//! The claim goes out with the gradient's arrival, and its answer is rarely waited for. Until it comes the executor
//! keeps the gradients apart and computes no others.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::microbatch::{Claim, Share, Visit};
use super::{Action, Job, Note, Stage};
use crate::{Hop, Message, MicrobatchId, PeerId, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    /// Asks the feeder for the grant as early as may be: when the gradient is on its way into the executor.
    pub(super) fn claim(&mut self, now: Time, id: MicrobatchId) {
        let applied = self.ledger.contains(id);
        if let Some(visit) = self.visits.get_mut(&id)
            && matches!(visit.claim, Claim::None | Claim::Asked { .. })
        {
            if applied {
                visit.claim = Claim::Denied;
                return;
            }
            visit.claim = Claim::Asked { at: now };
            self.claims.push(id);
            self.check_by(now + self.config.ask_after);
        }
    }

    /// One message a feeder for all claims of the event at hand.
    pub(super) fn send_claims(&mut self) {
        let mut by_feeder: BTreeMap<Hop, Vec<MicrobatchId>> = BTreeMap::new();
        for id in std::mem::take(&mut self.claims) {
            if let Some(feeder) = self.visits.get(&id).and_then(Visit::arbiter) {
                by_feeder.entry(feeder).or_default().push(id);
            }
        }
        let stage = self.config.stage;
        for (feeder, ids) in by_feeder {
            for microbatches in ids.chunks(crate::message::CLAIM_MAX) {
                self.send(feeder, Message::Claim { stage, microbatches: microbatches.to_vec() });
            }
        }
    }

    pub(super) fn on_granted(
        &mut self,
        now: Time,
        from: PeerId,
        granted: &[MicrobatchId],
        denied: &[MicrobatchId],
    ) {
        let verdicts = granted.iter().map(|id| (id, Claim::Granted));
        for (&id, verdict) in verdicts.chain(denied.iter().map(|id| (id, Claim::Denied))) {
            let Some(visit) = self.visits.get_mut(&id) else { continue };
            let asked = matches!(visit.claim, Claim::Asked { .. });
            if asked && visit.arbiter().is_some_and(|feeder| feeder.peer == from) {
                visit.claim = verdict;
                self.settle_share(id);
                self.release_if_over(now, id);
            }
        }
    }

    /// The gradients of the weights are applied under the grant, dropped without it.
    pub(super) fn settle_share(&mut self, id: MicrobatchId) {
        let Some(visit) = self.visits.get_mut(&id).filter(|visit| visit.share == Share::Waiting) else {
            return;
        };
        match visit.claim {
            Claim::Granted => {
                visit.share = Share::Applying;
                self.running += 1;
                self.actions.push_back(Action::Execute(Job::Apply { microbatch: id }));
            }
            Claim::Denied => {
                visit.share = Share::Settled;
                self.ungranted = None;
                self.actions.push_back(Action::Execute(Job::Drop { microbatch: id }));
                self.count(Note::Relayed(id));
            }
            Claim::None | Claim::Asked { .. } => {}
        }
    }

    pub(super) fn applied(&mut self, id: MicrobatchId) {
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.share = Share::Settled;
            self.ungranted = self.ungranted.filter(|&ungranted| ungranted != id);
            self.ledger.insert(id);
            self.count(Note::Applied(id));
        }
    }
}
