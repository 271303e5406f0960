//! What happens to a coordinator, and what it wants done.

use std::net::SocketAddr;

use super::Reply;
use crate::stage::Progress;
use crate::{Instance, Membership, PeerId, Role, StageIndex};

/// What happens to a coordinator. The shell has authenticated every instance.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// A peer wants to take part. A newer start of it replaces an older one.
    Join {
        /// The caller.
        from: Instance,
        /// What it is for.
        role: Role,
        /// Address of its data plane.
        address: SocketAddr,
    },
    /// A loading replica has the state of a stage and serves it from now on.
    Ready {
        /// The caller.
        from: Instance,
        /// The stage. A replica that joined twice may have been placed at another one meanwhile.
        stage: StageIndex,
    },
    /// A sign of life.
    Heartbeat {
        /// The caller.
        from: Instance,
        /// How far it is; zeros from a feeder or a standby.
        progress: Progress,
    },
    /// A member leaves, drained.
    Leave {
        /// The caller.
        from: Instance,
    },
    /// A feeder wants ids.
    LeaseRequest {
        /// The caller.
        from: Instance,
        /// How many; it may get fewer.
        count: u64,
    },
    /// A feeder has an outcome for every microbatch it wanted to inject.
    FeederDone {
        /// The caller.
        from: Instance,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

impl Event {
    pub(super) fn sender(&self) -> Option<PeerId> {
        match *self {
            Self::Join { from, .. }
            | Self::Ready { from, .. }
            | Self::Heartbeat { from, .. }
            | Self::Leave { from }
            | Self::LeaseRequest { from, .. }
            | Self::FeederDone { from } => Some(from.peer),
            Self::Timeout => None,
        }
    }
}

/// What a coordinator wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Reply to the request just handled. Every request has exactly one reply.
    Reply {
        /// The caller.
        to: PeerId,
        /// The reply.
        reply: Reply,
    },
    /// Publish this table to all members.
    Membership(Membership),
    /// The run is over: members are told with their next heartbeat. Said once.
    Finished,
    /// The run is over, and the members have left or had their time: stop. Said once.
    End,
}

/// Why a coordinator wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A member is silent.
    MemberExpires,
    /// The time for members to leave a finished run is over.
    FarewellEnds,
}
