//! Feeds a run: works through leased ids, keeps the window full, and is the one place where outcomes are counted.
//!
//! A training microbatch is admitted by the window, drawn by the shell, sent to a replica of stage 0, and has
//! exactly one outcome: finished, refused, or lost when nobody answered by the deadline. Evaluations wait until
//! no training microbatch is in flight, so that the figure belongs to one set of weights.

mod config;
mod evaluation;
mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use crate::ended::Ended;
use crate::patience::{Patience, Wait};
use crate::router::{Router, Settled};
use crate::{
    Admission, Attempt, Hop, Incarnation, Lease, Loss, Membership, Message, MicrobatchId, PeerId, PeerTable,
    Purpose, Refusal, StageIndex, Time, WeightVersion, Window,
};

pub use config::{Config, EVALUATIONS_MAX, LEASE_RETRY, OVERTAKEN_WINDOWS, REFUSED_PAUSE};
pub use evaluation::Measured;

use evaluation::Evaluation;
use ranges::Ranges;

/// What happens to a feeder.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. Older ones than known are ignored.
    Membership(Membership),
    /// The coordinator leased a range. What was leased before is not injected again.
    Lease(Lease),
    /// The shell drew a microbatch it was asked for.
    Drawn {
        /// Which one.
        microbatch: MicrobatchId,
        /// Its token ids, packed.
        ids: P,
    },
    /// A message arrived from an authenticated peer.
    Received {
        /// Who sent it.
        from: PeerId,
        /// Which start of the sender.
        incarnation: Incarnation,
        /// What it says.
        message: Message<P>,
    },
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost {
        /// Which peer.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
    },
    /// Measure the loss on held-out microbatches `first..first + count`. Training holds meanwhile.
    Evaluate {
        /// Index of the first, from 0; its id is [`MicrobatchId::evaluation`] of that.
        first: u64,
        /// How many.
        count: u64,
        /// `Evaluate` or `EvaluateCut`; `Train` counts as `Evaluate`.
        purpose: Purpose,
    },
    /// Inject nothing more; finish what is in flight, then [`Action::Done`].
    Stop,
    /// The time `poll_timeout` named has come.
    Timeout,
}

/// What a feeder wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Draw the tokens of this microbatch and answer with [`Event::Drawn`].
    Draw {
        /// Which one.
        microbatch: MicrobatchId,
        /// From training text or held-out text.
        purpose: Purpose,
    },
    /// Send this to a replica of stage 0.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Message<P>,
    },
    /// Ask the coordinator for this many ids.
    RequestLease {
        /// How many.
        count: u64,
    },
    /// A microbatch has its outcome; said once for every microbatch sent.
    Outcome {
        /// Which one.
        microbatch: MicrobatchId,
        /// What became of it.
        outcome: Outcome,
    },
    /// An evaluation is over; commands are answered in order.
    EvaluationDone(Measured),
    /// An evaluation was not taken: [`EVALUATIONS_MAX`] wait already, or the feeder is stopped.
    EvaluationDeclined,
    /// Every training microbatch, or every one injected before `Stop`, has an outcome. Said once.
    Done,
}

/// What became of a microbatch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// Every stage did its part.
    Finished {
        /// The training loss.
        loss: Loss,
    },
    /// Somebody refused it.
    Refused {
        /// Who.
        by: Hop,
        /// Why.
        reason: Refusal,
    },
    /// An evaluation gave its loss.
    Evaluated {
        /// The loss.
        loss: Loss,
    },
    /// No outcome arrived by the deadline.
    Lost,
}

/// Why a feeder wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A microbatch has no outcome yet.
    DeadlineExpires,
    /// A request for a lease was not answered.
    LeaseRetry,
    /// Injecting goes on after a microbatch found no way or no room.
    PauseEnds,
    /// A replica of stage 0 may be tried again.
    QuarantineEnds,
}

/// Totals of a feeder. The first five are about training microbatches only.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent to stage 0.
    pub injected: u64,
    /// Finished.
    pub finished: u64,
    /// Refused.
    pub refused: u64,
    /// Without an outcome by the deadline. A sound run has none.
    pub lost: u64,
    /// Injected, no outcome yet.
    pub in_flight: u64,
    /// Evaluations answered with a loss.
    pub evaluated: u64,
    /// Second outcomes of one microbatch. A sound run has none.
    pub duplicates: u64,
    /// Answers after the feeder had given the microbatch up.
    pub late: u64,
    /// Messages that nobody was asked for.
    pub foreign: u64,
}

/// A microbatch that was admitted and has no outcome.
#[derive(Clone, Debug)]
struct Open<P> {
    purpose: Purpose,
    attempt: Attempt,
    phase: Phase<P>,
}

#[derive(Clone, Debug)]
enum Phase<P> {
    Drawing,
    Drawn { ids: P },
    Sent { to: Hop, wait: Wait },
}

/// How a microbatch got its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Closed {
    Answered,
    GivenUp,
}

/// Injects microbatches and counts outcomes.
#[derive(Debug)]
pub struct Feeder<P> {
    config: Config,
    table: PeerTable,
    router: Box<dyn Router>,
    ranges: Ranges,
    window: Window,
    evaluations: VecDeque<Evaluation>,
    evaluation_window: Window,
    evaluation_rounds: u32,
    /// Bounded by the two windows.
    open: BTreeMap<MicrobatchId, Open<P>>,
    ended: Ended<Closed>,
    patience: Patience,
    counts: Counts,
    admitted: u64,
    lease_asked: Option<Time>,
    paused_until: Option<Time>,
    now: Time,
    stopped: bool,
    done: bool,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A feeder that has no ids and knows nobody.
    #[must_use]
    pub fn new(config: Config, router: Box<dyn Router>) -> Self {
        let window = Window::new(config.admission);
        let evaluation_window = Window::new(Admission::Asynchronous(window.limit()));
        let patience = Patience::new(config.deadline, OVERTAKEN_WINDOWS * u64::from(window.limit()));
        Self {
            config,
            table: PeerTable::new(),
            router,
            ranges: Ranges::default(),
            window,
            evaluations: VecDeque::new(),
            evaluation_window,
            evaluation_rounds: 0,
            open: BTreeMap::new(),
            ended: Ended::new(),
            patience,
            counts: Counts::default(),
            admitted: 0,
            lease_asked: None,
            paused_until: None,
            now: Time::default(),
            stopped: false,
            done: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        self.now = self.now.max(now);
        match event {
            Event::Membership(membership) => self.on_membership(now, membership),
            Event::Lease(lease) => self.on_lease(&lease),
            Event::Drawn { microbatch, ids } => self.on_drawn(microbatch, ids),
            Event::Received { from, incarnation, message } => {
                self.on_message(now, from, incarnation, message);
            }
            Event::PeerLost { peer, incarnation } => self.on_peer_lost(now, peer, incarnation),
            Event::Evaluate { first, count, purpose } => self.on_evaluate(first, count, purpose),
            Event::Stop => self.on_stop(),
            Event::Timeout => {}
        }
        self.give_up_expired(now);
        self.ask_for_lease(now);
        if self.may_inject(now) {
            self.admit();
            self.send_drawn(now);
        }
        self.notice_done();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call again with [`Event::Timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let waits = self.open.values().filter_map(Open::wait).map(|wait| self.patience.end_of(wait));
        let deadline = waits.min().map(|end| (end, Reason::DeadlineExpires));
        let lease = self.lease_asked.map(|at| (at + LEASE_RETRY, Reason::LeaseRetry));
        let pause = self.paused_until.map(|until| (until, Reason::PauseEnds));
        let release = self.table.next_release(self.now).map(|until| (until, Reason::QuarantineEnds));
        [deadline, lease, pause, release].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// Totals since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether [`Action::Done`] was said.
    #[must_use]
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// The peers as known here.
    #[must_use]
    pub fn table(&self) -> &PeerTable {
        &self.table
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // --- What goes out --------------------------------------------------------------------------------------

    /// Whether every stage is served and nothing speaks against sending now.
    fn may_inject(&mut self, now: Time) -> bool {
        self.paused_until = self.paused_until.filter(|&until| until > now);
        self.paused_until.is_none()
            && self.table.serves_all(self.config.stages)
            && !self.table.eligible(now, StageIndex(0)).is_empty()
    }

    /// Asks for the tokens of as many microbatches as have a place.
    fn admit(&mut self) {
        while let Some((microbatch, purpose, attempt)) = self.next_admitted() {
            self.open.insert(microbatch, Open { purpose, attempt, phase: Phase::Drawing });
            self.actions.push_back(Action::Draw { microbatch, purpose });
        }
    }

    /// The next microbatch there is a place for. A waiting evaluation lets training run dry first.
    fn next_admitted(&mut self) -> Option<(MicrobatchId, Purpose, Attempt)> {
        if let Some(evaluation) = self.evaluations.front_mut() {
            let free =
                self.window.in_flight() == 0 && evaluation.has_more() && self.evaluation_window.admit();
            let id = if free { evaluation.take()? } else { return None };
            return Some((id, evaluation.measured().purpose, evaluation.attempt));
        }
        let wanted = !self.stopped && self.admitted < self.config.total && self.ranges.left() > 0;
        if !wanted || !self.window.admit() {
            return None;
        }
        self.admitted += 1;
        self.ranges.take().map(|id| (id, Purpose::Train, Attempt(0)))
    }

    fn send_drawn(&mut self, now: Time) {
        let drawn = |open: &Open<P>| matches!(open.phase, Phase::Drawn { .. });
        let ids: Vec<_> = self.open.iter().filter(|(_, open)| drawn(open)).map(|(&id, _)| id).collect();
        for id in ids {
            self.inject(now, id);
        }
    }

    /// Sends one drawn microbatch; it stays drawn if no replica can be chosen.
    fn inject(&mut self, now: Time, microbatch: MicrobatchId) {
        let eligible = self.table.eligible(now, StageIndex(0));
        let Some(to) = self.router.choose(now, &eligible) else { return };
        let Some(open) = self.open.get_mut(&microbatch) else { return };
        let Phase::Drawn { ids } =
            std::mem::replace(&mut open.phase, Phase::Sent { to, wait: self.patience.begin(now) })
        else {
            return;
        };
        if open.trains() {
            self.counts.injected += 1;
            self.counts.in_flight += 1;
        }
        let message = Message::Forward {
            microbatch,
            attempt: open.attempt,
            purpose: open.purpose,
            route: vec![self.config.hop()],
            version: WeightVersion(0),
            ids,
            code: P::default(),
        };
        self.router.on_sent(now, to, microbatch);
        self.actions.push_back(Action::Send { to: to.peer, message });
    }

    /// Asks for ids when half of a lease is used up, one request at a time.
    fn ask_for_lease(&mut self, now: Time) {
        let left = self.ranges.left();
        let missing = self.config.total.saturating_sub(self.admitted).saturating_sub(left);
        let waiting = self.lease_asked.is_some_and(|at| now < at + LEASE_RETRY);
        if self.stopped || missing == 0 {
            self.lease_asked = None;
        } else if !waiting && left <= self.config.lease_count / 2 {
            let count = self.config.lease_count.clamp(1, missing);
            self.lease_asked = Some(now);
            self.actions.push_back(Action::RequestLease { count });
        }
    }

    // --- What arrives ---------------------------------------------------------------------------------------

    fn on_lease(&mut self, lease: &Lease) {
        self.ranges.add(lease);
        self.lease_asked = None;
    }

    fn on_drawn(&mut self, microbatch: MicrobatchId, ids: P) {
        if let Some(open) = self.open.get_mut(&microbatch)
            && matches!(open.phase, Phase::Drawing)
        {
            open.phase = Phase::Drawn { ids };
        }
    }

    fn on_message(&mut self, now: Time, from: PeerId, incarnation: Incarnation, message: Message<P>) {
        let sender = Hop { stage: Some(StageIndex(0)), peer: from, incarnation };
        let (id, attempt, outcome) = match message {
            Message::Backward { microbatch, attempt, loss, gradient: _ } => {
                (microbatch, attempt, finite(loss, sender, Outcome::Finished { loss }))
            }
            Message::Evaluated { microbatch, attempt, loss } => {
                (microbatch, attempt, finite(loss, sender, Outcome::Evaluated { loss }))
            }
            Message::Refused { microbatch, attempt, by, reason } => {
                (microbatch, attempt, Outcome::Refused { by, reason })
            }
            Message::Forward { .. } | Message::Averaging(_) | Message::Transfer(_) => {
                return self.counts.foreign += 1;
            }
        };
        if !self.table.placed(&sender) {
            return self.counts.foreign += 1;
        }
        self.table.heard(from, incarnation);
        match self.open.get(&id) {
            Some(open) if open.answers(sender, attempt, &outcome) => {
                self.patience.answered(now);
                self.settle(now, id, outcome, Closed::Answered);
            }
            Some(_) => self.counts.foreign += 1,
            None => match self.ended.get(id) {
                Some(Closed::Answered) => self.counts.duplicates += 1,
                Some(Closed::GivenUp) => self.counts.late += 1,
                None => self.counts.foreign += 1,
            },
        }
    }

    fn on_peer_lost(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        self.table.quarantine(now, peer, incarnation);
        self.give_up_sent_to(now, |to| to.peer == peer && to.incarnation == incarnation);
    }

    fn on_membership(&mut self, now: Time, membership: Membership) {
        if self.table.update(membership) {
            self.paused_until = None;
            let table = std::mem::take(&mut self.table);
            self.give_up_sent_to(now, |to| !table.placed(to));
            self.table = table;
        }
    }

    fn on_evaluate(&mut self, first: u64, count: u64, purpose: Purpose) {
        if self.stopped || self.evaluations.len() >= EVALUATIONS_MAX {
            return self.actions.push_back(Action::EvaluationDeclined);
        }
        let purpose = if purpose == Purpose::Train { Purpose::Evaluate } else { purpose };
        let attempt = Attempt(self.evaluation_rounds);
        self.evaluation_rounds = self.evaluation_rounds.wrapping_add(1);
        self.evaluations.push_back(Evaluation::new(first, count, purpose, attempt));
        self.notice_measured();
    }

    /// Takes back what was not sent; the rest still gets its outcome.
    fn on_stop(&mut self) {
        self.stopped = true;
        let unsent: Vec<_> =
            self.open.iter().filter(|(_, open)| open.wait().is_none()).map(|(&id, _)| id).collect();
        for id in unsent {
            match self.open.remove(&id) {
                Some(open) if open.trains() => self.window.release(),
                Some(_) | None => self.settle_evaluation(None),
            }
        }
        for evaluation in &mut self.evaluations {
            evaluation.cut_short();
        }
        self.notice_measured();
    }

    // --- Outcomes -------------------------------------------------------------------------------------------

    /// The one outcome of a microbatch that was sent.
    fn settle(&mut self, now: Time, microbatch: MicrobatchId, outcome: Outcome, closed: Closed) {
        let Some(open) = self.open.remove(&microbatch) else { return };
        if let Phase::Sent { to, .. } = open.phase {
            let how = if closed == Closed::GivenUp { Settled::Lost } else { outcome.settled() };
            self.router.on_settled(now, to, microbatch, how);
        }
        if matches!(outcome, Outcome::Refused { reason: Refusal::Undeliverable | Refusal::Busy, .. }) {
            self.paused_until = Some(now + REFUSED_PAUSE);
        }
        self.ended.insert(microbatch, closed);
        let loss = outcome.evaluated();
        if open.trains() {
            self.window.release();
            self.count(&outcome);
        }
        self.actions.push_back(Action::Outcome { microbatch, outcome });
        if !open.trains() {
            self.counts.evaluated += u64::from(loss.is_some());
            self.settle_evaluation(loss);
        }
    }

    fn count(&mut self, outcome: &Outcome) {
        self.counts.in_flight = self.counts.in_flight.saturating_sub(1);
        match outcome {
            Outcome::Finished { .. } => self.counts.finished += 1,
            Outcome::Refused { .. } => self.counts.refused += 1,
            Outcome::Lost => self.counts.lost += 1,
            Outcome::Evaluated { .. } => {}
        }
    }

    fn settle_evaluation(&mut self, loss: Option<Loss>) {
        self.evaluation_window.release();
        if let Some(evaluation) = self.evaluations.front_mut() {
            evaluation.settle(loss);
        }
        self.notice_measured();
    }

    fn notice_measured(&mut self) {
        while let Some(evaluation) = self.evaluations.pop_front_if(|evaluation| evaluation.is_over()) {
            self.actions.push_back(Action::EvaluationDone(evaluation.measured()));
        }
    }

    /// Nobody answered in time. The replica is told, so that the slots on the way are freed.
    fn give_up_expired(&mut self, now: Time) {
        for (id, to, attempt) in self.sent(|_, wait| self.patience.end_of(wait) <= now) {
            let (by, reason) = (self.config.hop(), Refusal::Undeliverable);
            let message = Message::Refused { microbatch: id, attempt, by, reason };
            self.actions.push_back(Action::Send { to: to.peer, message });
            self.settle(now, id, Outcome::Lost, Closed::GivenUp);
        }
    }

    fn give_up_sent_to(&mut self, now: Time, gone: impl Fn(&Hop) -> bool) {
        for (id, ..) in self.sent(|to, _| gone(to)) {
            let outcome = Outcome::Refused { by: self.config.hop(), reason: Refusal::Undeliverable };
            self.settle(now, id, outcome, Closed::GivenUp);
        }
    }

    fn sent(&self, which: impl Fn(&Hop, Wait) -> bool) -> Vec<(MicrobatchId, Hop, Attempt)> {
        let sent = self.open.iter().filter_map(|(&id, open)| match open.phase {
            Phase::Sent { to, wait } if which(&to, wait) => Some((id, to, open.attempt)),
            Phase::Sent { .. } | Phase::Drawing | Phase::Drawn { .. } => None,
        });
        sent.collect()
    }

    fn notice_done(&mut self) {
        let settled = self.counts.finished + self.counts.refused + self.counts.lost;
        let enough = self.stopped || settled >= self.config.total;
        if enough && !self.done && self.open.is_empty() && self.evaluations.is_empty() {
            self.done = true;
            self.actions.push_back(Action::Done);
        }
    }
}

impl<P> Open<P> {
    fn trains(&self) -> bool {
        self.purpose == Purpose::Train
    }

    fn wait(&self) -> Option<Wait> {
        match self.phase {
            Phase::Sent { wait, .. } => Some(wait),
            Phase::Drawing | Phase::Drawn { .. } => None,
        }
    }

    /// Whether `outcome` from `sender` is what this microbatch waits for.
    fn answers(&self, sender: Hop, attempt: Attempt, outcome: &Outcome) -> bool {
        let asked = matches!(self.phase, Phase::Sent { to, .. } if to == sender) && attempt == self.attempt;
        asked
            && match outcome {
                Outcome::Finished { .. } => self.trains(),
                Outcome::Evaluated { .. } => !self.trains(),
                Outcome::Refused { .. } | Outcome::Lost => true,
            }
    }
}

impl Outcome {
    fn evaluated(&self) -> Option<Loss> {
        if let Self::Evaluated { loss } = self { Some(*loss) } else { None }
    }

    fn settled(&self) -> Settled {
        match self {
            Self::Finished { .. } | Self::Evaluated { .. } => Settled::Returned,
            Self::Refused { .. } => Settled::Refused,
            Self::Lost => Settled::Lost,
        }
    }
}

/// A loss that is no number is no outcome: one of them would poison every mean.
fn finite(loss: Loss, sender: Hop, outcome: Outcome) -> Outcome {
    if loss.sum.is_finite() { outcome } else { Outcome::Refused { by: sender, reason: Refusal::NonFinite } }
}
