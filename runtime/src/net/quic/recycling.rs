//! How often connections with one peer may be recycled before that counts as a loss.
//!
//! A peer that closes a connection to make room is not lost, so nothing is counted against its frames and no loss is
//! reported. A peer that closes every connection with that code would be dialled without end. So the connections that
//! end without a loss are counted, and from a limit on they count like any other.

use std::time::{Duration, Instant};

/// Connections with one peer that may end without a loss in an [`INTERVAL`]. Far above what a peer with more neighbours
/// than connections needs: the least recently used one makes room.
pub(super) const RECYCLED_MAX: u32 = 16;
/// Time after which a count begins again.
const INTERVAL: Duration = Duration::from_secs(60);

/// The connections with one peer that ended without a loss lately.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recycling {
    /// Begin of the interval; `None` before the first.
    since: Option<Instant>,
    count: u32,
}

impl Recycling {
    /// A connection ended without a loss.
    pub(super) fn count(&mut self, now: Instant) {
        if !self.is_recent(now) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
    }

    /// Whether the next connection that is recycled counts as lost.
    pub(super) fn is_excessive(&self, now: Instant) -> bool {
        self.is_recent(now) && self.count > RECYCLED_MAX
    }

    fn is_recent(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| now.saturating_duration_since(since) < INTERVAL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_may_recycle_often_but_not_all_the_time() {
        let (mut recycling, begin) = (Recycling::default(), Instant::now());
        for count in 1..=2 * RECYCLED_MAX {
            recycling.count(begin);
            assert_eq!(recycling.is_excessive(begin), count > RECYCLED_MAX);
        }
        let later = begin + INTERVAL;
        assert!(!recycling.is_excessive(later));
        recycling.count(later);
        assert!(!recycling.is_excessive(later));
    }
}
