//! What the simulated world observes of a stage, beyond the getters.

use std::fmt::Debug;

use super::Stage;
use crate::{Hop, MicrobatchId};

impl<P: Clone + Default + Debug> Stage<P> {
    /// The microbatches held, for the message of a failed test.
    pub(crate) fn describe(&self) -> String {
        let states: Vec<_> =
            self.microbatches.iter().map(|(&id, held)| (id, held, self.handoff.awaited(id))).collect();
        format!("{states:?} {:?}", self.queue)
    }

    /// The microbatches held.
    pub(crate) fn ids(&self) -> impl Iterator<Item = MicrobatchId> {
        self.microbatches.keys().copied()
    }

    /// Whether a feeder announced the outcome of a microbatch.
    pub(crate) fn is_announced(&self, id: MicrobatchId) -> bool {
        self.has_ended(id)
    }

    /// The microbatches held of which no outcome was announced.
    pub(crate) fn open(&self) -> impl Iterator<Item = MicrobatchId> {
        self.microbatches.iter().filter(|(_, held)| !held.ended).map(|(&id, _)| id)
    }

    /// The training microbatches that it has not computed backward.
    pub(crate) fn unfinished(&self) -> impl Iterator<Item = MicrobatchId> {
        let held = self.microbatches.iter().filter(|(_, held)| held.trains() && !held.ended);
        held.filter(|(_, held)| !held.is_returned()).map(|(&id, _)| id)
    }

    /// Whether the executor has nothing to do although microbatches wait for it: other gradients wait for their grant.
    pub(crate) fn waits_for_grant(&self) -> bool {
        self.queue.waits_for_grant() && self.queue.len() > 0
    }

    /// The replica whose reply about a microbatch is awaited.
    pub(crate) fn awaited(&self, id: MicrobatchId) -> Option<Hop> {
        self.handoff.awaited(id).map(|leg| leg.hop)
    }
}
