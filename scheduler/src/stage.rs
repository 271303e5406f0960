//! The life of a microbatch on one replica.
//!
//! A forward arrives from upstream and waits for the executor. The activation computed from it goes to a replica of the
//! next stage, and the executor keeps a stash. The gradient comes back from there and waits for the executor in turn; the
//! gradient computed from it goes up to the peer that the activation came from. Meanwhile the replica has claimed the
//! microbatch from its feeder: without the grant the gradients of the weights are not applied (`grants`). The last stage
//! does both passes at once. The output and the gradient are kept until the feeder announces the outcome (`ending`), so
//! that a neighbour that loses them can be given them again (`recovery`). An evaluation goes forward only, and the last
//! stage tells the feeder its loss.
//!
//! Nothing goes wrong silently: a microbatch that cannot be processed is refused, and the feeder counts that.

mod applied_set;
mod config;
mod contacts;
mod counts;
mod credit;
mod distrust;
mod ending;
mod event;
mod executor_queue;
mod feeder_links;
mod forfeits;
mod given_back;
mod grants;
mod heartbeat;
mod job;
mod microbatch;
mod next_stage;
#[cfg(any(test, feature = "sim"))]
mod observed;
mod outcomes;
mod parked;
mod recovery;
mod room;
mod succession;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt::Debug;

use crate::handoff::{Handoff, Leg};
use crate::mutation::Mutation;
use crate::router::{Completion, Router};
use crate::{
    Attempt, Envelope, Hop, Instance, Loss, Message, MicrobatchId, PeerTable, Purpose, Refusal, RouteProof,
    Status, Time,
};

pub use config::{Config, EXECUTOR_DEPTH, RETRIES_PER_SLOT};
pub use counts::{Counts, Note, Progress};
pub use event::{Action, Event, Reason};
pub use feeder_links::{FEEDER_LOST_AFTER, KEPT_FOR_SUCCESSOR};
pub use job::{Evaluation, Job, JobOutcome, JobReply};
pub use next_stage::NEXT_STAGE_LOST_AFTER;
pub use parked::{PARKED_MAX, PARKED_TIMEOUT};

use applied_set::AppliedSet;
use contacts::Contacts;
use credit::Credits;
use distrust::Distrust;
use executor_queue::ExecutorQueue;
use feeder_links::FeederLinks;
use forfeits::Forfeits;
use given_back::GivenBack;
use microbatch::{Arrival, GradientReply, Microbatch, Output, Phase, UpdateState};
use outcomes::Outcomes;
use parked::{Parked, is_expected};
use succession::{DepartureLog, replace_feeder};

/// The stage that a replica serves: its microbatches, and the neighbours they come from and go to.
#[derive(Debug)]
pub struct Stage<P> {
    config: Config,
    table: PeerTable,
    /// Bounded by the slots, `retries_max` and `evaluations_max`.
    microbatches: BTreeMap<MicrobatchId, Microbatch<P>>,
    /// The microbatches that a replica of the next stage has.
    handoff: Handoff,
    contacts: Contacts,
    credits: Credits,
    distrust: Distrust,
    queue: ExecutorQueue,
    /// The microbatches in phase `Unrouted`, oldest first: computed, but no replica of the next stage takes them.
    unrouted: VecDeque<MicrobatchId>,
    parked: Parked<P>,
    outcomes: Outcomes,
    /// The gradients that a full send queue did not take; they are sent with the next heartbeat.
    unsent_gradients: BTreeSet<MicrobatchId>,
    departures: DepartureLog,
    feeders: FeederLinks,
    /// Since then no replica of the next stage takes microbatches, although the coordinator lists some.
    next_stage_lost: Option<Time>,
    applied: AppliedSet,
    /// Microbatches to claim from their feeders at the end of this `handle`.
    claims: Vec<MicrobatchId>,
    forfeits: Forfeits,
    given_back: GivenBack,
    /// Feeders to tell of grants handed back, or to ask for a sign of life, at the end of this `handle`.
    forfeiting: BTreeSet<Hop>,
    /// No feeder is overdue before.
    feeder_check_at: Option<Time>,
    heartbeat_at: Time,
    counts: Counts,
    draining: bool,
    drained: bool,
    finished: bool,
    /// The run is finished; grants on their way are awaited until then.
    grants_until: Option<Time>,
    now: Time,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// A stage without microbatches that knows no peer.
    #[must_use]
    pub fn new(config: Config, router: Box<dyn Router>) -> Self {
        let table = PeerTable::new(config.hop());
        let handoff = Handoff::new(config.next_stage(), config.stages, router);
        Self {
            config,
            table,
            microbatches: BTreeMap::new(),
            handoff,
            contacts: Contacts::default(),
            credits: Credits::default(),
            distrust: Distrust::default(),
            queue: ExecutorQueue::default(),
            unrouted: VecDeque::new(),
            parked: Parked::new(),
            outcomes: Outcomes::default(),
            unsent_gradients: BTreeSet::new(),
            departures: DepartureLog::default(),
            feeders: FeederLinks::default(),
            next_stage_lost: None,
            applied: AppliedSet::default(),
            claims: Vec::new(),
            forfeits: Forfeits::default(),
            given_back: GivenBack::default(),
            forfeiting: BTreeSet::new(),
            feeder_check_at: None,
            heartbeat_at: Time::default(),
            counts: Counts::default(),
            draining: false,
            drained: false,
            finished: false,
            grants_until: None,
            now: Time::default(),
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        self.now = now;
        match event {
            Event::Membership(update) => self.on_membership(now, update),
            Event::Received { from, envelope } => self.on_message(now, from, envelope),
            Event::Completed(reply) => self.on_completed(now, reply),
            Event::Arriving(instance) => self.handoff.neighbours.message(now, instance),
            Event::SendQueueFull { to, message } => self.on_send_queue_full(now, to, &message),
            Event::PeerLost(instance) => self.on_peer_lost(now, instance),
            Event::RoundTrip(instance, time) => self.handoff.neighbours.measured(instance, time),
            Event::Reached => self.handoff.neighbours.reached(now),
            Event::Drain => self.draining = true,
            Event::Finished => self.on_finished(now),
            Event::Timeout => {}
        }
        self.judge_neighbours(now);
        self.request_overdue(now);
        self.give_up_claims(now);
        self.route_waiting(now);
        self.feed_executor(now);
        self.send_claims();
        self.send_heartbeats(now);
        self.notice_drained();
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of `handle`, with [`Event::Timeout`].
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let empty = !self.table.serves(self.config.next_stage());
        let oldest = self.unrouted.front().and_then(|id| self.microbatches.get(id)?.unrouted_since());
        let expires = oldest.filter(|_| empty).map(|since| since + self.config.route_timeout);
        let reasons = [
            (self.handoff.next_check(), Reason::ReplyOverdue),
            (self.feeder_check_at, Reason::FeederOverdue),
            (self.grants_until, Reason::LastGrantsOverdue),
            (expires, Reason::RouteExpires),
            (self.parked.next_expiry(), Reason::ParkedExpires),
            (Some(self.heartbeat_at), Reason::HeartbeatDue),
            (self.handoff.neighbours.next_change(self.now), Reason::NeighbourSilent),
        ];
        reasons.into_iter().filter_map(|(at, reason)| Some((at?, reason))).min_by_key(|(at, _)| *at)
    }

    /// Totals since the start.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The peers of the latest membership table.
    #[must_use]
    pub fn table(&self) -> &PeerTable {
        &self.table
    }

    /// The settings that the stage was made with; they never change.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // --- A forward arrives ----------------------------------------------------------------------------------

    fn on_message(&mut self, now: Time, from: Instance, envelope: Envelope<P>) {
        let Envelope { message, ids, payload } = envelope;
        let (upstream, downstream) = (self.config.upstream(from), self.config.downstream(from));
        self.handoff.neighbours.message(now, from);
        if self.table.feeds(from) {
            self.hear_feeder(from.peer);
        }
        match message {
            Message::Forward {
                microbatch: id,
                attempt,
                purpose,
                is_retry,
                route,
                key,
                downstream_holder,
                ..
            } => {
                let activation = payload;
                let arrival = Arrival {
                    id,
                    attempt,
                    purpose,
                    is_retry,
                    route,
                    key,
                    downstream_holder,
                    ids,
                    activation,
                };
                self.on_forward(now, upstream, arrival);
            }
            Message::StatusRequest { microbatch, attempt, route, key } => {
                self.on_status_request(now, Leg { hop: upstream, attempt }, microbatch, (route, key));
            }
            Message::Backward { microbatch, attempt, loss, path } => {
                let reply = GradientReply { loss, path, gradient: payload };
                self.on_gradient(now, Leg { hop: downstream, attempt }, microbatch, reply);
            }
            Message::StatusReply { microbatch, attempt, status } => {
                self.on_status_reply(now, Leg { hop: downstream, attempt }, microbatch, status);
            }
            Message::Forwarded { microbatch, attempt, next } => {
                self.on_forwarded(Leg { hop: downstream, attempt }, microbatch, next);
            }
            Message::OrphanNotice { microbatch, holder } => self.on_orphan(from, microbatch, holder),
            Message::RecoverRange { first, epoch, from: page } => {
                self.on_recover_range(from, (first, epoch), page);
            }
            Message::ClaimReply { granted, denied, forged } if self.table.feeds(from) => {
                self.on_claim_reply(now, from, &granted, &denied);
                self.on_forged(now, from, &forged);
            }
            Message::Outcomes { ranges } if self.table.feeds(from) => self.on_outcomes(now, from, ranges),
            Message::ClaimReply { .. } | Message::Outcomes { .. } => {}
            Message::Heartbeat(heartbeat) => {
                if let Some(sender) = [upstream, downstream].into_iter().find(|hop| self.table.placed(hop)) {
                    self.handoff.neighbours.heartbeat(now, sender, heartbeat);
                }
            }
            // For the machines beside this one.
            Message::Averaging(_)
            | Message::Transfer(_)
            | Message::Prediction(_)
            | Message::RoundCall { .. } => {}
            Message::Claim { .. }
            | Message::Evaluated { .. }
            | Message::Refused { .. }
            | Message::RoundReport { .. }
            | Message::RecoveryReport(_) => self.count(Note::Misdirected(from)),
        }
    }

    /// Takes a forward, or tells its sender why not.
    fn on_forward(&mut self, now: Time, sender: Hop, mut arrival: Arrival<P>) {
        let (id, attempt) = (arrival.id, arrival.attempt);
        if self.has_ended(id) {
            return self.count(Note::Late(id));
        }
        if !is_expected(&self.table, &sender, id) {
            if let Some(displaced) = self.parked.park(now, sender, arrival) {
                self.count(Note::Foreign(displaced));
            }
            return;
        }
        if !replace_feeder(&self.table, sender, id, &mut arrival.route) {
            return self.count(Note::Foreign(id));
        }
        let upstream = Leg { hop: sender, attempt };
        if !self.config.accepts_route(&arrival.route) || arrival.route.last() != Some(&sender) {
            let proof = RouteProof { microbatch: id, route: arrival.route, key: arrival.key };
            return self.decline(proof);
        }
        if self.microbatches.contains_key(&id) {
            self.count(Note::Duplicate(id));
            return self.change_upstream(now, upstream, id, (arrival.route, arrival.key));
        }
        let takes_slot = arrival.purpose == Purpose::Train && !arrival.is_retry;
        let refused = self.draining || self.refuses(now, sender, &arrival);
        if takes_slot && !refused {
            self.make_room(now);
        }
        if refused || !self.has_room(arrival.purpose, takes_slot) {
            self.count(Note::Busy(id));
            return self.send(sender, Message::StatusReply { microbatch: id, attempt, status: Status::Busy });
        }
        self.take(now, sender, arrival, takes_slot);
    }

    fn take(&mut self, now: Time, sender: Hop, arrival: Arrival<P>, takes_slot: bool) {
        let (id, trains) = (arrival.id, arrival.purpose == Purpose::Train);
        let recovers = trains && !takes_slot;
        self.meet_sender(now, sender, takes_slot);
        if recovers {
            self.count(Note::Recovered(id));
        }
        if let Some(next) = self.given_back.next_attempt(id) {
            self.handoff.number_from(id, next);
        }
        if let Some(holder) = arrival.downstream_holder.filter(|holder| self.table.placed(holder)) {
            self.handoff.hint(id, holder);
        }
        self.microbatches.insert(id, Microbatch::new(arrival, sender, now, takes_slot));
        self.queue.push(id, recovers);
        if trains {
            self.claim(now, id);
        }
    }

    // --- The executor computes ------------------------------------------------------------------------------

    /// Keeps [`EXECUTOR_DEPTH`] jobs with the executor while there are tasks.
    fn feed_executor(&mut self, now: Time) {
        while self.queue.has_room() {
            let Some(id) = self.next_task() else { return };
            if let Some(job) = self.job_of(id) {
                self.queue.started(now);
                self.actions.push_back(Action::Execute(job));
            }
        }
    }

    /// While gradients wait for their grant no others are computed; in a synchronous run, nothing at all. What waits for
    /// the answer of one feeder of several holds up no other, so it is not begun.
    fn next_task(&mut self) -> Option<MicrobatchId> {
        let blocked = self.queue.is_blocked();
        if self.config.synchronous && blocked {
            return None;
        }
        let (microbatches, last, shared) =
            (&self.microbatches, self.config.is_last(), self.table.is_shared());
        let startable = |id: MicrobatchId| {
            let held = microbatches.get(&id).filter(|held| held.computes_gradients_next(last));
            held.is_none_or(|held| !(blocked || shared && held.waits_for_answer(last)))
        };
        self.queue.pop(startable)
    }

    /// The job of a queued microbatch. Its gradients wait for the grant where there is none yet.
    fn job_of(&mut self, id: MicrobatchId) -> Option<Job<P>> {
        let (first, last) = (self.config.stage.0 == 0, self.config.is_last());
        let held = self.microbatches.get_mut(&id)?;
        let job = held.start(id, first, last)?;
        match job.granted() {
            Some(true) => held.update = UpdateState::Applying,
            Some(false) => self.queue.block(id),
            None => {}
        }
        Some(job)
    }

    /// The executor replied: the result goes where it is needed.
    fn on_completed(&mut self, now: Time, reply: JobReply<P>) {
        let JobReply { microbatch: id, outcome } = reply;
        let Some(held) = self.microbatches.get_mut(&id).filter(|held| held.is_running()) else {
            return self.count(Note::Unexpected(id));
        };
        let took = self.queue.replied(now);
        let (trains, last) = (held.trains(), self.config.is_last());
        match (std::mem::replace(&mut held.phase, Phase::Cancelled), outcome) {
            (Phase::Returned(reply), JobOutcome::Applied) => {
                held.phase = Phase::Returned(reply);
                self.applied(id);
            }
            (Phase::Cancelled, outcome) => self.discard(now, id, &outcome),
            (_, JobOutcome::Refused(reason)) => self.refuse(now, id, reason),
            (Phase::Forwarding, JobOutcome::Forwarded { version, activation }) if trains && !last => {
                self.measure(now, took);
                self.computed(now, id, Output { version, activation });
            }
            (Phase::Forwarding, JobOutcome::Evaluated(Evaluation::Activation { version, activation }))
                if !trains =>
            {
                self.computed(now, id, Output { version, activation });
            }
            (Phase::Forwarding, JobOutcome::Evaluated(Evaluation::Loss(loss))) if !trains => {
                self.evaluated(now, id, loss);
            }
            (Phase::Forwarding, JobOutcome::LossAndBackward { loss, gradient }) if trains && last => {
                self.measure(now, took);
                self.return_gradient(id, GradientReply { loss, path: Vec::new(), gradient });
            }
            (Phase::Backwarding { loss, path }, JobOutcome::Backwarded { gradient }) => {
                self.return_gradient(id, GradientReply { loss, path, gradient });
            }
            (phase, outcome) => self.refuse_mismatch(now, id, phase, &outcome),
        }
        self.release_if_over(now, id);
    }

    // --- It goes on -----------------------------------------------------------------------------------------

    /// An activation is computed: it waits for nothing but a replica of the next stage.
    fn computed(&mut self, now: Time, id: MicrobatchId, output: Output<P>) {
        if let Some(held) = self.microbatches.get_mut(&id) {
            held.output = Some(output);
            held.phase = Phase::Unrouted { since: now };
            self.unrouted.push_back(id);
            self.give_back_if_lost(now, id);
        }
    }

    /// Sends computed activations on. An activation that no replica could take for too long is refused.
    fn route_waiting(&mut self, now: Time) {
        while let Some(id) = self.parked.pop_expired(now) {
            self.count(Note::Foreign(id));
        }
        self.give_back_unroutable(now);
        let empty = !self.table.serves(self.config.next_stage());
        let mut taken = true;
        for id in std::mem::take(&mut self.unrouted) {
            let Some(since) = self.microbatches.get(&id).and_then(Microbatch::unrouted_since) else {
                continue;
            };
            if self.ask_next_holder(now, id) {
                continue;
            }
            // Where one finds no replica, the next one does not either.
            taken = taken && self.route(now, id);
            if taken {
                continue;
            }
            self.unrouted.push_back(id);
            if empty && since + self.config.route_timeout <= now {
                self.refuse(now, id, Refusal::Undeliverable);
            }
        }
    }

    /// Sends an activation to a replica of the next stage; `false` if none takes it now.
    fn route(&mut self, now: Time, id: MicrobatchId) -> bool {
        let Some(hop) = self.handoff.choose(now, &self.table) else { return false };
        let Some(held) = self.microbatches.get(&id) else { return true };
        let Some(Output { version, activation }) = held.output.clone() else { return true };
        let (ids, purpose) = (held.ids.clone(), held.purpose);
        let (received, trains, key) = (held.upstream.attempt, held.trains(), held.key.next(hop));
        let route = held.route.iter().copied().chain([self.config.hop()]).collect();
        let is_retry = self.handoff.had_failed(id);
        let downstream_holder = self.handoff.holder_beyond(id);
        let attempt = if trains {
            self.hand_on(now, id, hop)
        } else {
            self.remove(now, id, Completion::Returned);
            received
        };
        if trains && is_retry {
            self.count(Note::Retried(id));
        }
        let attempt = if self.config.breaks(Mutation::OneAttempt) { received } else { attempt };
        let message = Message::Forward {
            microbatch: id,
            attempt,
            purpose,
            is_retry,
            route,
            key,
            downstream_holder,
            version,
        };
        self.send(hop, Envelope { message, ids, payload: activation });
        true
    }

    /// A training microbatch is with `hop` from now on: the gradient is awaited, and upstream gets a receipt.
    fn hand_on(&mut self, now: Time, id: MicrobatchId, hop: Hop) -> Attempt {
        let number = self.handoff.sent(now, id, hop, self.config.status_after);
        if let Some(held) = self.microbatches.get_mut(&id) {
            held.phase = Phase::HandedOn;
            if self.config.breaks(Mutation::ReleaseEarly) {
                held.output = None;
            }
            held.takes_slot &= !self.config.breaks(Mutation::SlotEarly);
            let Leg { hop: upstream, attempt } = held.upstream;
            self.send(upstream, Message::Forwarded { microbatch: id, attempt, next: hop });
        }
        number
    }

    // --- The gradient comes back ----------------------------------------------------------------------------

    /// The first gradient wins, whichever of the replicas that were given the microbatch computed it.
    fn on_gradient(&mut self, now: Time, sender: Leg, id: MicrobatchId, reply: GradientReply<P>) {
        if !self.table.placed(&sender.hop) || !self.config.accepts_path(&reply.path, sender.hop) {
            return self.count(Note::Foreign(id));
        }
        let Some(held) = self.microbatches.get(&id) else {
            return self.count(if self.has_ended(id) { Note::Late(id) } else { Note::Unknown(id) });
        };
        if !self.handoff.contains(id, sender) {
            return self.count(Note::Foreign(id));
        }
        if !held.awaits_gradient() {
            return self.count(Note::Duplicate(id));
        }
        self.handoff.complete(now, id, Completion::Returned);
        if let Some(held) = self.microbatches.get_mut(&id) {
            let recovers = !held.takes_slot;
            held.phase = Phase::BackwardQueued { since: now, reply };
            self.unrouted.retain(|&unrouted| unrouted != id);
            self.queue.push(id, recovers);
            self.set_aside_if_lost(id);
        }
    }

    /// The boundary gradient is computed: it goes up at once, and a copy stays.
    fn return_gradient(&mut self, id: MicrobatchId, mut reply: GradientReply<P>) {
        let Some(held) = self.microbatches.get_mut(&id) else { return };
        reply.path.push(self.config.hop());
        // A feeder only hears that the microbatch is back.
        if self.config.stage.0 == 0 {
            reply.gradient = P::default();
        }
        held.takes_slot = false;
        held.phase = Phase::Returned(reply);
        let applied = held.update == UpdateState::Applying;
        if !applied {
            held.update = UpdateState::AwaitingGrant;
        }
        self.send_gradient(id);
        if applied { self.applied(id) } else { self.settle_update(id) }
    }

    fn send_gradient(&mut self, id: MicrobatchId) {
        let Some(held) = self.microbatches.get(&id) else { return };
        for receiver in [Some(held.upstream), held.second_upstream].into_iter().flatten() {
            self.send_gradient_to(receiver, id);
        }
    }

    fn send_gradient_to(&mut self, receiver: Leg, id: MicrobatchId) {
        let Some(held) = self.microbatches.get(&id) else { return };
        let Phase::Returned(GradientReply { loss, path, gradient }) = held.phase.clone() else { return };
        let message = Message::Backward { microbatch: id, attempt: receiver.attempt, loss, path };
        self.send(receiver.hop, Envelope::with_payload(message, gradient));
    }

    fn evaluated(&mut self, now: Time, id: MicrobatchId, loss: Loss) {
        let told =
            self.microbatches.get(&id).map(|held| (held.feeder(), held.proof(id), held.upstream.attempt));
        self.remove(now, id, Completion::Returned);
        if let Some((Some(feeder), proof, attempt)) = told {
            self.send(feeder, Message::Evaluated { proof, attempt, loss });
            self.count(Note::Evaluated(id));
        }
    }

    fn send(&mut self, to: Hop, envelope: impl Into<Envelope<P>>) {
        self.actions.push_back(Action::Send { to: to.peer(), envelope: envelope.into() });
    }

    fn count(&mut self, note: Note) {
        self.counts.add(&note);
        self.actions.push_back(Action::Counted(note));
    }
}
