//! How long an answer is waited for.
//!
//! A fixed deadline would give up microbatches on slow machines, whose pipeline takes minutes to go round. So the
//! clock of a wait starts again with every answer that arrives, whosever it is: what is slow but moves is not stuck.
//! Only a wait that many later ones have overtaken keeps its own clock.

use crate::{Duration, Time};

/// The rule, and the answers it has seen.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    limit: Duration,
    overtaken_max: u64,
    answers: u64,
    latest: Time,
}

/// One wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    since: Time,
    answers_before: u64,
}

impl Patience {
    /// Waits `limit` without any answer; and no longer than `limit` in all once `overtaken_max` answers came first.
    pub(crate) fn new(limit: Duration, overtaken_max: u64) -> Self {
        Self { limit, overtaken_max, answers: 0, latest: Time::default() }
    }

    /// An answer arrived.
    pub(crate) fn answered(&mut self, now: Time) {
        self.answers += 1;
        self.latest = self.latest.max(now);
    }

    /// Begins to wait.
    pub(crate) fn begin(&self, now: Time) -> Wait {
        Wait { since: now, answers_before: self.answers }
    }

    /// When `wait` is over, as things stand.
    pub(crate) fn end_of(&self, wait: Wait) -> Time {
        let overtaken = self.answers.saturating_sub(wait.answers_before) >= self.overtaken_max;
        let from = if overtaken { wait.since } else { wait.since.max(self.latest) };
        from + self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn patience() -> Patience {
        Patience::new(Duration::from_secs(10), 3)
    }

    #[test]
    fn silence_ends_a_wait_at_its_limit() {
        let patience = patience();
        assert_eq!(patience.end_of(patience.begin(Time(SECOND))), Time(11 * SECOND));
    }

    #[test]
    fn answers_to_others_start_the_clock_again() {
        let mut patience = patience();
        let wait = patience.begin(Time(SECOND));
        patience.answered(Time(9 * SECOND));
        assert_eq!(patience.end_of(wait), Time(19 * SECOND));
    }

    #[test]
    fn what_was_overtaken_often_keeps_its_own_clock() {
        let mut patience = patience();
        let wait = patience.begin(Time(SECOND));
        (2..5).for_each(|second| patience.answered(Time(second * SECOND)));
        assert_eq!(patience.end_of(wait), Time(11 * SECOND));
    }
}
