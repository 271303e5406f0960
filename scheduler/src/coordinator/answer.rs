//! What the coordinator answers.

use crate::{Duration, Incarnation, Lease, LeaseRefusal, PeerId, Standing};

/// The answer to one request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Welcome; what the newcomer is to do. Also the answer to the same start joining twice.
    Joined(Standing),
    /// Not welcome.
    JoinRefused(JoinRefusal),
    /// Noted. What the member is to do now: a standby that was placed learns it here too.
    Noted(Standing),
    /// The one who speaks is no member, or another start of one: join, or stop.
    NotAMember,
    /// Goodbye.
    Left,
    /// A range of ids.
    Leased(Lease),
    /// No range of ids.
    LeaseRefused(LeaseRefusal),
}

/// Why somebody may not join.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
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
    /// There are no ids without a feeder.
    #[error("no feeder has left anything to take over; feed the run without taking over")]
    NothingToSucceed,
    /// The feeder whose ids are to be taken over is a member.
    #[error("feeder {feeder} is still a member; stop it, or wait until it has been silent for {lease:?}")]
    FeederLives {
        /// Which one.
        feeder: PeerId,
        /// How long a silent member stays one.
        lease: Duration,
    },
    /// The run is over.
    #[error("the run is finished")]
    Finished,
}
