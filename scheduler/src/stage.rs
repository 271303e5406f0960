//! The life of a microbatch on one replica.
//!
//! A forward arrives from upstream and waits for the executor. Computed, it goes to a replica of the next stage,
//! and the executor keeps a stash. The gradient comes back from there, waits for the executor, and what that
//! computes returns to the peer the activation came from. The last stage does both in one visit; stage 0 answers
//! the feeder with an empty gradient: finished. An evaluation goes forward only, its loss returns along the route.
//!
//! Anything that goes wrong ends the microbatch, not the process: both neighbours that hold it are told, each
//! tells its own other neighbour, every stash is forgotten, everyone counts one refusal.

mod config;
mod count;
mod early;
mod job;
#[cfg(test)]
mod tests;
mod visit;

use std::collections::{BTreeMap, VecDeque};
use std::fmt::Debug;

use crate::ended::Ended;
use crate::patience::Patience;
use crate::router::{Router, Settled};
use crate::{
    Attempt, Hop, Incarnation, Loss, Membership, Message, MicrobatchId, PeerId, PeerTable, Purpose, Refusal,
    Time, WeightVersion,
};

pub use config::{Config, EXECUTOR_DEPTH, OVERTAKEN_SLOTS};
pub use count::{Counts, Note, Progress};
pub use early::{EARLY_MAX, EARLY_PATIENCE};
pub use job::{Completion, Done, Evaluation, Job};

use early::Early;
use visit::{Arrival, Neighbour, Phase, Visit};

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
    /// Take no more microbatches, finish those held.
    Drain,
    /// The time `poll_timeout` named has come.
    Timeout,
}

/// What a replica wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Give this to the executor, in order. At most [`Config::jobs_max`] are unfinished at once.
    Execute(Job<P>),
    /// Send this to a neighbour.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: Message<P>,
    },
    /// A note for the metrics.
    Counted(Note),
    /// Draining is over: nothing is held any more. Said once.
    Drained,
}

/// Why a replica wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A microbatch is held too long.
    HoldExpires,
    /// A computed activation has found no replica of the next stage.
    RouteExpires,
    /// A forward came from somebody the table does not place.
    EarlyExpires,
}

/// Who still has to hear of a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Towards {
    Both,
    Upstream,
    Downstream,
}

/// One replica of one stage.
#[derive(Debug)]
pub struct Stage<P> {
    config: Config,
    table: PeerTable,
    router: Box<dyn Router>,
    visits: BTreeMap<MicrobatchId, Visit<P>>,
    /// Forwards and gradients that wait for the executor, first come first served. Holds exactly the visits in a
    /// queued phase, so slots and `evaluations_max` bound it.
    queue: VecDeque<MicrobatchId>,
    /// Jobs the executor has not answered.
    running: usize,
    /// Computed, but nobody serves the next stage; oldest first. Holds exactly the visits in phase `Unrouted`.
    unrouted: VecDeque<MicrobatchId>,
    early: Early<P>,
    ended: Ended<Attempt>,
    patience: Patience,
    counts: Counts,
    draining: bool,
    drained: bool,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// A replica that holds nothing and knows nobody.
    #[must_use]
    pub fn new(config: Config, router: Box<dyn Router>) -> Self {
        let overtaken_max = u64::try_from(config.slots).unwrap_or(u64::MAX).saturating_mul(OVERTAKEN_SLOTS);
        let patience = Patience::new(config.hold_max, overtaken_max);
        Self {
            config,
            table: PeerTable::new(),
            router,
            visits: BTreeMap::new(),
            queue: VecDeque::new(),
            running: 0,
            unrouted: VecDeque::new(),
            early: Early::new(),
            ended: Ended::new(),
            patience,
            counts: Counts::default(),
            draining: false,
            drained: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Membership(membership) => self.on_membership(now, membership),
            Event::Received { from, incarnation, message } => {
                self.on_message(now, from, incarnation, message);
            }
            Event::Completed(completion) => self.on_completion(now, completion),
            Event::PeerLost { peer, incarnation } => self.on_peer_lost(now, peer, incarnation),
            Event::Drain => self.draining = true,
            Event::Timeout => {}
        }
        self.refuse_expired(now);
        self.route_again(now);
        self.feed_executor();
        self.notice_drained();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call again with [`Event::Timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let live = self.visits.values().filter(|visit| !matches!(visit.phase, Phase::Cancelled));
        let held = live.map(|visit| self.patience.end_of(visit.wait)).min();
        let unrouted = self.unrouted.front().and_then(|id| self.visits.get(id)?.unrouted_since());
        let unrouted = unrouted.map(|since| since + self.config.route_patience);
        let reasons = [
            (held, Reason::HoldExpires),
            (unrouted, Reason::RouteExpires),
            (self.early.next_expiry(), Reason::EarlyExpires),
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
        let front = self.queue.front().and_then(|id| self.visits.get(id));
        let since = front.and_then(Visit::queued_since).unwrap_or(now);
        Progress {
            done: self.counts.done,
            refused: self.counts.refused,
            queued: u32::try_from(self.queue.len()).unwrap_or(u32::MAX),
            oldest: now.since(since),
        }
    }

    /// Slots taken by training microbatches, those refused while the executor works on them included.
    #[must_use]
    pub fn slots_used(&self) -> usize {
        self.visits.values().filter(|visit| visit.trains()).count()
    }

    /// Microbatches held, for whatever purpose.
    #[must_use]
    pub fn held(&self) -> usize {
        self.visits.len()
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

    // --- What arrives ---------------------------------------------------------------------------------------

    fn on_message(&mut self, now: Time, from: PeerId, incarnation: Incarnation, message: Message<P>) {
        let upstream = self.config.upstream(from, incarnation);
        let downstream = self.config.downstream(from, incarnation);
        match message {
            Message::Forward { microbatch, attempt, purpose, route, version: _, ids, code } => {
                let arrival = Arrival { microbatch, attempt, purpose, route, ids, code };
                self.on_forward(now, upstream, arrival);
            }
            Message::Backward { microbatch, attempt, loss, gradient } => {
                let sender = Neighbour { hop: downstream, attempt };
                if self.await_answer(now, sender, microbatch, Purpose::Train) {
                    self.on_gradient(now, microbatch, loss, gradient);
                }
            }
            Message::Evaluated { microbatch, attempt, loss } => {
                let sender = Neighbour { hop: downstream, attempt };
                if self.await_answer(now, sender, microbatch, Purpose::Evaluate) {
                    self.answer_evaluated(microbatch, loss);
                }
            }
            Message::Refused { microbatch, attempt, by, reason } => {
                let (upstream, downstream) =
                    (Neighbour { hop: upstream, attempt }, Neighbour { hop: downstream, attempt });
                self.on_refused(now, upstream, downstream, microbatch, by, reason);
            }
            // For the machines beside this one.
            Message::Averaging(_) | Message::Transfer(_) => {}
        }
    }

    /// A forward: take it, or say why not.
    fn on_forward(&mut self, now: Time, sender: Hop, arrival: Arrival<P>) {
        let id = arrival.microbatch;
        if !self.table.placed(&sender) {
            if let Some(displaced) = self.early.park(now, sender, arrival) {
                self.count(Note::Foreign(displaced));
            }
            return;
        }
        self.table.heard(sender.peer, sender.incarnation);
        let ended = self.ended.get(id).is_some_and(|&attempt| attempt >= arrival.attempt);
        if ended || self.visits.contains_key(&id) {
            return self.count(Note::Duplicate(id));
        }
        let upstream = Neighbour { hop: sender, attempt: arrival.attempt };
        if !self.config.accepts_route(&arrival.route) || arrival.route.last() != Some(&sender) {
            let reason = Refusal::Malformed("the route does not lead here".to_owned());
            return self.decline(upstream, id, reason, Note::Malformed(id));
        }
        if self.draining || !self.has_room(arrival.purpose) {
            return self.decline(upstream, id, Refusal::Busy, Note::Busy(id));
        }
        let Arrival { purpose, route, ids, code, .. } = arrival;
        let phase = Phase::ForwardQueued { since: now, ids, code };
        let wait = self.patience.begin(now);
        self.visits.insert(id, Visit { purpose, upstream, downstream: None, route, wait, phase });
        self.queue.push_back(id);
    }

    /// Whether `sender` is who an answer for `microbatch` is awaited from; counts and answers if not.
    fn await_answer(&mut self, now: Time, sender: Neighbour, id: MicrobatchId, purpose: Purpose) -> bool {
        if !self.table.placed(&sender.hop) {
            self.count(Note::Foreign(id));
            return false;
        }
        self.table.heard(sender.hop.peer, sender.hop.incarnation);
        let Some(visit) = self.visits.get(&id) else {
            self.disown(sender, id);
            return false;
        };
        if visit.downstream != Some(sender) || visit.trains() != (purpose == Purpose::Train) {
            self.count(Note::Foreign(id));
            return false;
        }
        if !matches!(visit.phase, Phase::Passed) {
            self.count(Note::Duplicate(id));
            return false;
        }
        self.router.on_settled(now, sender.hop, id, Settled::Returned);
        true
    }

    /// A gradient for a microbatch in phase `Passed`.
    fn on_gradient(&mut self, now: Time, id: MicrobatchId, loss: Loss, gradient: P) {
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.phase = Phase::BackwardQueued { since: now, loss, gradient };
            self.queue.push_back(id);
        }
    }

    fn on_refused(
        &mut self,
        now: Time,
        upstream: Neighbour,
        downstream: Neighbour,
        id: MicrobatchId,
        by: Hop,
        reason: Refusal,
    ) {
        let known = self.table.placed(&upstream.hop) || self.table.placed(&downstream.hop);
        match self.visits.get(&id) {
            Some(visit) if visit.upstream == upstream => {
                self.refuse(now, id, by, reason, Towards::Downstream);
            }
            Some(visit) if visit.downstream == Some(downstream) => {
                self.refuse(now, id, by, reason, Towards::Upstream);
            }
            // Never answered, or two peers would refuse to each other for ever.
            None if known => self.count(Note::Late(id)),
            Some(_) | None => self.count(Note::Foreign(id)),
        }
    }

    /// The executor answered: send what it computed to whom it is for.
    fn on_completion(&mut self, now: Time, completion: Completion<P>) {
        let Completion { microbatch: id, done } = completion;
        let Some(visit) = self.visits.get_mut(&id).filter(|visit| visit.running()) else {
            return self.count(Note::Unexpected(id));
        };
        self.running = self.running.saturating_sub(1);
        self.patience.answered(now);
        let evaluates = !visit.trains();
        match (std::mem::replace(&mut visit.phase, Phase::Released), done) {
            (Phase::Cancelled, done) => self.discard(id, &done),
            (_, Done::Refused(reason)) => self.refuse(now, id, self.config.hop(), reason, Towards::Both),
            (Phase::Forwarding { ids }, Done::Forwarded { version, code }) if !evaluates => {
                self.pass_on(now, id, version, ids, code);
            }
            (Phase::Forwarding { ids }, Done::Evaluated(Evaluation::Code { version, code })) if evaluates => {
                self.pass_on(now, id, version, ids, code);
            }
            (Phase::Forwarding { .. }, Done::Evaluated(Evaluation::Loss(loss))) if evaluates => {
                self.answer_evaluated(id, loss);
            }
            (Phase::Forwarding { .. }, Done::LossAndBackward { loss, gradient }) if !evaluates => {
                self.answer_gradient(id, loss, gradient);
            }
            (Phase::Backwarding { loss }, Done::Backwarded { gradient }) => {
                self.answer_gradient(id, loss, gradient);
            }
            (_, done) => self.refuse_mismatch(now, id, &done),
        }
    }

    /// A peer is gone for now: what it held is refused towards those who live.
    fn on_peer_lost(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        self.table.quarantine(now, peer, incarnation);
        self.refuse_orphans(now, |hop| hop.peer == peer && hop.incarnation == incarnation);
    }

    /// A newer table: whoever is no longer where it was is as good as lost.
    fn on_membership(&mut self, now: Time, membership: Membership) {
        if self.table.update(membership) {
            let table = std::mem::take(&mut self.table);
            self.refuse_orphans(now, |hop| !table.placed(hop));
            self.table = table;
            for (sender, arrival) in self.early.take_placed(|hop| self.table.placed(hop)) {
                self.on_forward(now, sender, arrival);
            }
        }
    }

    // --- What goes out --------------------------------------------------------------------------------------

    /// Keeps [`EXECUTOR_DEPTH`] jobs with the executor while there are tasks.
    fn feed_executor(&mut self) {
        while self.running < EXECUTOR_DEPTH {
            let Some(id) = self.queue.pop_front() else { return };
            if let Some(job) = self.start(id) {
                self.running += 1;
                self.actions.push_back(Action::Execute(job));
            }
        }
    }

    /// The job a queued microbatch waits for.
    fn start(&mut self, id: MicrobatchId) -> Option<Job<P>> {
        let (last, first) = (self.config.is_last(), self.config.stage.0 == 0);
        let visit = self.visits.get_mut(&id)?;
        match std::mem::replace(&mut visit.phase, Phase::Released) {
            Phase::ForwardQueued { ids, code, .. } => {
                visit.phase = Phase::Forwarding { ids: ids.clone() };
                Some(match visit.purpose {
                    Purpose::Train if last => Job::LossAndBackward { microbatch: id, ids, code },
                    Purpose::Train => Job::Forward { microbatch: id, ids, code },
                    Purpose::Evaluate => Job::Evaluate { microbatch: id, ids, code, cut: false },
                    Purpose::EvaluateCut => Job::Evaluate { microbatch: id, ids, code, cut: last && !first },
                })
            }
            Phase::BackwardQueued { loss, gradient, .. } => {
                visit.phase = Phase::Backwarding { loss };
                Some(Job::Backward { microbatch: id, gradient })
            }
            other => {
                visit.phase = other;
                None
            }
        }
    }

    /// An activation is computed: it waits for nothing but a replica of the next stage.
    fn pass_on(&mut self, now: Time, id: MicrobatchId, version: WeightVersion, ids: P, code: P) {
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.phase = Phase::Unrouted { since: now, version, ids, code };
            self.unrouted.push_back(id);
        }
    }

    /// Sends on what is computed, and refuses what has waited too long for somebody to send it to.
    fn route_again(&mut self, now: Time) {
        for id in std::mem::take(&mut self.unrouted) {
            if self.route(now, id) {
                continue;
            }
            self.unrouted.push_back(id);
            let since = self.visits.get(&id).and_then(Visit::unrouted_since).unwrap_or(now);
            if since + self.config.route_patience <= now {
                self.refuse(now, id, self.config.hop(), Refusal::Undeliverable, Towards::Both);
            }
        }
    }

    /// Sends an activation to a replica of the next stage; `false` if there is none.
    fn route(&mut self, now: Time, id: MicrobatchId) -> bool {
        let eligible = self.table.eligible(now, self.config.next_stage());
        let Some(hop) = self.router.choose(now, &eligible) else { return false };
        let Some(visit) = self.visits.get_mut(&id) else { return true };
        let Phase::Unrouted { version, ids, code, .. } = std::mem::replace(&mut visit.phase, Phase::Passed)
        else {
            return true;
        };
        let attempt = visit.upstream.attempt;
        visit.downstream = Some(Neighbour { hop, attempt });
        let mut route = visit.route.clone();
        route.push(self.config.hop());
        let purpose = visit.purpose;
        let message = Message::Forward { microbatch: id, attempt, purpose, route, version, ids, code };
        self.router.on_sent(now, hop, id);
        self.send(hop, message);
        true
    }

    /// Returns a gradient to where the activation came from; a feeder only hears that it is finished.
    fn answer_gradient(&mut self, id: MicrobatchId, loss: Loss, gradient: P) {
        let gradient = if self.config.stage.0 == 0 { P::default() } else { gradient };
        self.answer(id, |attempt| Message::Backward { microbatch: id, attempt, loss, gradient });
    }

    fn answer_evaluated(&mut self, id: MicrobatchId, loss: Loss) {
        self.answer(id, |attempt| Message::Evaluated { microbatch: id, attempt, loss });
    }

    /// The good end of a microbatch.
    fn answer(&mut self, id: MicrobatchId, message: impl FnOnce(Attempt) -> Message<P>) {
        if let Some(visit) = self.visits.remove(&id) {
            let Neighbour { hop, attempt } = visit.upstream;
            self.ended.insert(id, attempt);
            self.send(hop, message(attempt));
            let note = if visit.trains() { Note::Done(id) } else { Note::Evaluated(id) };
            self.count(note);
        }
    }

    // --- What goes wrong ------------------------------------------------------------------------------------

    /// The bad end of a microbatch: tell the neighbours that hold it, forget the stash, count once.
    fn refuse(&mut self, now: Time, id: MicrobatchId, by: Hop, reason: Refusal, towards: Towards) {
        let Some(visit) = self.visits.get_mut(&id) else { return };
        if matches!(visit.phase, Phase::Cancelled) {
            return;
        }
        let (upstream, downstream) = (visit.upstream, visit.downstream);
        let (stashed, running) = (visit.stashed(), visit.running());
        let awaited = matches!(visit.phase, Phase::Passed);
        visit.phase = Phase::Cancelled;
        if !running {
            self.visits.remove(&id);
            self.queue.retain(|&queued| queued != id);
            self.unrouted.retain(|&unrouted| unrouted != id);
        }
        if stashed {
            self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
        }
        if towards != Towards::Downstream {
            self.send_refused(upstream, id, by, reason.clone());
        }
        // After its answer the next hop holds nothing any more.
        if let Some(downstream) = downstream.filter(|_| awaited) {
            let lost = towards == Towards::Upstream && by == self.config.hop();
            let how = if lost { Settled::Lost } else { Settled::Refused };
            self.router.on_settled(now, downstream.hop, id, how);
            if towards != Towards::Upstream {
                self.send_refused(downstream, id, by, reason.clone());
            }
        }
        self.ended.insert(id, upstream.attempt);
        self.count(Note::Refused(id, reason));
    }

    /// The executor's answer to a microbatch refused in the meantime.
    fn discard(&mut self, id: MicrobatchId, done: &Done<P>) {
        self.visits.remove(&id);
        if matches!(done, Done::Forwarded { .. }) {
            self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
        }
    }

    /// The executor answered another question than it was asked: a bug on this machine, survivable.
    fn refuse_mismatch(&mut self, now: Time, id: MicrobatchId, done: &Done<P>) {
        if matches!(done, Done::Forwarded { .. }) {
            self.actions.push_back(Action::Execute(Job::Forget { microbatch: id }));
        }
        self.count(Note::Unexpected(id));
        let reason = Refusal::Device("the executor answered another job".to_owned());
        self.refuse(now, id, self.config.hop(), reason, Towards::Both);
    }

    /// Refuses what an upstream or a downstream that is `gone` held.
    fn refuse_orphans(&mut self, now: Time, gone: impl Fn(&Hop) -> bool) {
        let orphaned = |visit: &Visit<P>| {
            let awaited = visit.downstream.filter(|_| matches!(visit.phase, Phase::Passed));
            match (gone(&visit.upstream.hop), awaited.is_some_and(|next| gone(&next.hop))) {
                (true, _) => Some(Towards::Downstream),
                (false, true) => Some(Towards::Upstream),
                (false, false) => None,
            }
        };
        let orphans: Vec<_> =
            self.visits.iter().filter_map(|(&id, visit)| Some((id, orphaned(visit)?))).collect();
        for (id, towards) in orphans {
            self.refuse(now, id, self.config.hop(), Refusal::Undeliverable, towards);
        }
    }

    fn refuse_expired(&mut self, now: Time) {
        while let Some(id) = self.early.pop_expired(now) {
            self.count(Note::Foreign(id));
        }
        let expired = |visit: &Visit<P>| self.patience.end_of(visit.wait) <= now;
        let ids: Vec<_> = self.visits.iter().filter(|(_, visit)| expired(visit)).map(|(&id, _)| id).collect();
        for id in ids {
            self.refuse(now, id, self.config.hop(), Refusal::Undeliverable, Towards::Both);
        }
    }

    /// Turns away a forward that was never held.
    fn decline(&mut self, sender: Neighbour, id: MicrobatchId, reason: Refusal, note: Note) {
        self.ended.insert(id, sender.attempt);
        self.send_refused(sender, id, self.config.hop(), reason);
        self.count(note);
    }

    /// Answers a gradient for a microbatch that is not held.
    fn disown(&mut self, sender: Neighbour, id: MicrobatchId) {
        if self.ended.get(id).is_some() {
            return self.count(Note::Late(id));
        }
        self.send_refused(sender, id, self.config.hop(), Refusal::Unknown);
        self.count(Note::Unknown(id));
    }

    // --- Hands ----------------------------------------------------------------------------------------------

    fn has_room(&self, purpose: Purpose) -> bool {
        let trains = self.slots_used();
        let room = match purpose {
            Purpose::Train => trains < self.config.slots,
            Purpose::Evaluate | Purpose::EvaluateCut => {
                self.visits.len() - trains < self.config.evaluations_max
            }
        };
        room && self.queue.len() < self.config.queue_max
    }

    fn notice_drained(&mut self) {
        if self.draining && !self.drained && self.visits.is_empty() {
            self.drained = true;
            self.actions.push_back(Action::Drained);
        }
    }

    fn send_refused(&mut self, to: Neighbour, id: MicrobatchId, by: Hop, reason: Refusal) {
        let message = Message::Refused { microbatch: id, attempt: to.attempt, by, reason };
        self.send(to.hop, message);
    }

    fn send(&mut self, to: Hop, message: Message<P>) {
        self.actions.push_back(Action::Send { to: to.peer, message });
    }

    fn count(&mut self, note: Note) {
        self.counts.add(&note);
        self.actions.push_back(Action::Counted(note));
    }
}
