//! The time of the next status request.

use crate::{Duration, Time};

/// Timeouts between two status requests at most, while the neighbour keeps replying that it holds the microbatch.
const BACKOFF_MAX: u32 = 8;

/// Requests in a row without any reply after which none is expected: the link to the neighbour is broken.
const REQUESTS_MAX: u32 = 5;

/// The timer of one microbatch for which a neighbour owes a reply.
///
/// A request without a reply is repeated after one timeout each time, for the request or its reply was lost. After a
/// reply that the microbatch is held, the neighbour is busy with others, and the wait before the next request doubles:
/// otherwise every replica would keep asking under a wide window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct StatusTimer {
    /// Time of the last message of the exchange: the microbatch, a request or a reply.
    since: Time,
    /// Timeouts that pass before the next request.
    backoff: u32,
    /// A request has no reply yet; until then one timeout counts.
    open: bool,
    /// Requests in a row without a reply.
    unanswered: u32,
}

impl StatusTimer {
    /// The microbatch was sent.
    pub(crate) fn sent(now: Time) -> Self {
        Self { since: now, backoff: 1, open: true, unanswered: 0 }
    }

    /// A status request was sent.
    pub(crate) fn requested(&mut self, now: Time) {
        (self.since, self.open) = (now, true);
        self.unanswered += 1;
    }

    /// Whether so many requests went unanswered that no reply will come.
    pub(crate) fn is_hopeless(&self) -> bool {
        self.unanswered >= REQUESTS_MAX
    }

    /// The neighbour replied that it holds the microbatch. Without a request the reply changes nothing.
    pub(crate) fn held(&mut self, now: Time) {
        self.unanswered = 0;
        if self.open {
            (self.since, self.open) = (now, false);
            self.backoff = (self.backoff * 2).min(BACKOFF_MAX);
        }
    }

    /// When the next request is due.
    pub(crate) fn due(&self, timeout: Duration) -> Time {
        self.since + if self.open { timeout } else { timeout * self.backoff }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_secs(3);

    #[test]
    fn each_reply_that_it_is_held_doubles_the_wait_up_to_a_bound() {
        let (mut now, mut timer) = (Time(0), StatusTimer::sent(Time(0)));
        for times in [1, 2, 4, 8, 8, 8] {
            assert_eq!(timer.due(TIMEOUT), now + TIMEOUT * times);
            now = timer.due(TIMEOUT);
            timer.requested(now);
            assert_eq!(timer.due(TIMEOUT), now + TIMEOUT, "while the request is open");
            timer.held(now);
        }
    }

    #[test]
    fn requests_without_a_reply_keep_their_pace_and_replies_without_a_request_change_nothing() {
        let mut timer = StatusTimer::sent(Time(0));
        timer.held(Time(0));
        let due = timer.due(TIMEOUT);
        timer.held(Time(9));
        assert_eq!((due, timer.due(TIMEOUT)), (Time(0) + TIMEOUT * 2, due));
        for request in 0..20 {
            assert_eq!(timer.is_hopeless(), request >= REQUESTS_MAX);
            let now = timer.due(TIMEOUT);
            timer.requested(now);
            assert_eq!(timer.due(TIMEOUT), now + TIMEOUT);
        }
        timer.held(Time(0));
        assert!(!timer.is_hopeless());
        assert_eq!(timer.due(TIMEOUT), Time(0) + TIMEOUT * 4);
    }
}
