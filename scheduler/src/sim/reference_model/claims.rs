//! Claims: which replica was handed which microbatch, and which replicas claim what they were never handed.

use crate::{Envelope, Hop, Message, MicrobatchId, PeerId};

use super::super::payload::Payload;

use super::ReferenceModel;

impl ReferenceModel {
    /// A peer sends a message on: a forward hands the microbatch over, and so does a request for its status.
    pub(super) fn hands(&mut self, to: PeerId, message: &Message) {
        if let Message::Forward { microbatch, .. } | Message::StatusRequest { microbatch, .. } = message {
            self.handed.entry(*microbatch).or_default().insert(to);
        }
    }

    fn was_handed(&self, microbatch: MicrobatchId, to: PeerId) -> bool {
        self.handed.get(&microbatch).is_some_and(|peers| peers.contains(&to))
    }

    /// A liar says this.
    pub(in crate::sim) fn forged(&mut self, lie: &Envelope<Payload>) {
        if let Message::Forward { microbatch, .. } | Message::StatusRequest { microbatch, .. } = lie.message {
            self.deceived.insert(microbatch);
        }
    }

    /// Whether the microbatch belongs to a lying feeder.
    pub(in crate::sim) fn is_deceitful(&self, microbatch: MicrobatchId) -> bool {
        self.deceitful.contains(&microbatch.block())
    }

    /// Open microbatches of a feeder that the liar was never handed, at most `limit`.
    pub(in crate::sim) fn open_elsewhere(
        &self,
        feeder: usize,
        liar: PeerId,
        limit: usize,
    ) -> Vec<MicrobatchId> {
        let open = |id: &MicrobatchId| !self.outcomes.contains_key(id) && !self.was_handed(*id, liar);
        let own = self.injected.iter().filter(|(_, by)| **by == feeder);
        own.map(|(&id, _)| id).filter(open).take(limit).collect()
    }

    /// Checks that a feeder grants its own microbatch only to a replica that was handed it, unless it grants the stage to
    /// no replica at all. Nothing proves who was handed what a successor took over.
    pub(super) fn check_grant(&mut self, feeder: usize, microbatch: MicrobatchId, to: Hop) {
        let own = self.injected.get(&microbatch) == Some(&feeder);
        let sound = !own || to.peer() == PeerId([0; 32]) || self.was_handed(microbatch, to.peer());
        self.require(sound, || format!("{to:?} is granted {microbatch}, which it was never handed"));
    }

    /// Checks that the proofs that a feeder refuses are those of a liar, or of a replica that believed one.
    pub(super) fn refuses(&mut self, forged: &[MicrobatchId], of: PeerId) {
        if !forged.is_empty() {
            self.path("false proof");
            let lies = self.liars.contains(&of) || forged.iter().all(|id| self.deceived.contains(id));
            self.require(lies, || format!("{of:?} is honest, and its proofs of {forged:?} are refused"));
        }
    }

    /// Checks that a feeder strikes liars only.
    pub(super) fn strikes(&mut self, replica: Hop) {
        self.path("struck");
        let lies = self.liars.contains(&replica.peer());
        self.require(lies, || format!("{replica:?} is struck, and is honest"));
    }
}
