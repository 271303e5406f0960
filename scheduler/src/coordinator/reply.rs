//! What the coordinator replies.

use crate::{Duration, Incarnation, Lease, LeaseRefusal, MemberState, PeerId};

/// The reply to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// Welcome, and where the new member is placed. Also the reply to an instance that joins twice.
    Joined(MemberState),
    /// Not welcome.
    JoinRefused(JoinRefusal),
    /// Noted, and where the member is placed now: a standby that was given a stage learns it here.
    Noted(MemberState),
    /// The caller is no member, or another start of one: join, or stop.
    NotAMember,
    /// Goodbye.
    Left,
    /// A range of ids.
    Leased(Lease),
    /// No range of ids.
    LeaseRefused(LeaseRefusal),
}

/// Why a peer may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JoinRefusal {
    /// The policy lists keys and this is none of them.
    #[error("this run admits listed keys only, and yours is not among them; ask its coordinator to list it")]
    NotListed,
    /// A later start of the same key is a member.
    #[error("a later start of your key (incarnation {}) is a member already; is it running elsewhere?", .known.0)]
    Superseded {
        /// The start that is a member.
        known: Incarnation,
    },
    /// No room in the membership table.
    #[error("the run has as many members as it can hold ({limit})")]
    Full {
        /// Members at most.
        limit: usize,
    },
    /// Every range of ids has a feeder.
    #[error("no feeder has left anything to take over; feed the run without taking over")]
    NothingToSucceed,
    /// The feeder whose ids are to be taken over is a member.
    #[error("feeder {feeder} is still a member; stop it, or wait until it has been silent for {lease:?}")]
    FeederLives {
        /// The feeder.
        feeder: PeerId,
        /// How long a silent member stays one.
        lease: Duration,
    },
    /// The run is over.
    #[error("the run is finished")]
    Finished,
}
