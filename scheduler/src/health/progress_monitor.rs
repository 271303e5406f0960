//! Whether a peer that has work does any.

use crate::Beat;
use crate::{Duration, Time};

/// The least time nothing moves before a peer counts as wedged.
pub const WEDGED_MIN: Duration = Duration::from_secs(5);

/// Forwards a peer could have computed in the time nothing moves before it counts as wedged.
const WEDGED_FORWARDS: u32 = 8;

/// What the heartbeats of a peer say about its executor.
///
/// Judged by what the last heartbeat said: between two of them nothing is known, and their absence is the rhythm's
/// business. A peer that lies here is not found out; it is sent little, since it returns nothing.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Labour {
    latest: Option<(Time, Beat)>,
    /// The last heartbeat that showed progress, or nothing that waits for the executor.
    moved: Time,
}

impl Labour {
    pub(super) fn beat(&mut self, at: Time, beat: Beat) {
        let before = self.latest.replace((at, beat));
        let stands = before.is_some_and(|(_, before)| before.counter == beat.counter);
        if !stands || beat.queued == 0 || beat.oldest.is_zero() {
            self.moved = at;
        }
    }

    pub(super) fn service(&self) -> Option<Duration> {
        self.latest.and_then(|(_, beat)| beat.service)
    }

    /// The oldest task bounds how long it can have been stuck: a heartbeat before it may have shown an empty queue.
    pub(super) fn is_wedged(&self) -> bool {
        self.latest.is_some_and(|(at, beat)| {
            let stuck = at.since(self.moved).min(beat.oldest);
            let service = beat.service.unwrap_or_default();
            beat.queued > 0 && stuck >= WEDGED_MIN.max(service.saturating_mul(WEDGED_FORWARDS))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn working(counter: u64, oldest_s: u64) -> Beat {
        Beat {
            counter,
            queued: 1,
            oldest: SECOND * u32::try_from(oldest_s).unwrap(),
            service: None,
            credit: 0,
        }
    }

    /// Whether a peer that says this, second by second, counts as wedged at last.
    fn wedged(beats: impl IntoIterator<Item = Beat>) -> bool {
        let mut labour = Labour::default();
        for (second, beat) in (0_u64..).zip(beats) {
            labour.beat(Time(0) + Duration::from_secs(second), beat);
        }
        labour.is_wedged()
    }

    #[test]
    fn work_that_waits_while_nothing_moves() {
        assert!(!wedged((0..5).map(|second| working(7, second))));
        assert!(wedged((0..6).map(|second| working(7, second))));
        assert!(!wedged((0..60).map(|second| working(second, 60))));
    }

    #[test]
    fn who_waited_for_others_has_time_to_go_on() {
        let waited = (0..60).map(|_| working(7, 0));
        assert!(!wedged(waited.clone().chain([working(7, 60)])));
        assert!(wedged(waited.chain((60..66).map(|second| working(7, second)))));
    }

    #[test]
    fn nothing_to_do_is_not_wedged() {
        assert!(!wedged((0..60).map(|_| Beat { queued: 0, ..working(7, 60) })));
        assert!(!wedged((0..60).map(|_| working(7, 1))));
    }

    #[test]
    fn one_job_done_is_enough() {
        assert!(!wedged((0..60).map(|second| working(u64::from(second == 59), second))));
    }

    #[test]
    fn a_slow_peer_has_longer() {
        let slow = |second| Beat { service: Some(SECOND), ..working(7, second) };
        assert!(!wedged((0..8).map(slow)));
        assert!(wedged((0..9).map(slow)));
        let absurd = |second| Beat { service: Some(Duration::MAX), ..working(7, second) };
        assert!(!wedged((0..60).map(absurd)));
    }
}
