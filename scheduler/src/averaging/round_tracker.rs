//! Which round a feeder calls, and what it is told when the round has ended here.

use crate::{Duration, PeerId, Time};

use super::Round;

/// A feeder that goes on calling a round that has ended here is told so again after this long.
const SAY_AGAIN: Duration = Duration::from_secs(1);

/// One replica's account of the rounds of its run, beside [`Averaging`](super::Averaging), which goes through one.
#[derive(Clone, Debug, Default)]
pub struct Attendance {
    /// The round the run is in, as last heard, and not begun here.
    called: Option<Round>,
    /// Nobody learns any more.
    closing: bool,
    /// The feeder that called last: it waits for the end of the round.
    feeder: Option<PeerId>,
    /// Every round up to this one has ended here; none before a feeder was heard.
    ended: Option<Round>,
    /// What was last said of that, and when.
    said: Option<(Word, Time)>,
}

/// Tell this feeder that every round up to this one has ended here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Whom to tell.
    pub feeder: PeerId,
    /// Which round.
    pub ended: Round,
}

impl Attendance {
    /// A feeder called a round. It may have missed that this one has ended. The first one heard of may be under way
    /// among the others.
    pub fn hear_call(&mut self, now: Time, feeder: PeerId, round: Round, over: bool) -> Option<Word> {
        (self.feeder, self.closing) = (Some(feeder), over);
        let ended = *self.ended.get_or_insert(round);
        if round > ended {
            self.called = self.called.max(Some(round));
            return None;
        }
        let again = |&(word, at): &(Word, Time)| at + SAY_AGAIN <= now || self.word() != Some(word);
        self.said.as_ref().is_none_or(again).then(|| self.say(now)).flatten()
    }

    /// Takes the round called, if it is time: those that close a run begin when nothing is `held` that could still
    /// change the weights.
    pub fn take_due(&mut self, held: usize) -> Option<Round> {
        let unsettled = self.closing && held > 0;
        self.called.take_if(|_| !unsettled)
    }

    /// A round has ended here, or there was nobody to average with.
    pub fn end(&mut self, now: Time, round: Round) -> Option<Word> {
        self.ended = self.ended.max(Some(round));
        self.say(now)
    }

    fn say(&mut self, now: Time) -> Option<Word> {
        let word = self.word()?;
        self.said = Some((word, now));
        Some(word)
    }

    fn word(&self) -> Option<Word> {
        Some(Word { feeder: self.feeder?, ended: self.ended? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEEDER: PeerId = PeerId([7; 32]);
    const NOW: Time = Time(0);

    fn word(ended: u64) -> Option<Word> {
        Some(Word { feeder: FEEDER, ended: Round(ended) })
    }

    #[test]
    fn the_first_round_heard_of_is_left_to_the_others() {
        let mut attendance = Attendance::default();
        assert_eq!(attendance.hear_call(NOW, FEEDER, Round(4), false), word(4));
        assert_eq!(attendance.take_due(0), None);
        assert_eq!(attendance.hear_call(NOW, FEEDER, Round(5), false), None);
        assert_eq!((attendance.take_due(3), attendance.take_due(3)), (Some(Round(5)), None));
        assert_eq!(attendance.end(NOW, Round(5)), word(5));
    }

    #[test]
    fn a_feeder_that_missed_the_end_hears_it_again_in_time() {
        let mut attendance = Attendance::default();
        attendance.hear_call(NOW, FEEDER, Round(4), false);
        assert_eq!(attendance.hear_call(NOW + SAY_AGAIN / 2, FEEDER, Round(4), false), None);
        assert_eq!(attendance.hear_call(NOW + SAY_AGAIN, FEEDER, Round(3), false), word(4));
        let other = PeerId([8; 32]);
        let told = attendance.hear_call(NOW + SAY_AGAIN, other, Round(4), false);
        assert_eq!(told, Some(Word { feeder: other, ended: Round(4) }));
    }

    #[test]
    fn the_last_rounds_wait_until_nothing_is_held() {
        let mut attendance = Attendance::default();
        attendance.hear_call(NOW, FEEDER, Round(0), false);
        attendance.hear_call(NOW, FEEDER, Round(1), true);
        assert_eq!((attendance.take_due(1), attendance.take_due(0)), (None, Some(Round(1))));
    }
}
