//! The life of a microbatch on one replica.
//!
//! A forward arrives from upstream and waits for the executor. Computed, it goes to a replica of the next stage,
//! and the executor keeps a stash. The gradient comes back from there and waits for the executor in turn; what that
//! computes goes up to the peer the activation came from. Meanwhile the feeder has been asked for the grant, without
//! which the gradients of the weights are not applied (`grants`). The last stage does both passes in one visit.
//! Everything computed is kept until the feeder announces the outcome (`ending`), so that whoever loses it can be given
//! it again (`recovery`). An evaluation goes forward only, and the last stage tells the feeder its loss.
//!
//! Nothing goes wrong silently: a microbatch that cannot be processed is refused, and the feeder counts that.

mod applied_set;
mod config;
mod counts;
mod credit;
mod ending;
mod grants;
mod job;
mod microbatch;
mod outcomes;
mod parked;
mod recovery;
mod succession;
mod tasks;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use crate::handoff::attempts::Neighbour;
use crate::handoff::neighbours::Neighbours;
use crate::handoff::status_timer::Asking;
use crate::mutation::Mutation;
use crate::router::{Choice, Router, Settled};
use crate::stage::applied_set::Ledger;
use crate::{
    Beat, Duration, Holding, Hop, Incarnation, Loss, Membership, Message, MicrobatchId, MovingAverage,
    PeerId, PeerTable, Purpose, Refusal, Suspension, Time,
};

pub use config::{Config, EXECUTOR_DEPTH, RESTORED_SLOTS};
pub use counts::{Counts, Note, Progress};
pub use job::{Completion, Done, Evaluation, Job};
pub use parked::{EARLY_MAX, EARLY_PATIENCE};

use credit::Credits;
use microbatch::{Answer, Arrival, Claim, Output, Phase, Share, Visit};
use outcomes::Outcomes;
use parked::Early;
use succession::{Departures, submit};
use tasks::Tasks;

/// What happens to a replica.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The coordinator published a table. Older ones than known are ignored.
    Membership(Membership),
    /// A message arrived from an authenticated peer.
    Received {
        /// Who sent it.
        from: PeerId,
        /// Which start of the sender.
        incarnation: Incarnation,
        /// What it says.
        message: Message<P>,
    },
    /// The executor answered a job.
    Completed(Completion<P>),
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost {
        /// Which peer.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
    },
    /// The coordinator answered: the own link works.
    Reached,
    /// The coordinator answered after [`Action::Confirm`]: this start still is a member.
    Confirmed,
    /// Take no more microbatches, finish those held.
    Drain,
    /// The run is over: every microbatch has its outcome, and nothing held is of use to anybody.
    Finished,
    /// The time `poll_timeout` named has come.
    Timeout,
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Give this to the executor, in order. At most [`Config::jobs_max`] are unfinished at once.
    Execute(Job<P>),
    /// Send this to a peer.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Message<P>,
    },
    /// This process stood still for a while. Ask the coordinator whether it still is a member; if so, say
    /// [`Event::Confirmed`], if not, what it holds is void. Nothing is sent before.
    Confirm,
    /// A note for the metrics.
    Counted(Note),
    /// Draining is over: nothing is held any more. Said once.
    Drained,
}

/// Why a replica wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Somebody owes an answer and is to be asked.
    AnswerOverdue,
    /// A computed activation has found no replica of the next stage.
    RouteExpires,
    /// A forward came from somebody the table does not place.
    EarlyExpires,
    /// Neighbours expect a sign of life.
    BeatDue,
    /// A neighbour is silent.
    NeighbourSilent,
}

/// One replica of one stage.
#[derive(Debug)]
pub struct Stage<P> {
    config: Config,
    table: PeerTable,
    router: Box<dyn Router>,
    neighbours: Neighbours,
    credits: Credits,
    /// Slots, `restored_max` and `evaluations_max` bound it.
    visits: BTreeMap<MicrobatchId, Visit<P>>,
    /// Holds exactly the visits in a queued phase.
    tasks: Tasks,
    /// Jobs the executor has not answered.
    running: usize,
    /// Whose gradients the executor keeps, or is computing, without a grant. One at a time.
    ungranted: Option<MicrobatchId>,
    /// Computed, but no replica of the next stage takes it; oldest first. Holds exactly the visits in phase `Unrouted`.
    unrouted: VecDeque<MicrobatchId>,
    early: Early<P>,
    outcomes: Outcomes,
    departures: Departures,
    ledger: Ledger,
    /// To be claimed from their feeders when the event at hand is dealt with.
    claims: Vec<MicrobatchId>,
    /// No answer is overdue before.
    check_at: Option<Time>,
    beat_at: Time,
    service: MovingAverage,
    computing_since: Time,
    answered: u64,
    counts: Counts,
    draining: bool,
    drained: bool,
    finished: bool,
    suspension: Suspension,
    now: Time,
    actions: VecDeque<Action<P>>,
    /// What would have been sent, had this process not stood still.
    withheld: Vec<Action<P>>,
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// A replica that holds nothing and knows nobody.
    #[must_use]
    pub fn new(config: Config, router: Box<dyn Router>) -> Self {
        let table = PeerTable::new(config.peer);
        Self {
            config,
            table,
            router,
            neighbours: Neighbours::default(),
            credits: Credits::default(),
            visits: BTreeMap::new(),
            tasks: Tasks::default(),
            running: 0,
            ungranted: None,
            unrouted: VecDeque::new(),
            early: Early::new(),
            outcomes: Outcomes::default(),
            departures: Departures::default(),
            ledger: Ledger::default(),
            claims: Vec::new(),
            check_at: None,
            beat_at: Time::default(),
            service: MovingAverage::default(),
            computing_since: Time::default(),
            answered: 0,
            counts: Counts::default(),
            draining: false,
            drained: false,
            finished: false,
            suspension: Suspension::new(),
            now: Time::default(),
            actions: VecDeque::new(),
            withheld: Vec::new(),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        self.now = now;
        if self.suspension.called(now) {
            self.actions.push_back(Action::Confirm);
        }
        match event {
            Event::Membership(membership) => self.on_membership(now, membership),
            Event::Received { from, incarnation, message } => {
                self.on_message(now, from, incarnation, message);
            }
            Event::Completed(completion) => self.on_completion(now, completion),
            Event::PeerLost { peer, incarnation } => self.on_peer_lost(now, peer, incarnation),
            Event::Reached => self.neighbours.reached(now),
            Event::Confirmed => self.on_confirmed(),
            Event::Drain => self.draining = true,
            Event::Finished => self.on_finished(now),
            Event::Timeout => {}
        }
        self.judge_neighbours(now);
        self.ask_overdue(now);
        self.route_waiting(now);
        self.feed_executor(now);
        self.send_claims();
        self.beat(now);
        self.notice_drained();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call again with [`Event::Timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let empty = !self.table.serves(self.config.next_stage());
        let oldest = self.unrouted.front().and_then(|id| self.visits.get(id)?.unrouted_since());
        let expires = oldest.filter(|_| empty).map(|since| since + self.config.route_patience);
        let reasons = [
            (self.check_at, Reason::AnswerOverdue),
            (expires, Reason::RouteExpires),
            (self.early.next_expiry(), Reason::EarlyExpires),
            (Some(self.beat_at), Reason::BeatDue),
            (self.neighbours.next_change(self.now), Reason::NeighbourSilent),
        ];
        reasons.into_iter().filter_map(|(at, reason)| Some((at?, reason))).min_by_key(|(at, _)| *at)
    }

    /// Totals since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// What the next heartbeat says.
    #[must_use]
    pub fn progress(&self, now: Time) -> Progress {
        let front = self.tasks.front().and_then(|id| self.visits.get(&id));
        // While gradients wait for a feeder's word, and that is all, nobody waits for the executor.
        let waits_for_word = self.running == 0 && self.ungranted.is_some();
        let since = front.and_then(Visit::queued_since).filter(|_| !waits_for_word).unwrap_or(now);
        Progress {
            done: self.counts.applied,
            refused: self.counts.refused,
            queued: u32::try_from(self.tasks.len()).unwrap_or(u32::MAX),
            oldest: now.since(since),
        }
    }

    /// Slots taken.
    #[must_use]
    pub fn slots_used(&self) -> usize {
        self.visits.values().filter(|visit| visit.slotted).count()
    }

    /// Microbatches held, for whatever purpose.
    #[must_use]
    pub fn held(&self) -> usize {
        self.visits.len()
    }

    /// Whether anything of this microbatch is here.
    #[must_use]
    pub fn holds(&self, microbatch: MicrobatchId) -> bool {
        self.visits.contains_key(&microbatch)
    }

    /// What is held, for the message of a failure.
    #[cfg(test)]
    pub(crate) fn describe(&self) -> String {
        let Self { visits, tasks, running, ungranted, unrouted, .. } = self;
        format!("{visits:?} {tasks:?} {running} {ungranted:?} {unrouted:?}")
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

    // --- A forward arrives ----------------------------------------------------------------------------------

    fn on_message(&mut self, now: Time, from: PeerId, incarnation: Incarnation, message: Message<P>) {
        let upstream = self.config.upstream(from, incarnation);
        let downstream = self.config.downstream(from, incarnation);
        self.neighbours.message(now, from, incarnation);
        match message {
            Message::Forward { microbatch, attempt, purpose, anew, route, holder, version: _, ids, code } => {
                let arrival = Arrival { microbatch, attempt, purpose, anew, route, holder, ids, code };
                self.on_forward(now, upstream, arrival);
            }
            Message::Ask { microbatch, attempt, route } => {
                self.on_ask(now, Neighbour { hop: upstream, attempt }, microbatch, route);
            }
            Message::Backward { microbatch, attempt, loss, path, gradient } => {
                let answer = Answer { loss, path, gradient };
                self.on_gradient(now, Neighbour { hop: downstream, attempt }, microbatch, answer);
            }
            Message::Holds { microbatch, attempt, holding } => {
                self.on_holds(now, Neighbour { hop: downstream, attempt }, microbatch, holding);
            }
            Message::Passed { microbatch, attempt, next } => {
                self.on_passed(Neighbour { hop: downstream, attempt }, microbatch, next);
            }
            Message::Held { microbatch, holder } => self.on_held(from, incarnation, microbatch, holder),
            Message::Granted { granted, denied } => {
                if self.table.feeds(from, incarnation) {
                    self.on_granted(now, from, &granted, &denied);
                }
            }
            Message::Adopt { range, epoch, from: page } => {
                self.on_adopt(from, incarnation, (range, epoch), page);
            }
            Message::Ended { spans, .. } => {
                if self.table.feeds(from, incarnation) {
                    self.outcomes.announce(from, spans);
                    self.release_ended(now);
                }
            }
            Message::Beat(beat) => {
                let known = [upstream, downstream].into_iter().find(|hop| self.table.placed(hop));
                if let Some(sender) = known {
                    self.neighbours.beat(now, sender, beat);
                }
            }
            // For the machines beside this one.
            Message::Averaging(_) | Message::Transfer(_) => {}
            Message::Claim { .. }
            | Message::Evaluated { .. }
            | Message::Refused { .. }
            | Message::Averaged { .. }
            | Message::Inventory(_) => self.count(Note::Misdirected(from)),
        }
    }

    /// A forward: take it, or say why not.
    fn on_forward(&mut self, now: Time, sender: Hop, mut arrival: Arrival<P>) {
        let (id, attempt) = (arrival.microbatch, arrival.attempt);
        if !self.table.placed(&sender) {
            if let Some(displaced) = self.early.park(now, sender, arrival) {
                self.count(Note::Foreign(displaced));
            }
            return;
        }
        if self.outcomes.contain(id) {
            return self.count(Note::Late(id));
        }
        if !submit(&self.table, sender, id, &mut arrival.route) {
            return self.count(Note::Foreign(id));
        }
        let upstream = Neighbour { hop: sender, attempt };
        if !self.config.accepts_route(&arrival.route) || arrival.route.last() != Some(&sender) {
            return self.decline(id, arrival.route.first().copied());
        }
        if self.visits.contains_key(&id) {
            self.count(Note::Duplicate(id));
            return self.adopt(now, upstream, id, arrival.route);
        }
        let slotted = arrival.purpose == Purpose::Train && !arrival.anew;
        if self.draining || !self.has_room(arrival.purpose, slotted) {
            self.count(Note::Busy(id));
            return self.send(sender, Message::Holds { microbatch: id, attempt, holding: Holding::Busy });
        }
        self.take(now, sender, arrival, slotted);
    }

    fn take(&mut self, now: Time, sender: Hop, arrival: Arrival<P>, slotted: bool) {
        let (id, trains) = (arrival.microbatch, arrival.purpose == Purpose::Train);
        if slotted && self.credits.used(sender) {
            self.beat_at = now;
        }
        if trains && !slotted {
            self.count(Note::Restored(id));
        }
        self.visits.insert(id, Visit::new(arrival, sender, now, slotted));
        self.tasks.push(id, trains && !slotted);
        if trains && self.config.is_last() {
            self.claim(now, id);
        }
    }

    // --- The executor computes ------------------------------------------------------------------------------

    /// Keeps [`EXECUTOR_DEPTH`] jobs with the executor while there are tasks.
    fn feed_executor(&mut self, now: Time) {
        while self.running < EXECUTOR_DEPTH {
            let Some(id) = self.next_task() else { return };
            if let Some(job) = self.start(id) {
                if self.running == 0 {
                    self.computing_since = now;
                }
                self.running += 1;
                self.actions.push_back(Action::Execute(job));
            }
        }
    }

    /// While gradients wait for their grant no others are computed; in step, nothing at all.
    fn next_task(&mut self) -> Option<MicrobatchId> {
        if self.config.in_step && self.ungranted.is_some() {
            return None;
        }
        let (visits, last, blocked) = (&self.visits, self.config.is_last(), self.ungranted.is_some());
        let startable = |id: MicrobatchId| {
            let needs_gradients = visits.get(&id).is_some_and(|visit| match visit.phase {
                Phase::ForwardQueued { .. } => last && visit.trains(),
                _ => true,
            });
            !(blocked && needs_gradients)
        };
        self.tasks.pop(startable)
    }

    /// The job a queued microbatch waits for.
    fn start(&mut self, id: MicrobatchId) -> Option<Job<P>> {
        let (last, first) = (self.config.is_last(), self.config.stage.0 == 0);
        let visit = self.visits.get_mut(&id)?;
        let granted = visit.claim == Claim::Granted;
        let ids = visit.ids.clone();
        let job = match std::mem::replace(&mut visit.phase, Phase::Forwarding) {
            Phase::ForwardQueued { code, .. } => match visit.purpose {
                Purpose::Train if last => Job::LossAndBackward { microbatch: id, ids, code, granted },
                Purpose::Train => return Some(Job::Forward { microbatch: id, ids, code }),
                Purpose::Evaluate => return Some(Job::Evaluate { microbatch: id, ids, code, cut: false }),
                Purpose::EvaluateCut => {
                    return Some(Job::Evaluate { microbatch: id, ids, code, cut: last && !first });
                }
            },
            Phase::BackwardQueued { answer, .. } => {
                visit.phase = Phase::Backwarding { loss: answer.loss, path: answer.path };
                Job::Backward { microbatch: id, gradient: answer.gradient, granted }
            }
            other => {
                visit.phase = other;
                return None;
            }
        };
        if granted {
            visit.share = Share::Applying;
        } else {
            self.ungranted = Some(id);
        }
        Some(job)
    }

    /// The executor answered: what it computed goes where it is needed.
    fn on_completion(&mut self, now: Time, completion: Completion<P>) {
        let Completion { microbatch: id, done } = completion;
        let Some(visit) = self.visits.get_mut(&id).filter(|visit| visit.running()) else {
            return self.count(Note::Unexpected(id));
        };
        self.running = self.running.saturating_sub(1);
        self.answered += 1;
        let took = now.since(self.computing_since);
        self.computing_since = now;
        let (trains, last) = (visit.trains(), self.config.is_last());
        match (std::mem::replace(&mut visit.phase, Phase::Cancelled), done) {
            (Phase::Answered(answer), Done::Applied) => {
                visit.phase = Phase::Answered(answer);
                self.applied(id);
            }
            (Phase::Cancelled, done) => self.discard(id, &done),
            (_, Done::Refused(reason)) => self.refuse(now, id, reason),
            (Phase::Forwarding, Done::Forwarded { version, code }) if trains && !last => {
                self.measure(now, took);
                self.computed(now, id, Output { version, code });
            }
            (Phase::Forwarding, Done::Evaluated(Evaluation::Code { version, code })) if !trains => {
                self.computed(now, id, Output { version, code });
            }
            (Phase::Forwarding, Done::Evaluated(Evaluation::Loss(loss))) if !trains => {
                self.evaluated(id, loss);
            }
            (Phase::Forwarding, Done::LossAndBackward { loss, gradient }) if trains && last => {
                self.measure(now, took);
                self.answer(id, Answer { loss, path: Vec::new(), gradient });
            }
            (Phase::Backwarding { loss, path }, Done::Backwarded { gradient }) => {
                self.answer(id, Answer { loss, path, gradient });
            }
            (phase, done) => self.refuse_mismatch(now, id, phase, &done),
        }
        self.release_if_over(now, id);
    }

    /// Neighbours wait for the first figure: of a replica that has none they try one microbatch only.
    fn measure(&mut self, now: Time, took: Duration) {
        if self.service.get().is_none() {
            self.beat_at = now;
        }
        self.service.add(took);
    }

    // --- It goes on -----------------------------------------------------------------------------------------

    /// An activation is computed: it waits for nothing but a replica of the next stage.
    fn computed(&mut self, now: Time, id: MicrobatchId, output: Output<P>) {
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.output = Some(output);
            visit.phase = Phase::Unrouted { since: now };
            self.unrouted.push_back(id);
        }
    }

    /// Hands on what is computed. What nobody could take for too long is refused.
    fn route_waiting(&mut self, now: Time) {
        while let Some(id) = self.early.pop_expired(now) {
            self.count(Note::Foreign(id));
        }
        let empty = !self.table.serves(self.config.next_stage());
        let mut taken = true;
        for id in std::mem::take(&mut self.unrouted) {
            let Some(since) = self.visits.get(&id).and_then(Visit::unrouted_since) else { continue };
            if self.ask_holder(now, id) {
                continue;
            }
            // Where one finds nobody, the next one does not either.
            taken = taken && self.route(now, id);
            if taken {
                continue;
            }
            self.unrouted.push_back(id);
            if empty && since + self.config.route_patience <= now {
                self.refuse(now, id, Refusal::Undeliverable);
            }
        }
    }

    /// Sends an activation to a replica of the next stage; `false` if none takes it now.
    fn route(&mut self, now: Time, id: MicrobatchId) -> bool {
        let next = self.config.next_stage();
        let hops = self.table.eligible(now, next);
        let candidates = self.neighbours.candidates(now, hops, self.router.as_ref());
        let choice = Choice { candidates: &candidates, senders: self.table.senders(next) };
        let Some(hop) = self.router.choose(now, &choice) else { return false };
        let me = self.config.hop();
        let Some(visit) = self.visits.get_mut(&id) else { return true };
        let Some(Output { version, code }) = visit.output.clone() else { return true };
        let anew = visit.lost;
        let attempt = if visit.trains() { visit.sendings.add(hop) } else { visit.upstream.attempt };
        let attempt = if self.config.breaks(Mutation::OneAttempt) { visit.upstream.attempt } else { attempt };
        let message = Message::Forward {
            microbatch: id,
            attempt,
            purpose: visit.purpose,
            anew,
            route: visit.route.iter().copied().chain([me]).collect(),
            holder: visit.beyond.filter(|holder| holder.stage > Some(next)),
            version,
            ids: visit.ids.clone(),
            code,
        };
        if visit.trains() {
            self.passed(now, id, hop);
            if anew {
                self.count(Note::Rerouted(id));
            }
        } else {
            self.remove(now, id, Settled::Returned);
        }
        self.send(hop, message);
        true
    }

    /// A training microbatch is with `hop` now: the gradient is awaited, and upstream gets a receipt.
    fn passed(&mut self, now: Time, id: MicrobatchId, hop: Hop) {
        self.router.on_sent(now, hop, id);
        self.check_by(now + self.config.ask_after);
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.phase = Phase::Passed { asking: Asking::sent(now) };
            if self.config.breaks(Mutation::ReleaseEarly) {
                visit.output = None;
            }
            visit.slotted &= !self.config.breaks(Mutation::SlotEarly);
            let Neighbour { hop: upstream, attempt } = visit.upstream;
            self.send(upstream, Message::Passed { microbatch: id, attempt, next: hop });
        }
    }

    // --- The gradient comes back ----------------------------------------------------------------------------

    /// The first gradient wins, whichever of the replicas it was handed to it comes from.
    fn on_gradient(&mut self, now: Time, sender: Neighbour, id: MicrobatchId, answer: Answer<P>) {
        if !self.table.placed(&sender.hop) || !self.config.accepts_path(&answer.path, sender.hop) {
            return self.count(Note::Foreign(id));
        }
        let Some(visit) = self.visits.get_mut(&id) else {
            return self.count(if self.outcomes.contain(id) { Note::Late(id) } else { Note::Unknown(id) });
        };
        if !visit.sendings.contain(sender) {
            return self.count(Note::Foreign(id));
        }
        if !visit.awaits_gradient() {
            return self.count(Note::Duplicate(id));
        }
        self.settle_sending(now, id, Settled::Returned);
        if let Some(visit) = self.visits.get_mut(&id) {
            let recovers = !visit.slotted;
            visit.phase = Phase::BackwardQueued { since: now, answer };
            self.unrouted.retain(|&unrouted| unrouted != id);
            self.tasks.push(id, recovers);
            self.claim(now, id);
        }
    }

    /// The gradient of what was received is computed: it goes up at once and is kept.
    fn answer(&mut self, id: MicrobatchId, mut answer: Answer<P>) {
        let Some(visit) = self.visits.get_mut(&id) else { return };
        answer.path.push(self.config.hop());
        // A feeder only hears that the microbatch came home.
        if self.config.stage.0 == 0 {
            answer.gradient = P::default();
        }
        visit.slotted = false;
        visit.phase = Phase::Answered(answer);
        let applied = visit.share == Share::Applying;
        if !applied {
            visit.share = Share::Waiting;
        }
        self.send_answer(id);
        if applied { self.applied(id) } else { self.settle_share(id) }
    }

    fn send_answer(&mut self, id: MicrobatchId) {
        let Some(visit) = self.visits.get(&id) else { return };
        let Phase::Answered(Answer { loss, path, gradient }) = visit.phase.clone() else { return };
        let Neighbour { hop, attempt } = visit.upstream;
        self.send(hop, Message::Backward { microbatch: id, attempt, loss, path, gradient });
    }

    fn evaluated(&mut self, id: MicrobatchId, loss: Loss) {
        if let Some(visit) = self.visits.remove(&id)
            && let Some(feeder) = visit.arbiter()
        {
            self.send(feeder, Message::Evaluated { microbatch: id, attempt: visit.upstream.attempt, loss });
            self.count(Note::Evaluated(id));
        }
    }

    // --- Hands ----------------------------------------------------------------------------------------------

    fn has_room(&self, purpose: Purpose, slotted: bool) -> bool {
        let count =
            |which: &dyn Fn(&Visit<P>) -> bool| self.visits.values().filter(|visit| which(visit)).count();
        match purpose {
            Purpose::Train if slotted => self.slots_used() < self.config.slots,
            Purpose::Train => count(&|visit| visit.trains() && !visit.slotted) < self.config.restored_max(),
            Purpose::Evaluate | Purpose::EvaluateCut => {
                count(&|visit| !visit.trains()) < self.config.evaluations_max
            }
        }
    }

    /// Tells both neighbouring stages, and at stage 0 the feeders, that this replica lives, and deals out credits.
    fn beat(&mut self, now: Time) {
        if now < self.beat_at {
            return;
        }
        self.beat_at = now + self.config.beat_every;
        let senders = self.table.senders_to(self.config.stage);
        let slots = if self.draining { 0 } else { self.config.slots };
        let Progress { queued, oldest, .. } = self.progress(now);
        let beat = Beat { counter: self.answered, queued, oldest, service: self.service.get(), credit: 0 };
        for (sender, credit) in self.credits.deal(slots, &senders) {
            self.send(sender, Message::Beat(Beat { credit, ..beat }));
        }
        for next in self.table.hops(self.config.next_stage()) {
            self.send(next, Message::Beat(beat));
        }
    }

    fn notice_drained(&mut self) {
        // What is kept for others is of use only while its feeder is there to need it.
        let kept = |visit: &Visit<P>| {
            visit.is_settled()
                && visit.arbiter().is_some_and(|feeder| self.table.address(feeder.peer).is_none())
        };
        if self.draining && !self.drained && self.visits.values().all(kept) {
            self.drained = true;
            self.actions.push_back(Action::Drained);
        }
    }

    fn check_by(&mut self, at: Time) {
        self.check_at = Some(self.check_at.map_or(at, |known| known.min(at)));
    }

    fn send(&mut self, to: Hop, message: Message<P>) {
        let action = Action::Send { to: to.peer, message };
        if self.suspension.is_unsure() { self.withheld.push(action) } else { self.actions.push_back(action) }
    }

    fn count(&mut self, note: Note) {
        self.counts.add(&note);
        self.actions.push_back(Action::Counted(note));
    }
}
