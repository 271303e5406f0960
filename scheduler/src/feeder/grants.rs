//! The grants: for each microbatch and stage exactly one replica may apply its gradients.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{Hop, Incarnation, Instance, MicrobatchId, PeerId, StageIndex};

/// Microbatches with an outcome whose grants are remembered for late claims; claims older than that are denied.
pub(super) const REMEMBERED_MAX: usize = 8_192;

/// The grants of open and of lately ended microbatches.
#[derive(Clone, Debug, Default)]
pub(super) struct Grants {
    by_id: BTreeMap<MicrobatchId, Vec<Hop>>,
    ended: VecDeque<MicrobatchId>,
    /// Replicas that have a grant by the path of a gradient and do not know it yet: their claim is on its way.
    owed: BTreeSet<(MicrobatchId, Hop)>,
}

/// The answer to a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ruling {
    /// The claimant has the grant from now on.
    New,
    /// The claimant had the grant already.
    Again,
    /// Another replica has the grant, or the microbatch is forgotten.
    Denied,
}

/// Stands for a replica that has left and may have the grant of this stage.
pub(super) fn gone(stage: StageIndex) -> Hop {
    Hop::replica(stage, Instance::new(PeerId([0; 32]), Incarnation(0)))
}

impl Grants {
    /// A microbatch was injected: its stages can be claimed.
    pub(super) fn open(&mut self, microbatch: MicrobatchId) {
        self.by_id.entry(microbatch).or_default();
    }

    /// The microbatch has its outcome. Its claims are answered until [`REMEMBERED_MAX`] others have ended.
    pub(super) fn end(&mut self, microbatch: MicrobatchId) {
        self.ended.push_back(microbatch);
        if self.ended.len() > REMEMBERED_MAX
            && let Some(oldest) = self.ended.pop_front()
        {
            for hop in self.by_id.remove(&oldest).into_iter().flatten() {
                self.owed.remove(&(oldest, hop));
            }
        }
    }

    /// Grants the claim unless another replica has the grant.
    pub(super) fn claim(&mut self, microbatch: MicrobatchId, claimant: Hop) -> Ruling {
        let Some(grants) = self.by_id.get_mut(&microbatch) else { return Ruling::Denied };
        match grants.iter().find(|granted| granted.stage == claimant.stage) {
            Some(granted) if *granted == claimant => Ruling::Again,
            Some(_) => Ruling::Denied,
            None => {
                grants.push(claimant);
                Ruling::New
            }
        }
    }

    /// As [`Grants::claim`], for a replica whose claim has not come yet.
    pub(super) fn claim_by_path(&mut self, microbatch: MicrobatchId, hop: Hop) -> Ruling {
        let ruling = self.claim(microbatch, hop);
        if ruling == Ruling::New {
            self.owed.insert((microbatch, hop));
        }
        ruling
    }

    /// Notes that the claim of `claimant` is answered.
    pub(super) fn answer(&mut self, microbatch: MicrobatchId, claimant: Hop) {
        self.owed.remove(&(microbatch, claimant));
    }

    /// Number of answers owed to replicas that are still `placed`.
    pub(super) fn owed(&self, placed: impl Fn(&Hop) -> bool) -> u64 {
        self.owed.iter().filter(|(_, hop)| placed(hop)).count() as u64
    }

    /// The replicas that have a grant of `microbatch`.
    pub(super) fn of(&self, microbatch: MicrobatchId) -> &[Hop] {
        self.by_id.get(&microbatch).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: MicrobatchId = MicrobatchId(3);

    fn hop(stage: u16, key: u8, incarnation: u64) -> Hop {
        Hop::replica(StageIndex(stage), Instance::new(PeerId([key; 32]), Incarnation(incarnation)))
    }

    #[test]
    fn each_stage_goes_to_one_start_of_one_replica() {
        let mut grants = Grants::default();
        assert_eq!(grants.claim(ID, hop(0, 1, 1)), Ruling::Denied);
        grants.open(ID);
        assert_eq!(grants.claim(ID, hop(0, 1, 1)), Ruling::New);
        assert_eq!(grants.claim(ID, hop(0, 1, 1)), Ruling::Again);
        assert_eq!(grants.claim(ID, hop(0, 1, 2)), Ruling::Denied);
        assert_eq!(grants.claim(ID, hop(1, 2, 1)), Ruling::New);
        grants.end(ID);
        assert_eq!(grants.claim(ID, hop(1, 2, 1)), Ruling::Again);
        assert_eq!(grants.claim(ID, hop(1, 3, 1)), Ruling::Denied);
        assert_eq!(grants.of(ID).len(), 2);
    }

    #[test]
    fn a_replica_granted_by_a_path_is_owed_the_answer_to_its_claim() {
        let mut grants = Grants::default();
        grants.open(ID);
        grants.claim(ID, hop(1, 2, 1));
        grants.claim_by_path(ID, hop(1, 2, 1));
        grants.claim_by_path(ID, hop(0, 1, 1));
        assert_eq!((grants.owed(|_| true), grants.owed(|_| false)), (1, 0));
        grants.answer(ID, hop(0, 1, 1));
        assert_eq!(grants.owed(|_| true), 0);
    }

    #[test]
    fn long_ended_microbatches_are_forgotten() {
        let mut grants = Grants::default();
        for id in 0..=REMEMBERED_MAX as u64 {
            grants.open(MicrobatchId(id));
            grants.claim(MicrobatchId(id), hop(0, 1, 1));
            grants.end(MicrobatchId(id));
        }
        assert_eq!(grants.claim(MicrobatchId(0), hop(0, 1, 1)), Ruling::Denied);
        assert_eq!(grants.claim(MicrobatchId(1), hop(0, 1, 1)), Ruling::Again);
        assert_eq!(grants.by_id.len(), REMEMBERED_MAX);
    }
}
