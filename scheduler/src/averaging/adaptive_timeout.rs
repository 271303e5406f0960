//! The timeout for other members, adapted to the time that they took before.

use crate::Duration;

/// Shortest timeout: members hear of a round up to a second apart, so a shorter wait would leave out live members.
pub const TIMEOUT_MIN: Duration = Duration::from_secs(2);
/// Longest timeout: a longer wait gains nothing, because the fragment has its turn again.
pub const TIMEOUT_MAX: Duration = Duration::from_secs(15);
/// Timeout before the first measurement: a slow executor copies its weights only between two jobs.
pub const TIMEOUT_FIRST: Duration = Duration::from_secs(5);

/// The timeout is this many times the spread seen: arrivals of one round say little about the slowest of the next.
const MARGIN: u32 = 4;
/// A quicker arrival takes this fraction off the spread remembered, so a single slow round is soon forgotten.
const FORGET: u32 = 8;

/// A timeout from the spread of arrivals: the largest spread lately seen, slowly forgotten.
///
/// Members send their parts one after the other, and each part to all other members. On a thin link a long time lies
/// between two messages of a member that works at full speed. So the timeout is one for silence, and a round has time
/// for the transfer of one part on top.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct AdaptiveTimeout {
    remembered: Option<Duration>,
    transfer: Duration,
}

impl AdaptiveTimeout {
    /// A round begins in which a slow link sends and receives a part in this time.
    pub(super) fn begin(&mut self, transfer: Duration) {
        self.transfer = transfer;
    }

    /// A contribution arrived this long after the last sign of its sender.
    pub(super) fn saw(&mut self, after: Duration) {
        let before = self.remembered.unwrap_or_default();
        self.remembered = Some(after.min(TIMEOUT_MAX).max(before - before / FORGET));
    }

    /// How long an owner waits for other members that are silent.
    pub(super) fn current(&self) -> Duration {
        let measured = |spread: Duration| (spread * MARGIN).clamp(TIMEOUT_MIN, TIMEOUT_MAX);
        self.remembered.map_or(TIMEOUT_FIRST, measured) + self.transfer
    }

    /// How long a member waits for a silent owner whose copy, like those of all members, is ready: one timeout for the
    /// owner to collect, one for the messages. Not below a floor, because the owner may have measured a larger spread.
    pub(super) fn with_owner(&self) -> Duration {
        self.current().max(TIMEOUT_FIRST + self.transfer) * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_timeout_follows_the_slow_and_forgets_them() {
        let mut timeout = AdaptiveTimeout::default();
        assert_eq!(timeout.current(), TIMEOUT_FIRST);
        timeout.saw(Duration::from_millis(1));
        assert_eq!(timeout.current(), TIMEOUT_MIN);
        assert_eq!(timeout.with_owner(), TIMEOUT_FIRST * 2);
        timeout.saw(Duration::from_secs(2));
        assert_eq!(timeout.current(), Duration::from_secs(8));
        timeout.saw(Duration::from_secs(3_600));
        assert_eq!(timeout.current(), TIMEOUT_MAX);
        (0..50).for_each(|_| timeout.saw(Duration::ZERO));
        assert_eq!(timeout.current(), TIMEOUT_MIN);
        let transfer = Duration::from_secs(20);
        timeout.begin(transfer);
        assert_eq!(timeout.current(), TIMEOUT_MIN + transfer);
        assert_eq!(timeout.with_owner(), (TIMEOUT_FIRST + transfer) * 2);
    }
}
