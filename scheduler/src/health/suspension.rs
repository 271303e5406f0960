//! Suspension of this process itself.

use crate::{Duration, Time};

/// Longest time between two calls of the own loop; see [`Suspension::next_call`].
pub const TICK: Duration = Duration::from_secs(1);

/// A longer gap between two calls is a suspension: the coordinator may have expelled this peer.
pub const SUSPENDED_AFTER: Duration = Duration::from_secs(2);

/// Notices that the own process was suspended, for example by a closed laptop or a frozen container.
///
/// After a suspension no message may be sent until the coordinator confirms the membership: a peer that was expelled
/// meanwhile needs the state of another replica to go on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Suspension {
    latest: Option<Time>,
    unsure: bool,
}

impl Suspension {
    /// A process that was neither called nor suspended.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The own loop runs. Returns `true` if the process was suspended before this call: ask the coordinator.
    pub fn called(&mut self, now: Time) -> bool {
        let suspended = self.latest.is_some_and(|latest| now.since(latest) > SUSPENDED_AFTER);
        self.latest = Some(self.latest.map_or(now, |latest| latest.max(now)));
        self.unsure |= suspended;
        suspended
    }

    /// Whether messages must wait for the coordinator's confirmation.
    #[must_use]
    pub fn is_unsure(&self) -> bool {
        self.unsure
    }

    /// The coordinator, asked after the suspension, confirmed the membership of this instance.
    pub fn confirmed(&mut self) {
        self.unsure = false;
    }

    /// The latest time for the next call, [`TICK`] after the last; `None` before the first.
    #[must_use]
    pub fn next_call(&self) -> Option<Time> {
        self.latest.map(|latest| latest + TICK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_noticed_once_and_doubt_stays_until_the_table_comes() {
        let mut suspension = Suspension::new();
        let at = |millis| Time(0) + Duration::from_millis(millis);
        assert!(!suspension.called(at(90_000)), "the first call is no gap");
        assert_eq!(suspension.next_call(), Some(at(91_000)));
        assert!(!suspension.called(at(92_000)), "late, not suspended");
        assert!(!suspension.is_unsure());
        assert!(suspension.called(at(94_001)));
        assert!(!suspension.called(at(94_500)));
        assert!(suspension.is_unsure());
        suspension.confirmed();
        assert!(!suspension.is_unsure());
    }
}
