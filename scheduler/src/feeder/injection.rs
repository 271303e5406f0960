//! What goes out: as many microbatches as have a place, each drawn by the shell and sent to a replica of stage 0.

use std::fmt::Debug;

use super::open::{Open, Phase};
use super::{Action, Feeder, Record};
use crate::handoff::attempts::Sendings;
use crate::handoff::status_timer::Asking;
use crate::router::Choice;
use crate::{Hop, Message, MicrobatchId, Purpose, StageIndex, Time, WeightVersion};

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Whether every stage is served and nothing speaks against sending now.
    pub(super) fn may_inject(&mut self, now: Time) -> bool {
        self.paused_until = self.paused_until.filter(|&until| until > now);
        self.paused_until.is_none() && self.succession.is_over() && self.table.serves_all(self.config.stages)
    }

    /// Asks for the tokens of as many microbatches as have a place.
    pub(super) fn admit(&mut self) {
        while let Some((microbatch, open)) = self.next_admitted() {
            let purpose = open.purpose;
            self.open.insert(microbatch, open);
            self.actions.push_back(Action::Draw { microbatch, purpose });
        }
    }

    /// The next microbatch there is a place for. A waiting evaluation lets training run dry first.
    pub(super) fn next_admitted(&mut self) -> Option<(MicrobatchId, Open<P>)> {
        if let Some(evaluation) = self.evaluations.front_mut() {
            let free =
                self.window.in_flight() == 0 && evaluation.has_more() && self.evaluation_window.admit();
            let id = if free { evaluation.take()? } else { return None };
            let sendings = Sendings::from(evaluation.attempt);
            return Some((id, Open { sendings, ..Open::new(evaluation.measured().purpose) }));
        }
        let wanted = !self.stopped && self.admitted < self.config.total && self.ranges.left() > 0;
        if !wanted || !self.window.admit() {
            return None;
        }
        self.admitted += 1;
        self.ranges.take().map(|id| (id, Open::new(Purpose::Train)))
    }

    pub(super) fn send_drawn(&mut self, now: Time) {
        let drawn = |open: &Open<P>| matches!(open.phase, Phase::Drawn);
        let ids: Vec<_> = self.open.iter().filter(|(_, open)| drawn(open)).map(|(&id, _)| id).collect();
        for id in ids {
            if !self.ask_before(now, id) && !self.inject(now, id) {
                return;
            }
        }
    }

    /// Sends one drawn microbatch; `false` if no replica takes one now.
    pub(super) fn inject(&mut self, now: Time, microbatch: MicrobatchId) -> bool {
        let hops = self.table.eligible(now, StageIndex(0));
        let candidates = self.neighbours.candidates(now, hops, self.router.as_ref());
        let senders = self.table.senders(StageIndex(0));
        let Some(to) = self.router.choose(now, &Choice { candidates: &candidates, senders }) else {
            return false;
        };
        let me = self.config.hop();
        let Some(open) = self.open.get_mut(&microbatch) else { return true };
        let Some(ids) = open.ids.clone() else { return true };
        let (purpose, again, anew) = (open.purpose, open.sendings.any(), open.lost);
        let attempt = open.sendings.add(to);
        let message = Message::Forward {
            microbatch,
            attempt,
            purpose,
            anew,
            route: vec![me],
            holder: open.beyond,
            version: WeightVersion(0),
            ids,
            code: P::default(),
        };
        if purpose == Purpose::Train {
            self.actions.push_back(Action::Journal(Record::Sent { microbatch, to }));
            self.count_sent(microbatch, again, anew);
        }
        self.sent(now, microbatch, to);
        self.actions.push_back(Action::Send { to: to.peer, message });
        true
    }

    /// The answer of `to` is awaited.
    pub(super) fn sent(&mut self, now: Time, microbatch: MicrobatchId, to: Hop) {
        self.router.on_sent(now, to, microbatch);
        if let Some(open) = self.open.get_mut(&microbatch) {
            open.phase = Phase::Sent { asking: Asking::sent(now) };
            let at = now + self.config.patience(open.purpose);
            self.check_at = Some(self.check_at.map_or(at, |known| known.min(at)));
        }
    }

    pub(super) fn count_sent(&mut self, microbatch: MicrobatchId, again: bool, anew: bool) {
        self.counts.resent += u64::from(anew);
        if !again {
            self.grants.open(microbatch);
            self.counts.injected += 1;
            self.counts.in_flight += 1;
        }
    }

    pub(super) fn on_drawn(&mut self, microbatch: MicrobatchId, ids: P) {
        if let Some(open) = self.open.get_mut(&microbatch)
            && matches!(open.phase, Phase::Drawing)
        {
            open.ids = Some(ids);
            open.phase = Phase::Drawn;
        }
    }
}
