//! Injection: microbatches are admitted by the window, drawn by the process and sent to a replica of stage 0.

use std::fmt::Debug;
use std::ops::Bound;

use super::open::{Open, Phase};
use super::{Action, Feeder, Record};
use crate::{
    ACK_OPEN_MAX, Attempt, Envelope, Hop, Message, MicrobatchId, Purpose, RouteKey, Time, WeightVersion,
};

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Whether every stage is served, the table names this feeder, no pause is on and no takeover is under way.
    pub(super) fn may_inject(&mut self, now: Time) -> bool {
        self.paused_until = self.paused_until.filter(|&until| until > now);
        let named = self.table.leased_by(self.config.me.peer).next().is_some();
        let free = self.paused_until.is_none() && self.succession.is_over();
        named && free && self.table.serves_all(self.config.stages)
    }

    /// Asks for the tokens of as many microbatches as the window admits.
    pub(super) fn admit(&mut self) {
        while let Some((microbatch, open)) = self.next_admitted() {
            let purpose = open.purpose;
            self.open.insert(microbatch, open);
            self.actions.push_back(Action::Draw { microbatch, purpose });
        }
    }

    /// The next microbatch that the window admits.
    fn next_admitted(&mut self) -> Option<(MicrobatchId, Open<P>)> {
        if let Some(evaluation) = self.next_evaluation() {
            return Some(evaluation);
        }
        if self.holds_training() {
            return None;
        }
        let wanted = !self.stopped && self.admitted < self.config.total;
        let next = self.ranges.next().filter(|&next| wanted && self.can_be_announced(next))?;
        if !self.window.admit() {
            return None;
        }
        self.admitted += 1;
        self.ranges.take();
        Some((next, Open::new(Purpose::Train)))
    }

    /// The next microbatch of an evaluation. It goes among the training microbatches, except where those must see the
    /// same weights: there it waits until they have run dry.
    fn next_evaluation(&mut self) -> Option<(MicrobatchId, Open<P>)> {
        let (waits, dry) = (self.window.is_in_step(), self.window.in_flight() == 0);
        let evaluation = self.evaluations.front_mut().filter(|_| dry || !waits)?;
        // A successor may have no ids but those that it took over.
        let block = self.ranges.block().or_else(|| self.progress.first_block())?;
        if !evaluation.has_more() || !self.evaluation_window.admit() {
            return None;
        }
        let id = evaluation.take(block)?;
        self.handoff.number_from(id, evaluation.attempt);
        Some((id, Open::new(evaluation.measured().purpose)))
    }

    /// Whether training waits for an evaluation: in step, and for the evaluation of the initial weights.
    fn holds_training(&self) -> bool {
        !self.evaluations.is_empty() && (self.window.is_in_step() || self.counts.injected == 0)
    }

    /// Whether an announcement can name every id that may be open below `next`. Ids are injected in order, so only a
    /// microbatch that stays open while many thousands end comes near this limit.
    fn can_be_announced(&self, next: MicrobatchId) -> bool {
        let oldest = self.open.range(self.announcement.before(next)).next();
        oldest.is_none_or(|(oldest, _)| next.0 - oldest.0 < ACK_OPEN_MAX as u64)
    }

    /// Sends the microbatches that wait for a replica, those of evaluations first, as long as a replica takes one.
    pub(super) fn send_drawn(&mut self, now: Time) {
        let mut next = self.drawn.first().copied();
        while let Some((trains, id)) = next {
            if !self.ask_former_holder(now, id) && !self.inject(now, id) {
                return;
            }
            next = self.drawn.range((Bound::Excluded((trains, id)), Bound::Unbounded)).next().copied();
        }
    }

    /// The microbatch waits for a replica of stage 0.
    pub(super) fn wait_for_replica(&mut self, microbatch: MicrobatchId) {
        if let Some(open) = self.open.get_mut(&microbatch) {
            open.phase = Phase::Drawn;
            self.drawn.insert((open.trains(), microbatch));
        }
    }

    /// Sends one drawn microbatch; `false` if no replica takes one now.
    fn inject(&mut self, now: Time, microbatch: MicrobatchId) -> bool {
        let Some(to) = self.handoff.choose(now, &self.table) else { return false };
        let Some(open) = self.open.get(&microbatch) else { return true };
        let (purpose, Some(ids)) = (open.purpose, open.ids.clone()) else { return true };
        let again = self.handoff.attempts(microbatch) > 0;
        let is_retry = self.handoff.had_failed(microbatch);
        let downstream_holder = self.handoff.holder_beyond(microbatch);
        if purpose == Purpose::Train {
            self.actions.push_back(Action::Journal(Record::Sent { microbatch, to }));
            self.count_sent(microbatch, again, is_retry);
        }
        let attempt = self.hand_on(now, microbatch, to);
        let message = Message::Forward {
            microbatch,
            attempt,
            purpose,
            is_retry,
            route: vec![self.config.hop()],
            key: RouteKey::first(&self.config.secret, microbatch, to),
            downstream_holder,
            version: WeightVersion(0),
        };
        let envelope = Envelope { message, ids, payload: P::default() };
        self.actions.push_back(Action::Send { to: to.peer(), envelope });
        true
    }

    /// Notes that the microbatch goes to `to`; its reply is awaited from now on.
    pub(super) fn hand_on(&mut self, now: Time, microbatch: MicrobatchId, to: Hop) -> Attempt {
        let purpose = self.open.get(&microbatch).map_or(Purpose::Train, |open| open.purpose);
        if let Some(open) = self.open.get_mut(&microbatch) {
            open.phase = Phase::Sent;
        }
        self.drawn.remove(&(purpose == Purpose::Train, microbatch));
        self.handoff.sent(now, microbatch, to, self.config.status_after)
    }

    fn count_sent(&mut self, microbatch: MicrobatchId, again: bool, is_retry: bool) {
        self.counts.retried += u64::from(is_retry);
        if !again {
            self.grants.open(microbatch);
            self.progress.inject(microbatch);
            self.counts.injected += 1;
            self.counts.in_flight += 1;
        }
    }

    pub(super) fn on_drawn(&mut self, microbatch: MicrobatchId, ids: P) {
        if let Some(open) = self.open.get_mut(&microbatch)
            && open.phase == Phase::Drawing
        {
            open.ids = Some(ids);
            self.wait_for_replica(microbatch);
        }
    }
}
