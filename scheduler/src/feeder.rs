//! The feeder of a run: it works through leased ids, keeps the window full, grants claims, and is the one place where
//! outcomes are counted.
//!
//! A training microbatch is admitted by the window, drawn by the process and sent to a replica of stage 0. Each replica
//! that it reaches claims it for its stage; the feeder grants exactly one claim a stage. A microbatch that is back from
//! stage 0 and has its grants is finished; a microbatch that a replica refuses is refused; there is no other outcome. A
//! microbatch whose replica is lost is retried. Evaluations go among the training microbatches; in a synchronous run
//! they wait until none is in flight, so that the figure belongs to one set of weights. When every microbatch has its
//! outcome, replicas of a stage average every fragment once more (`rounds`).
//!
//! Facts that must survive this process go into a journal first; [`Feeder::resume`] goes on from it.

mod announcement;
mod announcing;
mod claims;
mod config;
mod confirmed;
mod contributions;
mod counts;
mod divergence;
mod evaluation;
mod evaluation_schedule;
mod event;
mod grants;
mod grants_by_round;
mod growth;
mod injection;
mod journal;
mod measuring;
mod open;
mod ranges;
mod recovery;
mod returns;
mod rounds;
mod run_progress;
mod snapshot;
mod succession;
mod suspicion;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

use crate::averaging::Round;
use crate::handoff::{Handoff, Leg};
use crate::router::{Completion, Router};
use crate::{
    BlockTally, Directive, Envelope, Hop, Instance, Lease, MemberState, Message, MicrobatchId, PeerTable,
    Purpose, Refusal, RouteProof, StageIndex, Time,
};

pub use config::{Config, EVALUATION_TRIES, EVALUATIONS_MAX, LEASE_RETRY, REFUSED_PAUSE};
pub use contributions::AveragingSchedule;
pub use counts::{Counts, Outcome};
pub use divergence::{Divergence, DivergenceWatch, OUTCOMES_WATCHED};
pub use evaluation::Measured;
pub use evaluation_schedule::EvaluationSchedule;
pub use event::{Action, End, Event, Reason};
pub use journal::{Continued, Record, TakenOver};
pub use snapshot::{InFlight, JournaledRange, Late, Snapshot, Totals};
pub use window::{Admission, Window};

use announcement::Announcement;
use announcing::Turns;
use config::{SCARCE, WINDOWS_A_LEASE};
use confirmed::Confirmed;
#[cfg(any(test, feature = "sim"))]
pub(crate) use confirmed::SINCE_THE_CALL;
use contributions::Contributions;
use divergence::Signs;
use evaluation::Evaluation;
use evaluation_schedule::ScheduleProgress;
use grants::Grants;
use open::Open;
use ranges::Ranges;
use returns::Returns;
use rounds::{Called, Rounds, Training};
use run_progress::RunProgress;
use succession::Succession;
use suspicion::Suspicion;

/// Injects microbatches, arbitrates between replicas and counts outcomes.
#[derive(Debug)]
pub struct Feeder<P> {
    config: Config,
    table: PeerTable,
    ranges: Ranges,
    progress: RunProgress,
    window: Window,
    evaluations: VecDeque<Evaluation>,
    evaluation_window: Window,
    evaluation_rounds: u32,
    evaluation_heard: Time,
    /// When a replica last left the table.
    departure: Option<Time>,
    schedule: ScheduleProgress,
    /// Bounded by the two windows.
    open: BTreeMap<MicrobatchId, Open<P>>,
    /// The microbatches of `open` that wait for a replica of stage 0, and whether they train.
    drawn: BTreeSet<(bool, MicrobatchId)>,
    /// The microbatches of `open` that were handed to stage 0.
    handoff: Handoff,
    grants: Grants,
    contributions: Contributions,
    confirmed: Confirmed,
    announcement: Announcement,
    turns: Turns,
    rounds: Rounds,
    succession: Succession,
    counts: Counts,
    admitted: u64,
    lease_asked: Option<Time>,
    paused_until: Option<Time>,
    returns: Returns,
    suspicion: Suspicion,
    signs: Signs,
    announce_at: Time,
    now: Time,
    stopped: bool,
    /// After a stop, the time at which the feeder gives up the microbatches in flight.
    stop_until: Option<Time>,
    /// Every training microbatch, or every one injected before the stop, has its outcome.
    trained: bool,
    ended: bool,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Default + Debug> Feeder<P> {
    /// A feeder that has no ids and knows no peer.
    #[must_use]
    pub fn new(config: Config, router: Box<dyn Router>) -> Self {
        let table = PeerTable::new(config.hop());
        let (averaging, stages) = (config.averaging, config.stages);
        let window = Window::new(config.admission);
        let evaluation_window = Window::new(Admission::Asynchronous(window.limit()));
        let handoff = Handoff::new(StageIndex(0), config.stages, router);
        let contributions = Contributions::new(config.gradient_accumulation_steps);
        let rounds = Rounds::new(averaging, stages, config.gradient_accumulation_steps > 1);
        Self {
            config,
            table,
            ranges: Ranges::default(),
            progress: RunProgress::default(),
            window,
            evaluations: VecDeque::new(),
            evaluation_window,
            evaluation_rounds: 0,
            evaluation_heard: Time::default(),
            departure: None,
            schedule: ScheduleProgress::default(),
            open: BTreeMap::new(),
            drawn: BTreeSet::new(),
            handoff,
            grants: Grants::default(),
            contributions,
            confirmed: Confirmed::new(averaging),
            announcement: Announcement::default(),
            turns: Turns::default(),
            rounds,
            succession: Succession::default(),
            counts: Counts::default(),
            admitted: 0,
            lease_asked: None,
            paused_until: None,
            returns: Returns::default(),
            suspicion: Suspicion::default(),
            signs: Signs::default(),
            announce_at: Time::default(),
            now: Time::default(),
            stopped: false,
            stop_until: None,
            trained: false,
            ended: false,
            actions: VecDeque::new(),
        }
    }

    /// A feeder that continues a `journal`. The replica that had a microbatch in flight is asked for it.
    #[must_use]
    pub fn resume(config: Config, router: Box<dyn Router>, journal: &Snapshot) -> Self {
        let mut feeder = Self::new(config, router);
        feeder.restore(journal);
        feeder.ranges.drop_unused();
        if let Some(next) = feeder.ranges.next_lease() {
            feeder.progress.lease_up_to(next);
        }
        for (&microbatch, open) in &mut feeder.open {
            feeder.window.readmit();
            open.recalled = true;
            feeder.handoff.mark_failed(microbatch);
            feeder.actions.push_back(Action::Draw { microbatch, purpose: Purpose::Train });
        }
        feeder
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        self.now = self.now.max(now);
        if self.ended {
            return;
        }
        match event {
            Event::Membership(update) => self.on_membership(now, update),
            Event::Lease(lease) => self.on_lease(&lease),
            Event::RunProgress(others) => self.progress.hear(now, others),
            Event::Drawn { microbatch, ids } => self.on_drawn(microbatch, ids),
            Event::Received { from, envelope } => self.on_message(now, from, envelope),
            Event::Arriving(instance) => self.handoff.neighbours.message(now, instance),
            Event::SendQueueFull { to, message } => self.on_send_queue_full(now, to, &message),
            Event::PeerLost(instance) => self.handoff.neighbours.lost(now, instance),
            Event::RoundTrip(instance, time) => self.handoff.neighbours.measured(instance, time),
            Event::Directive(directive) => self.on_directive(now, directive),
            Event::Evaluate { first, count, purpose } => self.on_evaluate(first, count, purpose),
            Event::Stop => self.on_stop(now),
            Event::Timeout => {}
        }
        self.notice_divergence();
        if self.ended {
            return;
        }
        self.grants.forget(now);
        self.finish_without_claims(now);
        self.take_over_ranges(now);
        self.judge_neighbours(now);
        self.request_overdue(now);
        self.ask_for_lease(now);
        self.call_rounds(now);
        self.notice_trained(now);
        self.evaluate_by_schedule();
        if self.may_inject(now) {
            self.admit();
            self.send_drawn(now);
        }
        self.announce(now);
        self.notice_end(now);
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of `handle`, with [`Event::Timeout`]; `None` once the feeder has ended.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let reasons = [
            (self.handoff.next_check(), Reason::ReplyOverdue),
            (self.lease_asked.map(|at| at + LEASE_RETRY), Reason::LeaseRetry),
            (self.paused_until, Reason::PauseEnds),
            (self.table.next_release(self.now), Reason::QuarantineEnds),
            (Some(self.announce_at), Reason::AnnouncementDue),
            (self.handoff.neighbours.next_change(self.now), Reason::NeighbourSilent),
            (self.rounds.deadline(self.now), Reason::RoundExpires),
            (self.succession.ask_at(), Reason::RecoveryDue),
            (self.stop_until, Reason::StopExpires),
            (self.returns.next_deadline(), Reason::ClaimsOverdue),
        ];
        let reasons = reasons.into_iter().filter(|_| !self.ended);
        reasons.filter_map(|(at, reason)| Some((at?, reason))).min_by_key(|(at, _)| *at)
    }

    /// Totals since this feeder joined the run, those before a restart included.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let Counts { injected, finished, refused, in_flight, .. } = self.counts;
        Counts { lost: injected.saturating_sub(finished + refused + in_flight), ..self.counts }
    }

    /// The progress of the blocks that this feeder decides about, for the coordinator.
    #[must_use]
    pub fn tallies(&self) -> Vec<BlockTally> {
        self.progress.tallies()
    }

    /// Microbatches of the run that have their outcome, those of other feeders included.
    #[must_use]
    pub fn settled_of_run(&self) -> u64 {
        let own = self.counts.finished + self.counts.refused + self.counts.inherited;
        own.saturating_add(self.progress.settled_elsewhere())
    }

    /// Whether every training microbatch, or every one injected before a stop, has its outcome.
    #[must_use]
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// The members in the newest table that the feeder has received.
    #[must_use]
    pub fn table(&self) -> &PeerTable {
        &self.table
    }

    /// The settings that the feeder was created with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // --- Leases ---------------------------------------------------------------------------------------------

    /// Asks for ids when half of a lease is used up, one request at a time, as long as the run has microbatches that are
    /// not this feeder's.
    fn ask_for_lease(&mut self, now: Time) {
        let own = self.admitted.saturating_add(self.ranges.left());
        let unsettled =
            self.config.total.saturating_sub(self.progress.settled_elsewhere()).saturating_sub(own);
        let wanted = self.config.lease_count.max(WINDOWS_A_LEASE * u64::from(self.window.limit()));
        let waiting = self.lease_asked.is_some_and(|at| now < at + LEASE_RETRY);
        // The feeder knows how many ids it needs only when every range is taken over.
        if self.stopped || unsettled == 0 || !self.succession.is_over() {
            self.lease_asked = None;
        } else if !waiting && self.ranges.left() <= wanted / 2 {
            let count = wanted.clamp(1, unsettled);
            self.lease_asked = Some(now);
            self.actions.push_back(Action::RequestLease { next: self.ranges.next_lease(), count });
        }
    }

    // --- Messages -------------------------------------------------------------------------------------------

    /// Takes the ids of a lease. A lease without ids says that the run has none left, or that its last ids are taken over
    /// with the next table: the feeder asks again later.
    fn on_lease(&mut self, lease: &Lease) {
        if self.ranges.block().is_some_and(|block| block != lease.first.block()) {
            let reason = "its ids went to another feeder; feed with a new journal".to_owned();
            return self.finish(End::Dismissed(reason));
        }
        if lease.count == 0 {
            return;
        }
        self.actions.push_back(Action::Journal(Record::Leased(*lease)));
        if self.ranges.block().is_none() {
            self.inherit(lease);
        }
        self.ranges.add(lease);
        self.announcement.lease(lease);
        self.ranges.next_lease().into_iter().for_each(|next| self.progress.lease_up_to(next));
        self.lease_asked = None;
    }

    /// The first lease of a block: the ids before it had their outcome before this launch of the run, which went on from a
    /// checkpoint.
    fn inherit(&mut self, lease: &Lease) {
        let ended = lease.first.index();
        self.admitted += ended;
        self.counts.inherited += ended;
        self.progress.restore(BlockTally::settled(lease.first.block(), ended));
    }

    fn on_directive(&mut self, now: Time, directive: Directive) {
        match directive {
            Directive::Continue | Directive::Serve(_) => self.handoff.neighbours.reached(now),
            Directive::Finished if !self.stopped => self.finish(End::RunFinished),
            Directive::Leave(reason) if !self.stopped => self.finish(End::Dismissed(reason)),
            Directive::Diverged { at } if !self.stopped => {
                self.finish(End::Diverged { at, sign: Divergence::Reported });
            }
            Directive::Finished | Directive::Leave(_) | Directive::Diverged { .. } => {}
        }
    }

    fn on_message(&mut self, now: Time, from: Instance, envelope: Envelope<P>) {
        let first = Hop::replica(StageIndex(0), from);
        self.handoff.neighbours.message(now, from);
        let sender = |attempt| Leg { hop: first, attempt };
        match envelope.message {
            Message::Backward { microbatch, attempt, loss, path } => {
                self.on_returned(now, sender(attempt), microbatch, loss, &path);
            }
            Message::StatusReply { microbatch, attempt, status } => {
                self.on_status_reply(now, sender(attempt), microbatch, status);
            }
            Message::Forwarded { microbatch, attempt, next } => {
                if self.table.placed(&next) {
                    self.handoff.on_forwarded(sender(attempt), microbatch, next);
                }
            }
            Message::OrphanNotice { microbatch, holder } => self.on_orphan(from, microbatch, holder),
            Message::Claim { stage, claimed, forfeited } => {
                self.on_claim(now, Hop::replica(stage, from), claimed, forfeited);
            }
            Message::Evaluated { proof, attempt, loss } => {
                self.on_evaluated(now, from, &proof, attempt, loss);
            }
            Message::Refused { proof, by, reason } => self.on_refused(now, from, &proof, by, reason),
            Message::RecoveryReport(report) => self.on_recovery_report(from, report),
            Message::RoundReport { round, carried, is_complete } => {
                self.on_round_report(from, round, (carried, is_complete));
            }
            Message::Heartbeat(heartbeat) => {
                if self.table.placed(&first) {
                    self.handoff.neighbours.heartbeat(now, first, heartbeat);
                }
            }
            Message::Forward { .. }
            | Message::RoundCall { .. }
            | Message::StatusRequest { .. }
            | Message::ClaimReply { .. }
            | Message::Outcomes { .. }
            | Message::RecoverRange { .. }
            | Message::Prediction(_)
            | Message::Averaging(_)
            | Message::Transfer(_) => self.counts.foreign += 1,
        }
    }

    fn on_refused(&mut self, now: Time, from: Instance, proof: &RouteProof, by: Hop, reason: Refusal) {
        let id = proof.microbatch;
        if !self.open.contains_key(&id) {
            return self.counts.late += 1;
        }
        let own = by.instance == from && self.table.placed(&by) && self.decides(id);
        if own && self.handoff.attempts(id) > 0 && self.believes(proof, by) {
            self.settle(now, id, Outcome::Refused { by, reason });
        } else {
            self.counts.foreign += 1;
        }
    }

    /// A report about rounds that this feeder does not know yet says nothing about the grants that it knows.
    fn on_round_report(
        &mut self,
        from: Instance,
        round: Round,
        (carried, is_complete): (Option<Round>, bool),
    ) {
        let Some(member) = self.table.get(from) else { return self.counts.foreign += 1 };
        let MemberState::Serving(stage) = member.state else { return };
        let hop = Hop::replica(stage, from);
        let (current, _) = self.rounds.called_to(&hop);
        if let Some(carried) = carried.filter(|&carried| carried <= current) {
            self.contributions.carried(&hop, carried.0, is_complete);
        }
        self.rounds.ended(self.now, &hop, round, carried);
        if !self.is_caller()
            && let Some(called) = self.rounds.learn(stage)
        {
            self.note_called(called);
        }
    }

    // --- Outcomes -------------------------------------------------------------------------------------------

    /// Records the one outcome of a microbatch that was sent.
    fn settle(&mut self, now: Time, microbatch: MicrobatchId, outcome: Outcome) {
        self.handoff.forget(now, microbatch, outcome.completion());
        self.returns.remove(microbatch);
        let Some(open) = self.open.remove(&microbatch) else { return };
        self.drawn.remove(&(open.trains(), microbatch));
        if matches!(outcome, Outcome::Refused { reason: Refusal::Undeliverable, .. }) {
            self.paused_until = Some(now + REFUSED_PAUSE);
        }
        if open.trains() {
            let record = Record::Ended { microbatch, outcome: outcome.clone() };
            self.actions.push_back(Action::Journal(record));
            self.note_contributions(microbatch, &outcome);
            self.lose_contributions_of_absent(microbatch);
            self.grants.end(now, microbatch);
            self.announcement.end(microbatch);
            self.progress.settle(microbatch);
            self.window.release();
            self.window.finished(now, self.drawn.len() > SCARCE);
        }
        self.watch(&outcome, open.trains());
        self.counts.settle(microbatch, &outcome);
        let loss = outcome.evaluated();
        self.actions.push_back(Action::Outcome { microbatch, outcome });
        if !open.trains() {
            self.settle_evaluation(loss);
        }
    }

    /// Drops the microbatches that were not sent; the others still get their outcome.
    fn on_stop(&mut self, now: Time) {
        self.stopped = true;
        self.stop_until = self.stop_until.or(Some(now + self.config.stop_within));
        self.succession.give_up();
        let unsent: Vec<_> = self.open.keys().copied().filter(|&id| self.handoff.attempts(id) == 0).collect();
        for id in unsent {
            self.handoff.forget(now, id, Completion::Refused);
            let open = self.open.remove(&id);
            self.drawn.retain(|(_, drawn)| *drawn != id);
            match open {
                Some(open) if open.trains() => self.window.release(),
                Some(_) | None => self.settle_evaluation(None),
            }
        }
        for evaluation in &mut self.evaluations {
            evaluation.cut_short();
        }
        self.notice_measured();
    }

    // --- The end of the run ---------------------------------------------------------------------------------

    /// Calls the next averaging round of each stage where it is due.
    fn call_rounds(&mut self, now: Time) {
        let over = self.settled() && !self.stopped && !self.trained;
        let finished = self.counts.finished.saturating_add(self.progress.settled_elsewhere());
        let training = Training { finished, over };
        if self.config.averaging.is_none() && !over {
            return;
        }
        if !self.is_caller() {
            return;
        }
        for called in self.rounds.proceed(now, training) {
            self.note_called(called);
            self.announce_to_all(now);
        }
    }

    fn note_called(&mut self, Called { stage, round, catches_up }: Called) {
        if catches_up {
            self.contributions.catch_up(stage, round.0);
            self.confirmed.catch_up(stage, round.0);
        }
        self.actions.push_back(Action::Journal(Record::RoundCalled { stage }));
    }

    /// Whether this feeder calls the rounds and measures by schedule: one of the feeders does.
    pub(super) fn is_caller(&self) -> bool {
        self.table.caller() == Some(self.config.me.peer)
    }

    /// Whether enough microbatches have their outcome, and no microbatch or evaluation is open.
    fn settled(&self) -> bool {
        let all = self.settled_of_run() >= self.config.total;
        let enough = self.stopped || (all && self.succession.is_over());
        enough && self.open.is_empty() && self.evaluations.is_empty()
    }

    /// Training is over when the last round has ended.
    fn notice_trained(&mut self, now: Time) {
        if self.trained || !self.settled() {
            return;
        }
        if self.stopped || self.rounds.is_over() || !self.is_caller() {
            self.trained = true;
            self.announce_to_all(now);
            self.announce(now);
            self.evaluate_at_the_end();
        }
    }

    fn notice_end(&mut self, now: Time) {
        let late = self.stop_until.is_some_and(|until| until <= now);
        if self.stopped && (self.trained || late) {
            self.finish(End::Stopped);
        } else if self.trained && self.evaluations.is_empty() {
            self.finish(End::Finished);
        }
    }

    fn finish(&mut self, end: End) {
        if !std::mem::replace(&mut self.ended, true) {
            self.actions.push_back(Action::End(end));
        }
    }
}
