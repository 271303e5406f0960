//! Replies of the coordinator.

use std::net::SocketAddr;

use crate::{
    BlockTally, Duration, Incarnation, Lease, LeaseRefusal, MemberState, PeerId, RunTally, StageIndex,
};

/// The reply to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// The caller is a member, in this state. Also the reply to an instance that joins twice.
    Joined(MemberState),
    /// The caller may not join.
    JoinRefused(JoinRefusal),
    /// The request is noted; the state of the member now. A standby that was given a stage learns it here.
    Noted(MemberState),
    /// The heartbeat of a keeper is noted; the progress of every block of the run.
    Progress(Vec<BlockTally>),
    /// Another start of the caller's peer is a member.
    NotAMember,
    /// The caller is no member, for all that the coordinator knows: it was silent for a lease, or the coordinator was
    /// started again. It may return its newest table, and join again if it is still unknown then.
    Unknown,
    /// The caller has left.
    Left,
    /// The caller has a lease of these ids, and other feeders have come so far.
    Leased {
        /// The ids.
        lease: Lease,
        /// The progress of other feeders.
        others: RunTally,
    },
    /// The report of the caller is noted, and other feeders have come so far.
    Reported {
        /// The progress of other feeders.
        others: RunTally,
    },
    /// The caller gets no ids.
    LeaseRefused(LeaseRefusal),
}

/// The reason why a peer may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The policy lists keys, and the caller's key is not among them.
    #[error(
        "this run admits listed keys only, and {key}, yours, is not among them; ask its coordinator to list it as \
         `join` in the section [policy]"
    )]
    NotListed {
        /// The caller.
        key: PeerId,
    },
    /// The caller asks for the role of a feeder, which the policy gives to listed keys.
    #[error(
        "key {key} may not feed this run; ask its coordinator to list it as `feed` in the section [policy]"
    )]
    MayNotFeed {
        /// The caller.
        key: PeerId,
    },
    /// The caller asks for the role of a feeder, which belongs to the peer that had it first.
    #[error(
        "key {key} may not feed this run, which belongs to its first feeder {first}; use that key with --identity, or \
         ask the coordinator to list yours as `feed` in the section [policy]"
    )]
    FedByAnother {
        /// The caller.
        key: PeerId,
        /// The first feeder.
        first: PeerId,
    },
    /// A keeper names a stage that the run does not have.
    #[error("this run has no stage {}; name one from 0 to {last} with --stage", .stage.0)]
    NoSuchStage {
        /// The stage.
        stage: StageIndex,
        /// The last stage of the run.
        last: u16,
    },
    /// A keeper asks for all stages of a run whose weights stay split.
    #[error(
        "the weights of this run stay split (`weights` in the section [policy]): a key keeps one stage, from 0 to {last}; \
         name it with --stage"
    )]
    WeightsSplit {
        /// The last stage of the run.
        last: u16,
    },
    /// The key of a keeper has kept another stage of a run whose weights stay split.
    #[error(
        "the weights of this run stay split, and key {key} has kept stage {} already; keep that stage, or keep this one \
         under another key", .kept.0
    )]
    KeepsAnother {
        /// The caller.
        key: PeerId,
        /// The stage that it has kept.
        kept: StageIndex,
    },
    /// Another process with the caller's key is a member, and lives.
    #[error(
        "another process with your key {key} is already running at {address} (incarnation {}); end it, use another key, \
         or take over its place", .since.0
    )]
    AlreadyRuns {
        /// The caller.
        key: PeerId,
        /// Address of the data plane of the other process.
        address: SocketAddr,
        /// Its start.
        since: Incarnation,
    },
    /// The caller was evicted.
    #[error(
        "a feeder of this run has caught your key {key} claiming microbatches that were never sent to it; the key may not \
         come back in this run. If another process uses your key, join with a key of your own"
    )]
    Evicted {
        /// The caller.
        key: PeerId,
    },
    /// The caller is not the latest start of its key. It may join as a later one: its clock may have gone back, or it was
    /// a member and fell silent.
    #[error("a start of your key {key} is known that is as late or later (incarnation {}); join as a later one", .known.0)]
    Former {
        /// The caller.
        key: PeerId,
        /// The latest start.
        known: Incarnation,
    },
    /// The membership table is full.
    #[error("the run has as many members as it can hold ({limit})")]
    Full {
        /// Members at most.
        limit: usize,
    },
    /// The feeder whose ids are to be taken over is a member.
    #[error("feeder {feeder} is still a member; stop it, or wait until it has been silent for {lease:?}")]
    FeederLives {
        /// The feeder.
        feeder: PeerId,
        /// How long a silent peer remains a member.
        lease: Duration,
    },
    /// The run is over.
    #[error("the run is finished")]
    Finished,
    /// The run is over: training has diverged.
    #[error("the run has diverged at microbatch {at}, and is over")]
    Diverged {
        /// Microbatches of the run that had their outcome then.
        at: u64,
    },
}
