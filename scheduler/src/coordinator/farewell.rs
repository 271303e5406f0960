//! The end of a run: first keepers take the final states, which replicas stay for, then the replicas leave. Both waits have
//! a limit.

use super::config::Config;
use super::members::Members;
use crate::{MemberState, PeerId, Time};

/// How far a finished run has come with its end.
#[derive(Clone, Copy, Debug)]
pub(super) enum Farewell {
    /// Keepers take the final states until this time at most.
    Keeping(Time),
    /// Members leave until this time at most.
    Leaving(Time),
    /// The coordinator stops.
    Ended,
}

impl Farewell {
    /// The run is over now. Of a run that has diverged no final state is worth keeping.
    pub(super) fn new(now: Time, config: &Config, has_diverged: bool) -> Self {
        if has_diverged { Self::Leaving(now + config.farewell) } else { Self::Keeping(now + config.keeping) }
    }

    /// Replicas may leave once `keepers`, the number of keepers that are members, is 0.
    pub(super) fn follow(&mut self, now: Time, config: &Config, keepers: usize) {
        if let Self::Keeping(until) = *self
            && (keepers == 0 || until <= now)
        {
            *self = Self::Leaving(now + config.farewell);
        }
    }

    /// Whether the coordinator stops now; true once.
    pub(super) fn ends(&mut self, now: Time, is_empty: bool) -> bool {
        let ends = match *self {
            Self::Keeping(_) => is_empty,
            Self::Leaving(until) => is_empty || until <= now,
            Self::Ended => false,
        };
        if ends {
            *self = Self::Ended;
        }
        ends
    }

    /// The end of the wait; `None` once the coordinator stops.
    pub(super) fn next(&self) -> Option<Time> {
        match *self {
            Self::Keeping(until) | Self::Leaving(until) => Some(until),
            Self::Ended => None,
        }
    }

    /// Whether the member is told that the run is over. Replicas stay for the keepers.
    pub(super) fn tells(&self, peer: PeerId, members: &Members) -> bool {
        let state = members.of_peer(peer).map(|entry| entry.member.state);
        !matches!((self, state), (Self::Keeping(_), Some(MemberState::Loading(_) | MemberState::Serving(_))))
    }
}
