//! The members by their places, kept from table to table: a change costs the members that changed, not all of them.

use std::collections::{BTreeMap, BTreeSet};

use crate::{Hop, Instance, Member, MemberState, StageIndex};

static NO_HOPS: BTreeSet<Hop> = BTreeSet::new();

/// The replicas of each stage, the feeders, and the keepers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    serving: BTreeMap<StageIndex, BTreeSet<Hop>>,
    /// Loading and serving.
    placed: BTreeMap<StageIndex, BTreeSet<Instance>>,
    feeders: BTreeSet<Hop>,
    keepers: BTreeSet<(Instance, Option<StageIndex>)>,
}

impl Places {
    pub(crate) fn add(&mut self, member: &Member) {
        if let MemberState::Keeping(kept) = member.state {
            self.keepers.insert((member.instance, kept));
        }
        if let Some(stage) = member.state.stage() {
            self.placed.entry(stage).or_default().insert(member.instance);
        }
        if let Some(hop) = working(member) {
            match hop.stage {
                Some(stage) => self.serving.entry(stage).or_default().insert(hop),
                None => self.feeders.insert(hop),
            };
        }
    }

    pub(crate) fn remove(&mut self, member: &Member) {
        if let MemberState::Keeping(kept) = member.state {
            self.keepers.remove(&(member.instance, kept));
        }
        if let Some(stage) = member.state.stage()
            && let Some(placed) = self.placed.get_mut(&stage)
        {
            placed.remove(&member.instance);
        }
        if let Some(hop) = working(member) {
            match hop.stage {
                Some(stage) => self.serving.entry(stage).or_default().remove(&hop),
                None => self.feeders.remove(&hop),
            };
        }
    }

    /// The replicas that serve `stage`, by peer id.
    pub(crate) fn serving(&self, stage: StageIndex) -> &BTreeSet<Hop> {
        self.serving.get(&stage).unwrap_or(&NO_HOPS)
    }

    /// The replicas placed on `stage`, loading or serving, by peer id.
    pub(crate) fn placed_on(&self, stage: StageIndex) -> impl Iterator<Item = Instance> {
        self.placed.get(&stage).into_iter().flatten().copied()
    }

    pub(crate) fn feeders(&self) -> &BTreeSet<Hop> {
        &self.feeders
    }

    /// The keepers, each with the stage that it keeps, if it is one only; by peer id.
    pub(crate) fn keepers(&self) -> &BTreeSet<(Instance, Option<StageIndex>)> {
        &self.keepers
    }

    /// The peers that hand microbatches to `stage`: the replicas before it, or the feeders.
    pub(crate) fn senders_to(&self, stage: StageIndex) -> &BTreeSet<Hop> {
        stage.0.checked_sub(1).map_or(&self.feeders, |before| self.serving(StageIndex(before)))
    }
}

/// The hop of a member that serves or feeds.
pub(crate) fn working(member: &Member) -> Option<Hop> {
    member.hop().filter(|_| !matches!(member.state, MemberState::Loading(_)))
}
