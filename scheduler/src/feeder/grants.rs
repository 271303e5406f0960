//! The grants: for each microbatch and stage exactly one replica may apply its gradients.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use crate::{Duration, Hop, Incarnation, Instance, MicrobatchId, PeerId, StageIndex, Time};

/// Grants of a microbatch are remembered for late claims for so long after its outcome; claims after that are denied.
pub(super) const REMEMBERED_FOR: Duration = Duration::from_secs(60);

/// Microbatches with an outcome whose grants are remembered at most.
const REMEMBERED_MAX: usize = 131_072;

/// The grants of open and of lately ended microbatches.
#[derive(Clone, Debug, Default)]
pub(super) struct Grants {
    by_id: BTreeMap<MicrobatchId, Granted>,
    /// The microbatches with an outcome, and when it was given.
    ended: VecDeque<(Time, MicrobatchId)>,
    /// Time of the first event of this process: outcomes before it have no time.
    began: Option<Time>,
}

/// The grants of one microbatch.
#[derive(Clone, Debug, Default)]
struct Granted {
    hops: Vec<Hop>,
    /// Its gradient came back.
    finished: bool,
    /// The replicas that have shown a false proof of it.
    forged_by: BTreeSet<PeerId>,
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

    /// The microbatch has its outcome. Its claims are answered for [`REMEMBERED_FOR`].
    pub(super) fn end(&mut self, now: Time, microbatch: MicrobatchId) {
        self.ended.push_back((now, microbatch));
    }

    /// Forgets the microbatches that ended long ago.
    pub(super) fn forget(&mut self, now: Time) {
        let began = *self.began.get_or_insert(now);
        let old = |ended: Time| ended.max(began) + REMEMBERED_FOR <= now;
        while self.ended.front().is_some_and(|&(at, _)| old(at) || self.ended.len() > REMEMBERED_MAX) {
            if let Some((_, oldest)) = self.ended.pop_front() {
                self.by_id.remove(&oldest);
            }
        }
    }

    /// The replica hands the grant back; `false` if it has none.
    pub(super) fn withdraw(&mut self, microbatch: MicrobatchId, hop: Hop) -> bool {
        let grants = self.by_id.get_mut(&microbatch).map(|granted| &mut granted.hops);
        let index = grants.as_ref().and_then(|grants| grants.iter().position(|granted| *granted == hop));
        if let (Some(grants), Some(index)) = (grants, index) {
            grants.swap_remove(index);
        }
        index.is_some()
    }

    /// Grants the claim unless another replica has the grant.
    pub(super) fn claim(&mut self, microbatch: MicrobatchId, claimant: Hop) -> Ruling {
        let Some(Granted { hops: grants, .. }) = self.by_id.get_mut(&microbatch) else {
            return Ruling::Denied;
        };
        match grants.iter().find(|granted| granted.stage == claimant.stage) {
            Some(granted) if *granted == claimant => Ruling::Again,
            Some(_) => Ruling::Denied,
            None => {
                grants.push(claimant);
                Ruling::New
            }
        }
    }

    /// The gradient of the microbatch came back: its grants are contributions.
    pub(super) fn finish(&mut self, microbatch: MicrobatchId) {
        if let Some(granted) = self.by_id.get_mut(&microbatch) {
            granted.finished = true;
        }
    }

    pub(super) fn is_finished(&self, microbatch: MicrobatchId) -> bool {
        self.by_id.get(&microbatch).is_some_and(|granted| granted.finished)
    }

    /// Whether a replica of this stage may still get the grant.
    pub(super) fn is_free(&self, microbatch: MicrobatchId, stage: Option<StageIndex>) -> bool {
        let granted = self.by_id.get(&microbatch);
        granted.is_some_and(|granted| granted.hops.iter().all(|hop| hop.stage != stage))
    }

    /// A replica has shown a false proof of the microbatch.
    pub(super) fn note_forged(&mut self, microbatch: MicrobatchId, by: PeerId) {
        if let Some(granted) = self.by_id.get_mut(&microbatch) {
            granted.forged_by.insert(by);
        }
    }

    /// Whether a replica further up this route has shown a false proof of the microbatch.
    pub(super) fn is_misled(&self, microbatch: MicrobatchId, route: &[Hop], shown_by: PeerId) -> bool {
        let forged =
            |peer| self.by_id.get(&microbatch).is_some_and(|granted| granted.forged_by.contains(&peer));
        route.iter().map(Hop::peer).any(|peer| peer != shown_by && forged(peer))
    }

    /// The replicas that have a grant of `microbatch`.
    pub(super) fn of(&self, microbatch: MicrobatchId) -> &[Hop] {
        self.by_id.get(&microbatch).map_or(&[], |granted| &granted.hops)
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
        grants.end(Time(0), ID);
        assert_eq!(grants.claim(ID, hop(1, 2, 1)), Ruling::Again);
        assert_eq!(grants.claim(ID, hop(1, 3, 1)), Ruling::Denied);
        assert_eq!(grants.of(ID).len(), 2);
    }

    #[test]
    fn long_ended_microbatches_are_forgotten() {
        let mut grants = Grants::default();
        grants.forget(Time(9));
        for id in 0..=REMEMBERED_MAX as u64 {
            grants.open(MicrobatchId(id));
            grants.claim(MicrobatchId(id), hop(0, 1, 1));
            grants.end(Time(10 + id), MicrobatchId(id));
        }
        grants.forget(Time(10));
        assert_eq!(grants.claim(MicrobatchId(0), hop(0, 1, 1)), Ruling::Denied);
        assert_eq!(grants.claim(MicrobatchId(1), hop(0, 1, 1)), Ruling::Again);
        grants.forget(Time(11) + REMEMBERED_FOR);
        assert_eq!(
            (grants.claim(MicrobatchId(1), hop(0, 1, 1)), grants.by_id.len()),
            (Ruling::Denied, REMEMBERED_MAX - 1)
        );
    }

    #[test]
    fn a_replica_is_misled_if_the_proof_of_one_further_up_is_false() {
        let (mut grants, route) = (Grants::default(), [hop(0, 1, 1), hop(1, 2, 1)]);
        grants.note_forged(ID, PeerId([2; 32]));
        assert!(!grants.is_misled(ID, &route, PeerId([3; 32])), "it was never injected");
        grants.open(ID);
        grants.note_forged(ID, PeerId([2; 32]));
        assert!(grants.is_misled(ID, &route, PeerId([3; 32])));
        assert!(!grants.is_misled(ID, &route[..1], PeerId([3; 32])));
        assert!(!grants.is_misled(ID, &route, PeerId([2; 32])), "by its own word");
        assert!(!grants.is_misled(MicrobatchId(8), &route, PeerId([3; 32])));
    }

    #[test]
    fn a_grant_that_was_handed_back_is_free_again() {
        let mut grants = Grants::default();
        grants.open(ID);
        grants.claim(ID, hop(0, 1, 1));
        assert!(!grants.is_free(ID, Some(StageIndex(0))) && grants.is_free(ID, Some(StageIndex(1))));
        assert!(!grants.withdraw(ID, hop(0, 2, 1)) && grants.withdraw(ID, hop(0, 1, 1)));
        assert!(grants.is_free(ID, Some(StageIndex(0))));
        assert_eq!(grants.claim(ID, hop(0, 2, 1)), Ruling::New);
    }
}
