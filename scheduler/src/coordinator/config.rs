//! Settings of a coordinator.

use std::collections::BTreeSet;

use crate::mutation::Mutation;
use crate::{Duration, PeerId, WeightsPolicy};

/// Members of a run at most, standbys included.
pub const MEMBERS_MAX: usize = 16_384;

/// The peers that may join.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Policy {
    /// Every peer that asks.
    Anyone,
    /// These keys only.
    Keys(BTreeSet<PeerId>),
}

impl Policy {
    pub(super) fn admits(&self, peer: PeerId) -> bool {
        match self {
            Self::Anyone => true,
            Self::Keys(keys) => keys.contains(&peer),
        }
    }
}

/// The peers that may feed the run, and take over from a feeder that is gone. A feeder decides which gradients count
/// and when the run is over, so a run that admits any peer must not take any peer for a feeder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FeedPolicy {
    /// The first peer that takes ids, and no other after it.
    First,
    /// Every peer that the policy admits.
    Members,
    /// These keys only.
    Keys(BTreeSet<PeerId>),
}

impl FeedPolicy {
    /// Whether the run knows its feeders, so that it may take their word about other members.
    pub(super) fn is_trusted(&self) -> bool {
        !matches!(self, Self::Members)
    }
}

/// Settings of a coordinator.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// Number of this launch of the run; see [`Membership::launch`](crate::Membership::launch). Default 0.
    pub launch: u64,
    /// Number of stages of the run.
    pub stages: u16,
    /// Microbatches that need an outcome before the run is over. Default `u64::MAX`: no end.
    pub total: u64,
    /// Replicas of a stage at most; further joiners stand by. Default 1.
    pub replicas_per_stage: u32,
    /// The peers that may join. Default [`Policy::Anyone`].
    pub policy: Policy,
    /// The peers that may feed. Default [`FeedPolicy::Members`].
    pub feed: FeedPolicy,
    /// Whether a keeper may keep several stages. Default [`WeightsPolicy::Open`].
    pub weights: WeightsPolicy,
    /// A member silent for this long is removed. Heartbeats come every second; a loaded machine may drop several, and
    /// neighbours notice a death by their connections long before. Default 15 s.
    pub lease: Duration,
    /// A replica that takes so long for the state of its stage gives its place to a standby, if one waits. Default 10 min.
    pub loading_max: Duration,
    /// Time between two tables at least; changes within it are published together. Default 1 s.
    pub table_interval: Duration,
    /// Members at most. Default [`MEMBERS_MAX`].
    pub members_max: usize,
    /// How long members have to drain and leave when the run is over. Default 20 s.
    pub farewell: Duration,
    /// How long the replicas of a finished run wait for keepers that take the final states. Default 10 min.
    pub keeping: Duration,
    /// The rule that a test breaks on purpose.
    #[cfg(test)]
    pub(crate) mutation: Option<Mutation>,
}

impl Config {
    /// The defaults for a run of `stages` stages.
    #[must_use]
    pub fn new(stages: u16) -> Self {
        Self {
            launch: 0,
            stages,
            total: u64::MAX,
            replicas_per_stage: 1,
            policy: Policy::Anyone,
            feed: FeedPolicy::Members,
            weights: WeightsPolicy::Open,
            lease: Duration::from_secs(15),
            loading_max: Duration::from_secs(600),
            table_interval: Duration::from_secs(1),
            members_max: MEMBERS_MAX,
            farewell: Duration::from_secs(20),
            keeping: Duration::from_secs(600),
            #[cfg(test)]
            mutation: None,
        }
    }

    /// Whether this rule is broken on purpose.
    #[cfg(test)]
    pub(super) fn breaks(&self, rule: Mutation) -> bool {
        self.mutation == Some(rule)
    }

    #[cfg(not(test))]
    pub(super) const fn breaks(&self, _rule: Mutation) -> bool {
        false
    }
}
