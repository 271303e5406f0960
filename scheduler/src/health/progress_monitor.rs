//! The progress of a peer that has tasks.

use crate::{Duration, Heartbeat, Time};

/// The least time without progress before a peer counts as stalled.
pub const STALLED_MIN: Duration = Duration::from_secs(5);

/// The time without progress before a peer counts as stalled, in forwards that it could have computed.
const STALLED_FORWARDS: u32 = 8;

/// The progress of a peer's executor, from its heartbeats.
///
/// The last heartbeat decides; a missing heartbeat is judged by the rhythm. A peer that lies here is not detected; it
/// gets few microbatches, since it returns none.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ProgressMonitor {
    latest: Option<(Time, Heartbeat)>,
    /// Time of the last heartbeat that showed progress, or no task that waits for the executor.
    moved: Time,
}

impl ProgressMonitor {
    pub(super) fn beat(&mut self, at: Time, heartbeat: Heartbeat) {
        let before = self.latest.replace((at, heartbeat));
        let stands = before.is_some_and(|(_, before)| before.counter == heartbeat.counter);
        if !stands || heartbeat.queued == 0 || heartbeat.oldest.is_zero() {
            self.moved = at;
        }
    }

    pub(super) fn service(&self) -> Option<Duration> {
        self.latest.and_then(|(_, heartbeat)| heartbeat.service)
    }

    /// Whether tasks wait without progress. The age of the oldest task bounds the time: an earlier heartbeat may have
    /// shown an empty queue.
    pub(super) fn is_stalled(&self) -> bool {
        self.latest.is_some_and(|(at, heartbeat)| {
            let stuck = at.since(self.moved).min(heartbeat.oldest);
            let service = heartbeat.service.unwrap_or_default();
            heartbeat.queued > 0 && stuck >= STALLED_MIN.max(service.saturating_mul(STALLED_FORWARDS))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn working(counter: u64, oldest_s: u64) -> Heartbeat {
        Heartbeat {
            counter,
            queued: 1,
            oldest: SECOND * u32::try_from(oldest_s).unwrap(),
            service: None,
            credit: 0,
        }
    }

    /// Whether a peer that says this, second by second, counts as stalled at last.
    fn stalled(heartbeats: impl IntoIterator<Item = Heartbeat>) -> bool {
        let mut monitor = ProgressMonitor::default();
        for (second, heartbeat) in (0_u64..).zip(heartbeats) {
            monitor.beat(Time(0) + Duration::from_secs(second), heartbeat);
        }
        monitor.is_stalled()
    }

    #[test]
    fn work_that_waits_while_nothing_moves() {
        assert!(!stalled((0..5).map(|second| working(7, second))));
        assert!(stalled((0..6).map(|second| working(7, second))));
        assert!(!stalled((0..60).map(|second| working(second, 60))));
    }

    #[test]
    fn a_peer_that_waited_for_others_has_time_to_go_on() {
        let waited = (0..60).map(|_| working(7, 0));
        assert!(!stalled(waited.clone().chain([working(7, 60)])));
        assert!(stalled(waited.chain((60..66).map(|second| working(7, second)))));
    }

    #[test]
    fn a_peer_without_waiting_tasks_is_not_stalled() {
        assert!(!stalled((0..60).map(|_| Heartbeat { queued: 0, ..working(7, 60) })));
        assert!(!stalled((0..60).map(|_| working(7, 1))));
    }

    #[test]
    fn one_job_done_is_enough() {
        assert!(!stalled((0..60).map(|second| working(u64::from(second == 59), second))));
    }

    #[test]
    fn a_slow_peer_has_longer() {
        let slow = |second| Heartbeat { service: Some(SECOND), ..working(7, second) };
        assert!(!stalled((0..8).map(slow)));
        assert!(stalled((0..9).map(slow)));
        let absurd = |second| Heartbeat { service: Some(Duration::MAX), ..working(7, second) };
        assert!(!stalled((0..60).map(absurd)));
    }
}
