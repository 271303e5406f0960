//! How often a peer may recycle its connections before that counts as a loss.
//!
//! A peer that closes a connection to make room is not lost, so nothing is counted against its frames and no loss is
//! reported. A peer that closes every connection with that code would be dialled without end. So its recycled connections
//! are counted, and from a limit on they count like any other. A peer that takes frames in between is of use, and the
//! count begins again. Connections that this process closes to make room say nothing about the peer.

use std::time::{Duration, Instant};

/// Connections that a peer may recycle in an [`INTERVAL`] without taking a frame. Also the number of times that a frame
/// is sent over another connection without that being counted. Far above what a peer with more neighbours than
/// connections needs: the least recently used one makes room.
pub(super) const RECYCLED_MAX: u32 = 16;
/// Time after which a count begins again.
const INTERVAL: Duration = Duration::from_secs(60);

/// The connections that one peer has recycled since it last took a frame.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Recycling {
    /// Begin of the interval; `None` before the first.
    since: Option<Instant>,
    count: u32,
}

impl Recycling {
    /// The peer made room, or put another connection in the place of one.
    pub(super) fn count(&mut self, now: Instant) {
        if !self.is_recent(now) {
            *self = Self { since: Some(now), count: 0 };
        }
        self.count = self.count.saturating_add(1);
    }

    /// The peer has acknowledged a frame.
    pub(super) fn took_frame(&mut self) {
        *self = Self::default();
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

    #[test]
    fn a_peer_that_takes_a_frame_may_recycle_as_often_again() {
        let (mut recycling, now) = (Recycling::default(), Instant::now());
        (0..=RECYCLED_MAX).for_each(|_| recycling.count(now));
        assert!(recycling.is_excessive(now));
        recycling.took_frame();
        assert!(!recycling.is_excessive(now));
    }
}
