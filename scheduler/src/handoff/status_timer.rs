//! When to ask, and ask again, who owes an answer.

use crate::{Duration, Time};

/// A neighbour that says again and again that it holds a microbatch is left alone for up to this many times the wait.
const REST_MAX: u32 = 8;

/// A debt of a neighbour: it was sent something, and owes what it makes of it.
///
/// A question that is not answered is put again after the same wait each time, for it or its answer was lost. Where
/// the answer is that the microbatch is held, the neighbour is busy with others, and the wait before the next question
/// doubles: a wide window would keep everybody asking otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Asking {
    /// Sent, asked or answered last.
    since: Time,
    /// Times the usual wait that passes before the next question.
    rest: u32,
    /// A question is on its way; until it is answered the usual wait counts.
    open: bool,
}

impl Asking {
    /// Something was sent.
    pub(crate) fn sent(now: Time) -> Self {
        Self { since: now, rest: 1, open: true }
    }

    /// The neighbour is asked.
    pub(crate) fn asked(&mut self, now: Time) {
        (self.since, self.open) = (now, true);
    }

    /// The neighbour said that it holds what it was sent. Said unasked it changes nothing.
    pub(crate) fn held(&mut self, now: Time) {
        if self.open {
            (self.since, self.open) = (now, false);
            self.rest = (self.rest * 2).min(REST_MAX);
        }
    }

    /// When the next question is due, if the usual wait is `wait`.
    pub(crate) fn due(&self, wait: Duration) -> Time {
        self.since + if self.open { wait } else { wait * self.rest }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WAIT: Duration = Duration::from_secs(3);

    #[test]
    fn each_answer_that_it_is_held_doubles_the_wait_up_to_a_bound() {
        let (mut now, mut asking) = (Time(0), Asking::sent(Time(0)));
        for times in [1, 2, 4, 8, 8, 8] {
            assert_eq!(asking.due(WAIT), now + WAIT * times);
            now = asking.due(WAIT);
            asking.asked(now);
            assert_eq!(asking.due(WAIT), now + WAIT, "while the question is open");
            asking.held(now);
        }
    }

    #[test]
    fn questions_without_an_answer_keep_their_pace_and_answers_without_a_question_change_nothing() {
        let mut asking = Asking::sent(Time(0));
        asking.held(Time(0));
        let due = asking.due(WAIT);
        asking.held(Time(9));
        assert_eq!((due, asking.due(WAIT)), (Time(0) + WAIT * 2, due));
        for _ in 0..20 {
            let now = asking.due(WAIT);
            asking.asked(now);
            assert_eq!(asking.due(WAIT), now + WAIT);
        }
        asking.held(Time(0));
        assert_eq!(asking.due(WAIT), Time(0) + WAIT * 4);
    }
}
