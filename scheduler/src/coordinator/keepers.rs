//! The keepers of a run. A stage that has lost its last replica begins with the state that a keeper has, if no process is
//! awaited with a newer one. In a launch that began at a checkpoint it begins with no other: replicas wait for a keeper that
//! has one. In a run whose weights stay split each key keeps one stage, the same whenever it joins.

use std::collections::BTreeMap;

use super::config::Config;
use super::reply::JoinRefusal;
use super::{Action, Coordinator, Reply};
use crate::{Instance, PeerId, StageIndex, Time, WeightsPolicy};

/// Keys whose stage is remembered at most; no further key becomes a keeper of a run with split weights.
const KEYS_MAX: usize = 65_536;

/// The stage of each key that has kept one.
#[derive(Clone, Debug, Default)]
pub(super) struct Keepers {
    kept: BTreeMap<PeerId, StageIndex>,
    unlogged: Vec<(PeerId, StageIndex)>,
}

impl Keepers {
    /// Notes the stage of a key.
    pub(super) fn note(&mut self, peer: PeerId, stage: StageIndex) {
        if self.kept.insert(peer, stage) != Some(stage) {
            self.unlogged.push((peer, stage));
        }
    }

    /// The keys that have a stage since the last call.
    pub(super) fn take_unlogged(&mut self) -> Vec<(PeerId, StageIndex)> {
        std::mem::take(&mut self.unlogged)
    }

    /// Whether `peer` may keep this stage, or all stages if it names none.
    pub(super) fn admit(
        &mut self,
        config: &Config,
        peer: PeerId,
        stage: Option<StageIndex>,
    ) -> Result<(), JoinRefusal> {
        let last = config.stages.saturating_sub(1);
        match (config.weights, stage) {
            (_, Some(stage)) if stage.0 > last => Err(JoinRefusal::NoSuchStage { stage, last }),
            (WeightsPolicy::Open, _) => Ok(()),
            (WeightsPolicy::Split, None) => Err(JoinRefusal::WeightsSplit { last }),
            (WeightsPolicy::Split, Some(stage)) => match self.kept.get(&peer) {
                Some(&kept) if kept != stage => Err(JoinRefusal::KeepsAnother { key: peer, kept }),
                None if self.kept.len() >= KEYS_MAX => Err(JoinRefusal::Full { limit: KEYS_MAX }),
                Some(_) | None => {
                    self.note(peer, stage);
                    Ok(())
                }
            },
        }
    }
}

impl Coordinator {
    /// A keeper is alive, and has a checkpoint of so many microbatches, or none.
    pub(super) fn keeper_heartbeat(&mut self, now: Time, from: Instance, kept: u64) -> Reply {
        if self.members.touch(now, from).is_none() {
            return self.stranger(from);
        }
        if self.members.set_kept(from.peer, kept) {
            self.publishing.change();
        }
        Reply::Progress(self.leases.tallies())
    }

    /// The trained stages that begin with the state that a keeper has.
    pub(super) fn restorable(&self) -> Vec<StageIndex> {
        self.trained.iter().copied().filter(|&stage| self.is_restorable(stage)).collect()
    }

    /// Whether a replica takes the state of `stage` from a keeper: the stage is trained, no replica serves it, none is
    /// awaited with its weights, and a keeper has it, or is the only one that may.
    pub(super) fn is_restorable(&self, stage: StageIndex) -> bool {
        self.trained.binary_search(&stage).is_ok()
            && self.members.occupancy().is_unserved(stage)
            && !self.holders.stages().contains(&stage)
            && (self.members.kept_of(stage).is_some() || self.origin.is_some())
    }

    /// A replica serves `stage` from now on. Unless it has brought its state along, that of a restorable stage is the
    /// keeper's.
    pub(super) fn note_restored(&mut self, from: Instance, stage: StageIndex) {
        let is_own = self.members.get(from).is_some_and(|entry| entry.holds == Some(stage));
        let kept = self.members.kept_of(stage).filter(|_| self.is_restorable(stage) && !is_own);
        if let Some(kept) = kept {
            let lost = self.leases.progress().settled.saturating_sub(kept);
            if lost == 0 && self.origin.is_some() {
                return;
            }
            self.actions.push_back(Action::Restored { stage, kept, lost });
        }
    }
}
