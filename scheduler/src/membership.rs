//! The membership of a run: the table that the coordinator signs and every member follows.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use strum::{IntoStaticStr, VariantArray};

use crate::lease::LeasedRange;
use crate::{Hop, Instance, PeerId, StageIndex};

/// The role of a peer in the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// A feeder: draws data and injects microbatches.
    Feeder,
    /// A feeder that takes over the ids of feeders that are gone.
    Successor,
    /// A replica: serves a stage, or waits for a place.
    Replica,
    /// A keeper: takes the states of all stages, or of one, and writes checkpoints.
    Keeper(Option<StageIndex>),
    /// A reader: has the replicas predict the continuation of a text.
    Reader,
}

/// Whether a keeper may have the weights of several stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, IntoStaticStr, VariantArray)]
#[strum(serialize_all = "lowercase")]
pub enum WeightsPolicy {
    /// A keeper may take the states of all stages.
    #[default]
    Open,
    /// A key keeps one stage only, so that no keeper has the whole model.
    Split,
}

/// The state of a member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum MemberState {
    /// A replica placed on a stage that does not serve yet: it takes the state of another replica.
    Loading(StageIndex),
    /// A replica that serves a stage.
    Serving(StageIndex),
    /// A replica that waits for a place: every stage has its replicas.
    Standby,
    /// A feeder.
    Feeding,
    /// A keeper, of all stages or of one.
    Keeping(Option<StageIndex>),
    /// A reader.
    Reading,
}

impl MemberState {
    /// The stage that the member is placed on; `None` for feeders, keepers, readers and standbys.
    #[must_use]
    pub fn stage(self) -> Option<StageIndex> {
        match self {
            Self::Loading(stage) | Self::Serving(stage) => Some(stage),
            Self::Standby | Self::Feeding | Self::Keeping(_) | Self::Reading => None,
        }
    }
}

/// One entry of the membership table.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The peer and its start.
    pub instance: Instance,
    /// Its state.
    pub state: MemberState,
    /// Address of its data plane.
    pub address: SocketAddr,
}

impl Member {
    /// The hop of a feeder or of a placed replica, loading or serving; `None` for any other member.
    #[must_use]
    pub fn hop(&self) -> Option<Hop> {
        match self.state {
            MemberState::Feeding => Some(Hop::feeder(self.instance)),
            MemberState::Loading(stage) | MemberState::Serving(stage) => {
                Some(Hop::replica(stage, self.instance))
            }
            MemberState::Standby | MemberState::Keeping(_) | MemberState::Reading => None,
        }
    }
}

/// The checkpoint that a launch of a run began at. Of its stages none ever begins with initial weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Origin {
    /// The launch that the checkpoint was made in.
    pub launch: u64,
    /// Microbatches that had their outcome then.
    pub microbatches: u64,
}

/// A membership table, as the coordinator signs it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// The launch of the run: a number that the coordinator drew when the run began. The same run file may be launched
    /// again, and what belongs to an earlier launch is of no use then.
    pub launch: u64,
    /// Grows with every change. The upper half counts the starts of the coordinator, the lower half its changes since.
    pub version: u64,
    /// The members, ordered by peer id.
    pub members: Vec<Member>,
    /// The ranges of ids that feeders decide about, by first id.
    pub leases: Vec<LeasedRange>,
    /// Stages whose weights have been updated since the run began, ascending: a replica that begins such a stage with
    /// initial weights loses the updates.
    pub trained: Vec<StageIndex>,
    /// Stages whose weights a replica may hold that fell silent a short while ago, ascending: no replica begins such a
    /// stage with initial weights.
    pub awaited: Vec<StageIndex>,
    /// Trained stages without a replica whose state a keeper gives, or will give, ascending: a replica takes it from there.
    pub restorable: Vec<StageIndex>,
    /// The checkpoint that this launch began at; `None` if it began with initial weights.
    pub origin: Option<Origin>,
}

/// Bits of a version that count the changes since the coordinator started.
const CHANGE_BITS: u32 = 32;

impl Membership {
    /// The first version of a coordinator that starts again after it published `version`.
    #[must_use]
    pub fn next_start(version: u64) -> u64 {
        (version >> CHANGE_BITS).saturating_add(1).saturating_mul(1 << CHANGE_BITS)
    }

    /// The start of `peer` that is a member, if any. Members stand by peer id.
    #[must_use]
    pub fn instance(&self, peer: PeerId) -> Option<Instance> {
        let place = self.members.binary_search_by_key(&peer, |member| member.instance.peer).ok()?;
        Some(self.members[place].instance)
    }

    /// The member that is this start of this peer; `None` if another start is a member, or none.
    #[must_use]
    pub fn get(&self, instance: Instance) -> Option<&Member> {
        self.members.iter().find(|member| member.instance == instance)
    }
}

impl WeightsPolicy {
    /// Whether the replicas of `stage` give their state to a keeper that keeps `kept`: all stages, or one.
    #[must_use]
    pub fn allows(self, kept: Option<StageIndex>, stage: StageIndex) -> bool {
        match (self, kept) {
            (Self::Open, None) => true,
            (Self::Split, None) => false,
            (Self::Open | Self::Split, Some(kept)) => kept == stage,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_of_split_weights_gets_the_stage_that_it_keeps_and_no_other() {
        let (kept, other) = (StageIndex(1), StageIndex(2));
        assert!(
            WeightsPolicy::Split.allows(Some(kept), kept) && !WeightsPolicy::Split.allows(Some(kept), other)
        );
        assert!(!WeightsPolicy::Split.allows(None, kept) && WeightsPolicy::Open.allows(None, kept));
        assert!(!WeightsPolicy::Open.allows(Some(kept), other), "it has said that it keeps one");
    }
}
