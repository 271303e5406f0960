//! The own link, and a clock that stands still while the link is down.

use crate::{Duration, Time};

/// The own link counts as down when no peer was heard for so long while at least two are watched. Below the shortest
/// silence that makes a peer suspect.
pub const LINK_DOWN_AFTER: Duration = Duration::from_secs(2);

/// Watched peers that must all be silent: a single silent peer may have died.
const WATCHED_MIN: usize = 2;

/// The state of the own link, judged by the messages that arrive.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Time of the last message of any peer.
    latest: Time,
    /// Total time that the link was down.
    down: Duration,
}

impl Link {
    /// A message arrived while `watched` peers are watched.
    pub(crate) fn sign(&mut self, now: Time, watched: usize) {
        if self.is_down(now, watched) {
            self.down = self.down.saturating_add(now.since(self.latest));
        }
        self.latest = self.latest.max(now);
    }

    pub(crate) fn is_down(&self, now: Time, watched: usize) -> bool {
        self.goes_down(watched).is_some_and(|at| at <= now)
    }

    /// The time at which the link counts as down if no message arrives; in the past if it is down already.
    pub(crate) fn goes_down(&self, watched: usize) -> Option<Time> {
        (watched >= WATCHED_MIN).then(|| self.latest + LINK_DOWN_AFTER)
    }

    /// The time minus all times that the link was down; stands still at the last message while it is down.
    pub(crate) fn clock(&self, now: Time, watched: usize) -> Time {
        let up = if self.is_down(now, watched) { self.latest } else { now };
        Time(0) + up.since(Time(0) + self.down)
    }

    /// The caller's time at which the clock will show `at` if the link stays up.
    pub(crate) fn told_by_caller(&self, at: Time) -> Time {
        at + self.down
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn second(seconds: u64) -> Time {
        Time(0) + Duration::from_secs(seconds)
    }

    #[test]
    fn the_clock_stands_while_nothing_arrives() {
        let mut link = Link::default();
        link.sign(second(10), 2);
        link.sign(second(11), 2);
        let before = link.clock(second(11), 2);
        assert_eq!(link.clock(second(12), 2), before + Duration::from_secs(1));
        assert_eq!(link.clock(second(13), 2), before);
        assert_eq!(link.clock(second(40), 2), before);
        link.sign(second(40), 2);
        assert_eq!(link.clock(second(40), 2), before);
        assert_eq!(link.clock(second(41), 2), before + Duration::from_secs(1));
        assert_eq!(link.told_by_caller(link.clock(second(41), 2)), second(41));
    }

    #[test]
    fn the_silence_of_one_peer_says_nothing_about_the_link() {
        let link = Link::default();
        assert!(!link.is_down(second(100), 1));
        assert!(link.is_down(second(2), 2));
        assert_eq!(link.clock(second(100), 1), second(100));
    }
}
