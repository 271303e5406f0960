//! Feeds a run: works through leased ids, keeps the window full, decides who applies what, and is the one place where
//! outcomes are counted.
//!
//! A training microbatch is admitted by the window, drawn by the shell and sent to a replica of stage 0. On its way
//! back replicas claim it, each for its stage; the first claim of a stage is granted, once and for ever. When it comes
//! home through stage 0 it is finished; when somebody refuses it, it is refused; there is no other end. A replica that
//! is lost with it costs another sending. Evaluations wait until no training microbatch is in flight, so that the
//! figure belongs to one set of weights. When everything has its outcome, replicas of a stage average once more, all
//! they have (`rounds`).
//!
//! Everything that must survive this process goes into a journal first; [`Feeder::resume`] goes on from it.

mod announcement;
mod config;
mod contributions;
mod evaluation;
mod grants;
mod injection;
mod journal;
mod measuring;
mod open;
mod ranges;
mod recovery;
mod rounds;
mod succession;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use crate::averaging::{MEMBERS_MAX, Participant, Round};
use crate::handoff::attempts::Neighbour;
use crate::handoff::neighbours::Neighbours;
use crate::mutation::Mutation;
use crate::router::{Router, Settled};
use crate::{
    Hop, Incarnation, Lease, Loss, Membership, Message, MicrobatchId, PeerId, PeerTable, Purpose, Refusal,
    StageIndex, Time,
};

pub use config::{Config, EVALUATION_TRIES, EVALUATIONS_MAX, LEASE_RETRY, REFUSED_PAUSE};
pub use contributions::Carrying;
pub use evaluation::Measured;
pub use journal::{Continued, Record, TakenOver};
pub use rounds::{ROUND_GRACE, ROUND_PATIENCE};
pub use succession::ADOPTION_PATIENCE;
pub use window::{Admission, Window};

use announcement::Announcement;
use config::ANSWERS_WITHIN;
use contributions::Contributions;
use evaluation::Evaluation;
use grants::{Grants, Ruling};
use open::Open;
use ranges::Ranges;
use rounds::{Rounds, Training};
use succession::Succession;

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
    /// The coordinator answered: the own link works.
    Reached,
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
    /// Make this durable before any action that follows.
    Journal(Record),
    /// Draw the tokens of this microbatch and answer with [`Event::Drawn`].
    Draw {
        /// Which one.
        microbatch: MicrobatchId,
        /// From training text or held-out text.
        purpose: Purpose,
    },
    /// Send this to a replica.
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
    /// Another feeder has taken over the ids of this one, which does nothing any more. Said once.
    Succeeded {
        /// The other one.
        by: PeerId,
    },
}

/// What became of a microbatch.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It came home, and every stage is granted to somebody.
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
    /// An evaluation was sent [`EVALUATION_TRIES`] times and never answered.
    Unanswered,
}

/// Why a feeder wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A replica owes an answer and is to be asked.
    AnswerOverdue,
    /// A request for a lease was not answered.
    LeaseRetry,
    /// Injecting goes on after a microbatch was undeliverable.
    PauseEnds,
    /// A replica of stage 0 may be tried again.
    QuarantineEnds,
    /// A replica of stage 0 is silent.
    NeighbourSilent,
    /// Replicas expect to hear which microbatches have their outcome.
    TellDue,
    /// A replica has not ended an averaging round.
    RoundExpires,
    /// Replicas owe an answer about a range that is taken over.
    InventoryDue,
}

/// Totals of a feeder, those before a restart included. All but evaluations are about training microbatches.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Sent to stage 0.
    pub injected: u64,
    /// Finished.
    pub finished: u64,
    /// Refused, whatever the reason.
    pub refused: u64,
    /// Those of them that were abandoned when they were taken over.
    pub abandoned: u64,
    /// Had their outcome before they were taken over; in no other count.
    pub inherited: u64,
    /// Injected, no outcome yet.
    pub in_flight: u64,
    /// Injected, but neither in flight nor with an outcome. A sound feeder has none.
    pub lost: u64,
    /// Stages of finished microbatches nobody was granted. A sound feeder has none.
    pub ungranted: u64,
    /// Sent to stage 0 again.
    pub resent: u64,
    /// Contributions granted to replicas that died afterwards.
    pub contributions_lost: u64,
    /// Claims denied because another replica has the grant: work done twice, applied once.
    pub denied: u64,
    /// Evaluations answered with a loss.
    pub evaluated: u64,
    /// Answers about microbatches that have their outcome.
    pub late: u64,
    /// Messages that nobody was asked for.
    pub foreign: u64,
}

/// Injects microbatches, arbitrates between replicas and counts outcomes.
#[derive(Debug)]
pub struct Feeder<P> {
    config: Config,
    table: PeerTable,
    router: Box<dyn Router>,
    neighbours: Neighbours,
    ranges: Ranges,
    window: Window,
    evaluations: VecDeque<Evaluation>,
    evaluation_window: Window,
    evaluation_rounds: u32,
    evaluation_heard: Time,
    /// Bounded by the two windows.
    open: BTreeMap<MicrobatchId, Open<P>>,
    grants: Grants,
    contributions: Contributions,
    announcement: Announcement,
    rounds: Rounds,
    succession: Succession,
    counts: Counts,
    admitted: u64,
    lease_asked: Option<Time>,
    paused_until: Option<Time>,
    /// When everything has its outcome: until then claims are answered.
    answers_until: Option<Time>,
    /// No answer is overdue before.
    check_at: Option<Time>,
    tell_at: Time,
    now: Time,
    stopped: bool,
    done: bool,
    succeeded: bool,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A feeder that has no ids and knows nobody.
    #[must_use]
    pub fn new(config: Config, router: Box<dyn Router>) -> Self {
        let (table, carrying) = (PeerTable::new(config.peer), config.carrying);
        let window = Window::new(config.admission);
        let evaluation_window = Window::new(Admission::Asynchronous(window.limit()));
        Self {
            config,
            table,
            router,
            neighbours: Neighbours::default(),
            ranges: Ranges::default(),
            window,
            evaluations: VecDeque::new(),
            evaluation_window,
            evaluation_rounds: 0,
            evaluation_heard: Time::default(),
            open: BTreeMap::new(),
            grants: Grants::default(),
            contributions: Contributions::new(carrying),
            announcement: Announcement::default(),
            rounds: Rounds::new(carrying),
            succession: Succession::default(),
            counts: Counts::default(),
            admitted: 0,
            lease_asked: None,
            paused_until: None,
            answers_until: None,
            check_at: None,
            tell_at: Time::default(),
            now: Time::default(),
            stopped: false,
            done: false,
            succeeded: false,
            actions: VecDeque::new(),
        }
    }

    /// Goes on where the feeder that wrote `journal` died. What was in flight is looked for at the replica that had it.
    #[must_use]
    pub fn resume(
        config: Config,
        router: Box<dyn Router>,
        journal: impl IntoIterator<Item = Record>,
    ) -> Self {
        let mut feeder = Self::new(config, router);
        for record in journal {
            feeder.remember(record);
        }
        for (&microbatch, open) in &mut feeder.open {
            feeder.window.readmit();
            (open.recalled, open.lost) = (true, true);
            feeder.actions.push_back(Action::Draw { microbatch, purpose: Purpose::Train });
        }
        feeder
    }

    fn remember(&mut self, record: Record) {
        match record {
            Record::Leased(lease) => {
                self.ranges.add(&lease);
                self.announcement.lease(&lease);
            }
            Record::Sent { microbatch, to } => {
                self.ranges.remove(microbatch);
                let open = self.open.entry(microbatch).or_insert_with(|| {
                    self.admitted += 1;
                    self.counts.injected += 1;
                    self.counts.in_flight += 1;
                    Open::new(Purpose::Train)
                });
                open.sendings.add(to);
                self.grants.open(microbatch);
            }
            Record::Granted { microbatch, to } => {
                self.grants.claim(microbatch, to);
                self.contributions.grant(to, self.rounds.called());
            }
            Record::Ended { microbatch, outcome } => {
                self.open.remove(&microbatch);
                self.grants.end(microbatch);
                self.announcement.end(microbatch);
                self.count(microbatch, &outcome);
            }
            Record::TakenOver(taken) => self.remember_taken_over(&taken),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        if self.succeeded {
            return;
        }
        self.now = self.now.max(now);
        match event {
            Event::Membership(membership) => self.on_membership(now, membership),
            Event::Lease(lease) => self.on_lease(&lease),
            Event::Drawn { microbatch, ids } => self.on_drawn(microbatch, ids),
            Event::Received { from, incarnation, message } => {
                self.on_message(now, from, incarnation, message);
            }
            Event::PeerLost { peer, incarnation } => self.neighbours.lost(now, peer, incarnation),
            Event::Reached => self.neighbours.reached(now),
            Event::Evaluate { first, count, purpose } => self.on_evaluate(first, count, purpose),
            Event::Stop => self.on_stop(),
            Event::Timeout => {}
        }
        self.take_over_ranges(now);
        self.judge_neighbours(now);
        self.ask_overdue(now);
        self.ask_for_lease(now);
        if self.may_inject(now) {
            self.admit();
            self.send_drawn(now);
        }
        self.call_round(now);
        self.tell_ended(now);
        self.notice_done(now);
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call again with [`Event::Timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let ask = self.check_at.map(|at| (at, Reason::AnswerOverdue));
        let lease = self.lease_asked.map(|at| (at + LEASE_RETRY, Reason::LeaseRetry));
        let pause = self.paused_until.map(|until| (until, Reason::PauseEnds));
        let release = self.table.next_release(self.now).map(|until| (until, Reason::QuarantineEnds));
        let tell = Some((self.tell_at, Reason::TellDue));
        let silent = self.neighbours.next_change(self.now).map(|at| (at, Reason::NeighbourSilent));
        let round = self.rounds.deadline(self.now).map(|at| (at, Reason::RoundExpires));
        let inventory = self.succession.ask_at().map(|at| (at, Reason::InventoryDue));
        [ask, lease, pause, release, tell, silent, round, inventory]
            .into_iter()
            .flatten()
            .min_by_key(|(at, _)| *at)
    }

    /// Totals since the run began for this feeder.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Counts { injected, finished, refused, in_flight, .. } = self.counts;
        Counts { lost: injected.saturating_sub(finished + refused + in_flight), ..self.counts }
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

    // --- What it asks for and tells -------------------------------------------------------------------------

    /// Asks for ids when half of a lease is used up, one request at a time.
    fn ask_for_lease(&mut self, now: Time) {
        let left = self.ranges.left();
        let missing = self.config.total.saturating_sub(self.admitted).saturating_sub(left);
        let waiting = self.lease_asked.is_some_and(|at| now < at + LEASE_RETRY);
        // How much is left to do is known when everything is taken over.
        if self.stopped || missing == 0 || !self.succession.is_over() {
            self.lease_asked = None;
        } else if !waiting && left <= self.config.lease_count / 2 {
            let count = self.config.lease_count.clamp(1, missing);
            self.lease_asked = Some(now);
            self.actions.push_back(Action::RequestLease { count });
        }
    }

    /// Tells every replica which microbatches have their outcome, often enough that they hold little.
    fn tell_ended(&mut self, now: Time) {
        let many = self.announcement.news() * 2 >= u64::from(self.window.limit());
        if now < self.tell_at && !many {
            return;
        }
        self.tell_at = now + self.config.tell_every;
        let spans = self.announcement.tell();
        let message = Message::Ended { spans, round: self.rounds.now(), over: self.rounds.closes() };
        let replicas: Vec<PeerId> = (0..self.config.stages)
            .flat_map(|stage| self.table.hops(StageIndex(stage)))
            .map(|hop| hop.peer)
            .collect();
        for to in replicas {
            self.actions.push_back(Action::Send { to, message: message.clone() });
        }
    }

    // --- What arrives ---------------------------------------------------------------------------------------

    fn on_lease(&mut self, lease: &Lease) {
        self.actions.push_back(Action::Journal(Record::Leased(*lease)));
        self.ranges.add(lease);
        self.announcement.lease(lease);
        self.lease_asked = None;
    }

    fn on_message(&mut self, now: Time, from: PeerId, incarnation: Incarnation, message: Message<P>) {
        let first = Hop { stage: Some(StageIndex(0)), peer: from, incarnation };
        self.neighbours.message(now, from, incarnation);
        let sender = |attempt| Neighbour { hop: first, attempt };
        match message {
            Message::Backward { microbatch, attempt, loss, path, gradient: _ } => {
                self.on_home(now, sender(attempt), microbatch, loss, &path);
            }
            Message::Holds { microbatch, attempt, holding } => {
                self.on_holds(now, sender(attempt), microbatch, holding);
            }
            Message::Passed { microbatch, attempt, next } => {
                if let Some(open) = self.open.get_mut(&microbatch)
                    && open.awaited() == Some(sender(attempt))
                {
                    open.beyond = Some(next).filter(|next| self.table.placed(next));
                }
            }
            Message::Held { microbatch, holder } => self.on_held(from, incarnation, microbatch, holder),
            Message::Claim { stage, microbatches } => {
                self.on_claim(Hop { stage: Some(stage), peer: from, incarnation }, &microbatches);
            }
            Message::Evaluated { microbatch, attempt, loss } => {
                self.on_evaluated(now, from, incarnation, microbatch, attempt, loss);
            }
            Message::Refused { microbatch, by, reason } => {
                self.on_refused(now, from, incarnation, microbatch, by, reason);
            }
            Message::Inventory(inventory) => self.on_inventory(from, incarnation, inventory),
            Message::Averaged { round } => self.on_averaged(Participant { peer: from, incarnation }, round),
            Message::Beat(beat) => {
                if self.table.placed(&first) {
                    self.neighbours.beat(now, first, beat);
                }
            }
            Message::Forward { .. }
            | Message::Ask { .. }
            | Message::Granted { .. }
            | Message::Ended { .. }
            | Message::Adopt { .. }
            | Message::Averaging(_)
            | Message::Transfer(_) => {
                self.counts.foreign += 1;
            }
        }
    }

    /// A training microbatch came home. Everyone on its way has claimed it with the gradient, if not before.
    fn on_home(&mut self, now: Time, sender: Neighbour, id: MicrobatchId, loss: Loss, path: &[Hop]) {
        let stages = (0..self.config.stages).rev().map(|stage| Some(StageIndex(stage)));
        let fits = path.iter().map(|hop| hop.stage).eq(stages) && path.last() == Some(&sender.hop);
        let Some(open) = self.open.get(&id) else { return self.counts.late += 1 };
        if !fits || !self.table.placed(&sender.hop) || !open.sendings.contain(sender) || !open.trains() {
            return self.counts.foreign += 1;
        }
        for &hop in path {
            let ruling = self.grants.claim_by_path(id, hop);
            self.note_grant(id, hop, ruling);
        }
        let granted = self.grants.of(id).len() as u64;
        self.counts.ungranted += u64::from(self.config.stages).saturating_sub(granted);
        // A loss that is no number is no outcome: one of them would poison every mean.
        let outcome = if loss.sum.is_finite() {
            Outcome::Finished { loss }
        } else {
            Outcome::Refused { by: sender.hop, reason: Refusal::NonFinite }
        };
        self.settle(now, id, outcome);
    }

    /// The first claim of a stage is granted; the same replica gets the same answer again.
    fn on_claim(&mut self, claimant: Hop, microbatches: &[MicrobatchId]) {
        if !self.may_claim(&claimant) {
            return self.counts.foreign += 1;
        }
        // Of what is being taken over nobody knows yet.
        let decided: Vec<_> =
            microbatches.iter().copied().filter(|&id| !self.succession.defers(claimant, id)).collect();
        if decided.is_empty() {
            return;
        }
        let (granted, denied): (Vec<_>, Vec<_>) =
            decided.into_iter().partition(|&microbatch| self.grant(microbatch, claimant));
        self.counts.denied += denied.len() as u64;
        self.count_unheard(claimant, &denied);
        let message = Message::Granted { granted, denied };
        self.actions.push_back(Action::Send { to: claimant.peer, message });
    }

    fn may_claim(&self, claimant: &Hop) -> bool {
        let placed = self.table.placed(claimant) || self.config.breaks(Mutation::IgnoreIncarnation);
        placed && claimant.stage.is_some()
    }

    fn grant(&mut self, microbatch: MicrobatchId, claimant: Hop) -> bool {
        let ruling = self.grants.claim(microbatch, claimant);
        self.note_grant(microbatch, claimant, ruling);
        self.grants.answer(microbatch, claimant);
        ruling != Ruling::Denied || self.config.breaks(Mutation::GrantTwice)
    }

    fn note_grant(&mut self, microbatch: MicrobatchId, to: Hop, ruling: Ruling) {
        if ruling == Ruling::New {
            self.contributions.grant(to, self.rounds.called());
            self.actions.push_back(Action::Journal(Record::Granted { microbatch, to }));
        }
    }

    fn on_refused(
        &mut self,
        now: Time,
        from: PeerId,
        incarnation: Incarnation,
        id: MicrobatchId,
        by: Hop,
        reason: Refusal,
    ) {
        let own = by.peer == from && by.incarnation == incarnation && self.table.placed(&by);
        match self.open.get(&id) {
            Some(open) if own && open.sendings.any() => {
                self.settle(now, id, Outcome::Refused { by, reason });
            }
            Some(_) => self.counts.foreign += 1,
            None => self.counts.late += 1,
        }
    }

    // --- The end --------------------------------------------------------------------------------------------

    /// Takes back what was not sent; the rest still gets its outcome.
    fn on_stop(&mut self) {
        self.stopped = true;
        self.succession.give_up();
        let unsent: Vec<_> =
            self.open.iter().filter(|(_, open)| !open.sendings.any()).map(|(&id, _)| id).collect();
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

    /// The one outcome of a microbatch that was sent.
    fn settle(&mut self, now: Time, microbatch: MicrobatchId, outcome: Outcome) {
        self.settle_sending(now, microbatch, outcome.settled());
        let Some(open) = self.open.remove(&microbatch) else { return };
        if matches!(outcome, Outcome::Refused { reason: Refusal::Undeliverable, .. }) {
            self.paused_until = Some(now + REFUSED_PAUSE);
        }
        if open.trains() {
            let record = Record::Ended { microbatch, outcome: outcome.clone() };
            self.actions.push_back(Action::Journal(record));
            self.grants.end(microbatch);
            self.announcement.end(microbatch);
            self.window.release();
        }
        self.count(microbatch, &outcome);
        let loss = outcome.evaluated();
        self.actions.push_back(Action::Outcome { microbatch, outcome });
        if !open.trains() {
            self.settle_evaluation(loss);
        }
    }

    fn settle_sending(&mut self, now: Time, id: MicrobatchId, how: Settled) {
        if let Some(awaited) = self.open.get(&id).and_then(Open::awaited) {
            self.router.on_settled(now, awaited.hop, id, how);
        }
    }

    fn count(&mut self, microbatch: MicrobatchId, outcome: &Outcome) {
        let trains = !microbatch.is_evaluation();
        self.counts.in_flight -= u64::from(trains && self.counts.in_flight > 0);
        match outcome {
            Outcome::Finished { .. } => self.counts.finished += 1,
            Outcome::Refused { .. } => self.counts.refused += u64::from(trains),
            Outcome::Evaluated { .. } => self.counts.evaluated += 1,
            Outcome::Unanswered => {}
        }
    }

    /// Lets replicas of a stage average the next index set, if it is time.
    fn call_round(&mut self, now: Time) {
        let over = self.settled() && !self.stopped && !self.done;
        let training = Training { finished: self.counts.finished, over };
        if self.config.carrying.is_none() && !over {
            return;
        }
        let stages = self.averaging();
        if self.rounds.proceed(now, training, &stages) {
            self.tell_at = now;
        }
    }

    fn on_averaged(&mut self, from: Participant, round: Round) {
        if self.table.get(from.peer, from.incarnation).is_none() {
            return self.counts.foreign += 1;
        }
        self.rounds.ended(from, round);
    }

    /// The replicas that have somebody to average with, stage by stage.
    fn averaging(&self) -> Vec<Vec<Participant>> {
        (0..self.config.stages)
            .map(|stage| self.table.hops(StageIndex(stage)))
            .filter(|hops| hops.len() > 1)
            .map(|hops| hops.into_iter().take(MEMBERS_MAX))
            .map(|hops| hops.map(|Hop { peer, incarnation, .. }| Participant { peer, incarnation }).collect())
            .collect()
    }

    /// Whether every microbatch wanted has its outcome, and nothing waits.
    fn settled(&self) -> bool {
        let settled = self.counts.finished + self.counts.refused + self.counts.inherited;
        let enough = self.stopped || (settled >= self.config.total && self.succession.is_over());
        enough && self.open.is_empty() && self.evaluations.is_empty()
    }

    /// Whoever still holds something hears before this feeder is gone that it is of no use, and whoever has a grant
    /// hears of that.
    fn notice_done(&mut self, now: Time) {
        if !self.done && self.settled() && (self.stopped || self.rounds.is_over()) {
            let owed = self.grants.owed(|hop| self.table.placed(hop));
            let until = *self.answers_until.get_or_insert(now + ANSWERS_WITHIN);
            if owed > 0 && now < until {
                return;
            }
            self.counts.contributions_lost += owed;
            self.done = true;
            self.tell_at = now;
            self.tell_ended(now);
            self.actions.push_back(Action::Done);
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
            Self::Unanswered => Settled::Lost,
        }
    }
}
