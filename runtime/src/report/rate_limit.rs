//! Limits the lines about events that may repeat for every microbatch.

use std::time::{Duration, Instant};

/// Default pause between two lines about one kind of incident.
const INTERVAL: Duration = Duration::from_secs(5);

/// Lets the first of many equal events through at once, then one event in an interval, with the number of events since.
#[derive(Debug)]
pub(crate) struct RateLimit {
    interval: Duration,
    told: Option<Instant>,
    untold: u64,
}

impl Default for RateLimit {
    fn default() -> Self {
        Self::new(INTERVAL)
    }
}

impl RateLimit {
    /// Lets one event in `interval` through.
    pub(crate) fn new(interval: Duration) -> Self {
        Self { interval, told: None, untold: 0 }
    }

    /// Counts an event. If it may be reported, returns the number of events since the last report.
    pub(crate) fn happened(&mut self) -> Option<u64> {
        self.happened_at(Instant::now())
    }

    /// As [`RateLimit::happened`], at a given time.
    pub(crate) fn happened_at(&mut self, now: Instant) -> Option<u64> {
        self.untold += 1;
        if self.told.is_some_and(|told| now.saturating_duration_since(told) < self.interval) {
            return None;
        }
        self.told = Some(now);
        Some(std::mem::take(&mut self.untold))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_is_told_at_once_and_later_ones_with_their_number() {
        let mut limit = RateLimit::new(Duration::from_secs(5));
        let start = Instant::now();
        let told = [0, 1, 4, 5, 11].map(|second| limit.happened_at(start + Duration::from_secs(second)));
        assert_eq!(told, [Some(1), None, None, Some(3), Some(1)]);
    }
}
