//! Microbatches that are back. Such a microbatch is finished when a replica of every stage has claimed it: the path of a
//! gradient is the word of its sender only. Claims go out when forwards arrive, so they are there long before, unless
//! they were lost or the path is made up. After a while the microbatch is finished without them, and the contributions
//! of those stages count as lost.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;

use super::config::CLAIMS_WITHIN;
use super::grants::gone;
use super::open::Phase;
use super::{Feeder, Outcome};
use crate::alarms::Alarms;
use crate::handoff::Leg;
use crate::router::Completion;
use crate::{Hop, Loss, MicrobatchId, Refusal, StageIndex, Time};

/// The microbatches that are back and wait for claims; the window bounds their number.
#[derive(Clone, Debug, Default)]
pub(super) struct Returns {
    by_id: BTreeMap<MicrobatchId, Return>,
    /// When each of them is finished without the claims that are missing.
    due: Alarms<MicrobatchId>,
    /// The replicas that promise never to apply an open microbatch.
    forfeits: BTreeMap<MicrobatchId, BTreeSet<Hop>>,
}

#[derive(Clone, Debug)]
struct Return {
    loss: Loss,
    /// The replicas that computed the gradient, as the replica of stage 0 names them.
    path: Vec<Hop>,
}

impl Returns {
    pub(super) fn next_deadline(&self) -> Option<Time> {
        self.due.next().map(|(at, _)| at)
    }

    fn add(&mut self, microbatch: MicrobatchId, back: Return, until: Time) {
        if let Entry::Vacant(entry) = self.by_id.entry(microbatch) {
            entry.insert(back);
            self.due.set(microbatch, Some(until));
        }
    }

    fn take(&mut self, microbatch: MicrobatchId) -> Option<Return> {
        self.due.set(microbatch, None);
        self.by_id.remove(&microbatch)
    }

    pub(super) fn remove(&mut self, microbatch: MicrobatchId) {
        self.take(microbatch);
        self.forfeits.remove(&microbatch);
    }

    fn has_forfeited(&self, microbatch: MicrobatchId, hop: &Hop) -> bool {
        self.forfeits.get(&microbatch).is_some_and(|hops| hops.contains(hop))
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
        // A replica that lies gets no grant, so its stage is waited for no longer.
        let hopeless = path.iter().any(|hop| self.suspicion.is_struck(hop.peer()));
        let until = if hopeless { now } else { now + CLAIMS_WITHIN };
        self.returns.add(id, Return { loss, path: path.to_vec() }, until);
        self.finish_if_granted(now, id);
    }

    /// Finishes a microbatch that is back once every stage has its grant.
    pub(super) fn finish_if_granted(&mut self, now: Time, id: MicrobatchId) {
        if self.grants.of(id).len() < usize::from(self.config.stages) {
            return;
        }
        if let Some(back) = self.returns.take(id) {
            self.settle(now, id, Outcome::Finished { loss: back.loss });
        }
    }

    /// A replica promises never to apply the microbatch: no claim of it is missing.
    pub(super) fn note_forfeit(&mut self, id: MicrobatchId, by: Hop) {
        if self.open.contains_key(&id) {
            self.returns.forfeits.entry(id).or_default().insert(by);
        }
    }

    /// Claims are `missing`, and `sender` brought the path that names the replicas. While a feeder was out of reach, honest
    /// replicas gave up their claims: they say so, to this feeder or to a former one.
    fn doubt_unclaimed(&mut self, now: Time, id: MicrobatchId, missing: &[Hop], sender: Option<&Hop>) {
        let Some(&sender) = sender.filter(|_| !self.succession.took_over(id)) else { return };
        let mut named = missing.to_vec();
        named.retain(|hop| !self.returns.has_forfeited(id, hop));
        if !named.is_empty() {
            self.handoff.neighbours.keeps(now, sender);
            let liars = self.suspicion.unclaimed(now, sender, named);
            self.doubt(liars);
        }
    }

    /// Finishes the microbatches that were back for [`CLAIMS_WITHIN`]. A stage without a claim has no contribution.
    pub(super) fn finish_without_claims(&mut self, now: Time) {
        for id in self.returns.due.take_due(now) {
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
            self.doubt_unclaimed(now, id, &missing, path.last());
            self.finish_if_granted(now, id);
        }
    }
}
