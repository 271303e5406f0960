//! The keepers of a run whose weights stay split: each key keeps one stage, the same whenever it joins.

use std::collections::BTreeMap;

use super::config::Config;
use super::reply::JoinRefusal;
use crate::{PeerId, StageIndex, WeightsPolicy};

/// Keys whose stage is remembered at most; no further key becomes a keeper of a run with split weights.
const KEYS_MAX: usize = 65_536;

/// The stage of each key that has kept one.
#[derive(Clone, Debug, Default)]
pub(super) struct Keepers {
    kept: BTreeMap<PeerId, StageIndex>,
    unkept: Vec<(PeerId, StageIndex)>,
}

impl Keepers {
    /// Notes the stage of a key.
    pub(super) fn note(&mut self, peer: PeerId, stage: StageIndex) {
        if self.kept.insert(peer, stage) != Some(stage) {
            self.unkept.push((peer, stage));
        }
    }

    /// The keys that have a stage since the last call.
    pub(super) fn take_unkept(&mut self) -> Vec<(PeerId, StageIndex)> {
        std::mem::take(&mut self.unkept)
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
