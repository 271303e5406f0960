//! Who takes part in a run: the table that the coordinator signs and every member follows.

use std::net::SocketAddr;

use crate::lease::Succession;
use crate::{Hop, Instance, StageIndex};

/// What a peer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Draws data and injects microbatches.
    Feeder,
    /// A feeder that takes over the ids of the feeders that have gone.
    Successor,
    /// Serves a stage, or waits to serve one.
    Replica,
}

/// How far a member is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemberState {
    /// Placed on a stage; builds its shard and takes the state of another replica.
    Loading(StageIndex),
    /// Serves a stage.
    Serving(StageIndex),
    /// Every stage has its replicas: waits for a place.
    Standby,
    /// A feeder.
    Feeding,
}

impl MemberState {
    /// The stage the member is placed on.
    #[must_use]
    pub fn stage(self) -> Option<StageIndex> {
        match self {
            Self::Loading(stage) | Self::Serving(stage) => Some(stage),
            Self::Standby | Self::Feeding => None,
        }
    }
}

/// One line of the membership table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The peer and its start.
    pub instance: Instance,
    /// How far it is.
    pub state: MemberState,
    /// Address of its data plane.
    pub address: SocketAddr,
}

impl Member {
    /// The place of a feeder or of a replica that has one, loading replicas included.
    #[must_use]
    pub fn hop(&self) -> Option<Hop> {
        match self.state {
            MemberState::Feeding => Some(Hop::feeder(self.instance)),
            MemberState::Loading(stage) | MemberState::Serving(stage) => {
                Some(Hop::replica(stage, self.instance))
            }
            MemberState::Standby => None,
        }
    }
}

/// The table as the coordinator last signed it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    /// Grows by one with every change.
    pub version: u64,
    /// The members, ordered by peer id.
    pub members: Vec<Member>,
    /// Ranges of ids that have gone to a successor, by first id.
    pub successions: Vec<Succession>,
    /// Stages whose weights have been updated since the run began, ascending: a replica that begins such a stage with
    /// initial weights loses what the stage had learned.
    pub trained: Vec<StageIndex>,
}

impl Membership {
    /// The member with this key, if it is this start of it.
    #[must_use]
    pub fn get(&self, instance: Instance) -> Option<&Member> {
        self.members.iter().find(|member| member.instance == instance)
    }
}
