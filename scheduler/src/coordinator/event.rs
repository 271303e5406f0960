//! Events and actions of a coordinator.

use std::net::SocketAddr;

use super::{Displacement, Fact, Reply};
use crate::stage::Progress;
use crate::{
    BlockTally, Evidence, Instance, Membership, MicrobatchId, PeerId, ProcessNumber, Role, StageIndex,
};

/// An event of a coordinator: a request, or a timeout. The process has authenticated every instance.
#[derive(Clone, Debug)]
pub enum Event {
    /// A peer asks to join.
    Join(Join),
    /// A start that got [`Reply::Unknown`] returns the newest table that it has. The process has verified that this
    /// coordinator signed it.
    TableReturned {
        /// The caller.
        from: Instance,
        /// The table.
        table: Box<Membership>,
    },
    /// A loading replica has the state of a stage and serves it from now on.
    Ready {
        /// The caller.
        from: Instance,
        /// The stage. A replica that joined twice may have been placed at another stage meanwhile.
        stage: StageIndex,
        /// It begins with the initial weights.
        initial: bool,
    },
    /// A member is alive and reports its progress.
    Heartbeat {
        /// The caller.
        from: Instance,
        /// Its progress; zeros from a feeder or a standby.
        progress: Progress,
    },
    /// A keeper is alive.
    KeeperHeartbeat {
        /// The caller.
        from: Instance,
        /// Microbatches of the checkpoint that it gives to stages without a replica; 0 if it has none.
        kept: u64,
    },
    /// A member that has drained leaves.
    Leave {
        /// The caller.
        from: Instance,
    },
    /// A feeder asks for ids.
    LeaseRequest {
        /// The caller.
        from: Instance,
        /// The first id that the feeder does not have; `None` if it has no block.
        next: Option<MicrobatchId>,
        /// Number of ids; the feeder may get fewer.
        count: u64,
        /// The blocks that it decides about, as in [`FeederReport`]: a feeder that was started again with its journal says
        /// what it knows before it asks.
        tallies: Vec<BlockTally>,
    },
    /// A feeder reports its progress, every second and at its end.
    FeederReport {
        /// The caller.
        from: Instance,
        /// The report.
        report: FeederReport,
    },
    /// A feeder has caught a replica lying.
    Strike {
        /// The caller.
        from: Instance,
        /// The replica.
        replica: Instance,
        /// What the replica has said.
        evidence: Evidence,
    },
    /// The time that `poll_timeout` named has come.
    Timeout,
}

/// A request to join.
#[derive(Clone, Copy, Debug)]
pub struct Join {
    /// The caller.
    pub from: Instance,
    /// The number of its process: a process may join again as a later start.
    pub process: ProcessNumber,
    /// A process with the caller's key that lives is to give its place to the caller.
    pub takes_over: bool,
    /// The role that it asks for.
    pub role: Role,
    /// Address of its data plane.
    pub address: SocketAddr,
    /// The stage whose weights it holds: it was expelled, and has kept them.
    pub holds: Option<StageIndex>,
}

/// The progress of a feeder, as totals: a report that is repeated changes nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FeederReport {
    /// The blocks that it decides about, at most [`LEASES_MAX`](crate::LEASES_MAX).
    pub tallies: Vec<BlockTally>,
    /// Whether every microbatch of the run has its outcome, and the feeder calls no further averaging round.
    pub done: bool,
    /// Training has diverged, after this many microbatches of the run: the run is over.
    pub diverged: Option<u64>,
}

impl Event {
    /// The caller; `None` for a timeout.
    #[must_use]
    pub fn sender(&self) -> Option<Instance> {
        match *self {
            Self::Join(Join { from, .. })
            | Self::TableReturned { from, .. }
            | Self::Ready { from, .. }
            | Self::Heartbeat { from, .. }
            | Self::KeeperHeartbeat { from, .. }
            | Self::Leave { from }
            | Self::LeaseRequest { from, .. }
            | Self::FeederReport { from, .. }
            | Self::Strike { from, .. } => Some(from),
            Self::Timeout => None,
        }
    }
}

/// An action that a coordinator asks its process for.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Make these facts durable before any action after this one is done. Comes first, if at all.
    Log(Vec<Fact>),
    /// Reply to the request just handled. Every request has exactly one reply, now or later.
    Reply {
        /// The caller.
        to: PeerId,
        /// The reply.
        reply: Reply,
    },
    /// Reply to an earlier request, whose reply waited for the table.
    LateReply {
        /// The caller.
        to: Instance,
        /// The reply.
        reply: Reply,
    },
    /// Publish this table to all members.
    Membership(Membership),
    /// Say that a replica is a member no more, and may not come back.
    Evicted {
        /// The replica.
        replica: PeerId,
        /// Its stage.
        stage: StageIndex,
        /// The feeder that has caught it lying.
        feeder: PeerId,
        /// What the replica has said.
        evidence: Evidence,
    },
    /// Say that a stage that had lost its last replica was restored from a keeper.
    Restored {
        /// The stage.
        stage: StageIndex,
        /// Microbatches of the checkpoint, at most.
        kept: u64,
        /// Microbatches that had their outcome since: what the stage has learned from them is gone.
        lost: u64,
    },
    /// Say that a trained stage begins with initial weights: what it had learned is lost.
    Reset {
        /// The stage.
        stage: StageIndex,
    },
    /// Say that a replica has lost its place to a standby. It may join again.
    Displaced {
        /// The replica.
        replica: PeerId,
        /// Its stage.
        stage: StageIndex,
        /// Why.
        reason: Displacement,
    },
    /// Say that the last keeper with a checkpoint fell silent.
    KeeperSilent,
    /// The run is over: the replies to the next heartbeats tell the members. Occurs once.
    Finished,
    /// The run is over, and the members have left or their time to leave is over: stop. Occurs once.
    End,
}

/// The reason for a timeout of a coordinator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Changes wait to be published.
    TableDue,
    /// A member has been silent for a lease.
    MemberExpires,
    /// A replica that fell silent with the weights of its stage is awaited no longer.
    HolderForsaken,
    /// Members had their time to return to a coordinator that was started again.
    ReturnEnds,
    /// The time for members to leave a finished run is over.
    FarewellEnds,
}
