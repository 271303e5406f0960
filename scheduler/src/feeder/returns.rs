//! Microbatches that are back. Such a microbatch is finished when a replica of every stage has claimed it: the path of a
//! gradient is the word of its sender only. Claims go out when forwards arrive, so they are there long before, unless
//! they were lost or the path is made up. After a while the microbatch is finished without them, and the contributions
//! of those stages count as lost.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::config::CLAIMS_WITHIN;
use super::grants::gone;
use super::open::Phase;
use super::{Feeder, Outcome};
use crate::handoff::Leg;
use crate::router::Completion;
use crate::{Hop, Loss, MicrobatchId, Refusal, StageIndex, Time};

/// The microbatches that are back and wait for claims; the window bounds their number.
#[derive(Clone, Debug, Default)]
pub(super) struct Returns {
    by_id: BTreeMap<MicrobatchId, Return>,
}

#[derive(Clone, Debug)]
struct Return {
    loss: Loss,
    /// The replicas that computed the gradient, as the replica of stage 0 names them.
    path: Vec<Hop>,
    until: Time,
}

impl Returns {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.by_id.values().map(|back| back.until).min()
    }

    pub(super) fn remove(&mut self, microbatch: MicrobatchId) {
        self.by_id.remove(&microbatch);
    }

    fn overdue(&self, now: Time) -> Vec<MicrobatchId> {
        self.by_id.iter().filter(|(_, back)| back.until <= now).map(|(&id, _)| id).collect()
    }
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A training microbatch is back.
    pub(super) fn on_returned(&mut self, now: Time, sender: Leg, id: MicrobatchId, loss: Loss, path: &[Hop]) {
        let stages = (0..self.config.stages).rev().map(|stage| Some(StageIndex(stage)));
        let fits = path.iter().map(|hop| hop.stage).eq(stages) && path.last() == Some(&sender.hop);
        let Some(open) = self.open.get_mut(&id) else { return self.counts.late += 1 };
        let expected = open.trains() && self.handoff.contains(id, sender);
        if !fits || !self.table.placed(&sender.hop) || !expected {
            return self.counts.foreign += 1;
        }
        // A loss that is not finite is refused: a single one would spoil every mean.
        if !loss.sum.is_finite() {
            let outcome = Outcome::Refused { by: sender.hop, reason: Refusal::NonFinite };
            return self.settle(now, id, outcome);
        }
        open.phase = Phase::Returned;
        self.handoff.complete(now, id, Completion::Returned);
        self.drawn.remove(&(true, id));
        let back = Return { loss, path: path.to_vec(), until: now + CLAIMS_WITHIN };
        self.returns.by_id.entry(id).or_insert(back);
        self.finish_if_granted(now, id);
    }

    /// Finishes a microbatch that is back once every stage has its grant.
    pub(super) fn finish_if_granted(&mut self, now: Time, id: MicrobatchId) {
        if self.grants.of(id).len() < usize::from(self.config.stages) {
            return;
        }
        if let Some(back) = self.returns.by_id.remove(&id) {
            self.settle(now, id, Outcome::Finished { loss: back.loss });
        }
    }

    /// Finishes the microbatches that were back for [`CLAIMS_WITHIN`]. A stage without a claim has no contribution.
    pub(super) fn finish_without_claims(&mut self, now: Time) {
        for id in self.returns.overdue(now) {
            let path = self.returns.by_id.get(&id).map_or_else(Vec::new, |back| back.path.clone());
            let claimed: Vec<_> = self.grants.of(id).iter().map(|hop| hop.stage).collect();
            let missing: Vec<Hop> =
                path.iter().copied().filter(|hop| !claimed.contains(&hop.stage)).collect();
            for hop in &missing {
                if let Some(stage) = hop.stage {
                    let ruling = self.grants.claim(id, gone(stage));
                    self.note_grant(id, gone(stage), ruling);
                }
            }
            // While the former feeder was gone, honest replicas have given up their claims.
            if !self.succession.took_over(id) {
                self.doubt(missing.iter().chain(path.last()).copied().collect());
            }
            self.finish_if_granted(now, id);
        }
    }
}
