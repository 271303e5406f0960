//! The life of a volunteer's process: it registers, waits for a place, builds its shard, and then performs the actions
//! of its replica.

use crate::averaging::FragmentSize;
use crate::coordinator::{self, Join, JoinRefusal};
use crate::replica::{Action, Begin, Config, Confirmation, End, Event, Unfinished};
use crate::router::RouterFactory as _;
use crate::transfer::{Limits, SketchSecret, StateId, TransferMessage};
use crate::{
    Directive, Duration, Envelope, Incarnation, Instance, MemberState, Message, MicrobatchId, PeerId,
    Replica, Role, StageIndex, WeightsPolicy, averaging, stage,
};

use super::super::delivery::{Delivery, Purpose};
use super::super::executor::Task;
use super::super::payload::{Payload, digest, sketch};
use super::super::process::{Liveness, ReplicaProcess, join};
use super::super::state::{self, Weights};
use super::{HEARTBEAT, Machine, REQUEST_MAX, World};

/// How long the coordinator's confirmation of a membership is awaited.
const CONFIRM_WITHIN: Duration = Duration::from_secs(4);
/// A heartbeat fails after this.
const CALL_WITHIN: Duration = Duration::from_secs(3);
/// Building a shard takes a random time below this.
const BUILD_MAX: Duration = Duration::from_secs(2);
/// A process that left comes back after this.
const BACK_AFTER: Duration = Duration::from_secs(3);

impl World {
    // --- Before the replica ---------------------------------------------------------------------------------

    /// Starts a process, without any state.
    pub(super) fn start(&mut self, index: usize) {
        if self.replicas[index].is_alive() {
            return;
        }
        let Instance { peer, incarnation } = self.replicas[index].instance;
        let incarnation = Incarnation(incarnation.0 + 1);
        let (kept, number) = (self.replicas[index].kept.take(), self.replicas[index].number);
        if incarnation > Incarnation(1) {
            let members = self.coordinator.membership().members;
            let known = members.iter().any(|member| member.instance.peer == peer);
            self.model.path(if known { "restarted before it was missed" } else { "rejoined" });
        }
        self.replicas[index] = ReplicaProcess {
            liveness: Liveness::Awake,
            kept,
            number,
            ..ReplicaProcess::new(index, incarnation, &self.scenario)
        };
        self.model.started(index);
        self.note_capacity(index);
        self.queue.set_alarm(Machine::Replica(index), None);
        self.register(index);
        self.soon(Delivery::Heartbeat(index, incarnation));
    }

    fn register(&mut self, index: usize) {
        self.replicas[index].registered_at = self.now();
        let ReplicaProcess { instance: from, number, kept, .. } = &self.replicas[index];
        let holds = kept.as_ref().map(|&(stage, _)| stage);
        let join = Join { holds, ..join(*from, *number, Role::Replica) };
        self.tell_coordinator(join.from.peer, coordinator::Event::Join(join), Purpose::Routine);
    }

    /// Whether the process is a member, or may still become one.
    fn is_registered(&self, index: usize) -> bool {
        let process = &self.replicas[index];
        process.admitted || self.now() < process.registered_at + REQUEST_MAX
    }

    /// The request to join failed. The process starts again, as another instance.
    fn restart(&mut self, index: usize) {
        self.replicas[index].liveness = Liveness::Dead;
        self.note_capacity(index);
        self.start(index);
    }

    /// Sends a heartbeat, unless the reply to the last may still come.
    fn send_due_heartbeat(&mut self, index: usize) {
        let process = &self.replicas[index];
        let waits = process.heartbeat_sent_at.is_some_and(|at| self.now() < at + CALL_WITHIN);
        if process.admitted && !waits {
            self.replicas[index].heartbeat_sent_at = Some(self.now());
            self.send_heartbeat(index, Purpose::Routine);
        }
    }

    /// Opens the stream of tables again if it broke.
    fn open_tables(&mut self, index: usize) {
        if self.replicas[index].tables_open_at.is_some_and(|at| at <= self.now()) {
            let table = self.whole_table();
            self.send_table(index, table);
        }
    }

    fn send_heartbeat(&mut self, index: usize, purpose: Purpose) {
        let process = &self.replicas[index];
        let from = process.instance;
        let progress =
            process.replica.as_ref().map(|replica| replica.progress(self.now())).unwrap_or_default();
        self.tell_coordinator(from.peer, coordinator::Event::Heartbeat { from, progress }, purpose);
    }

    pub(super) fn deliver_to_process(&mut self, index: usize, delivery: Delivery) {
        match delivery {
            Delivery::Replica(_, _, event) => {
                if let Some(event) = self.swallow(index, event) {
                    self.at_replica(index, event);
                }
            }
            Delivery::Table(_, _, update) => {
                let Some(replica) = &self.replicas[index].replica else { return };
                let update = self.read(update, replica.table().version());
                self.at_replica(index, Event::Membership(update));
            }
            Delivery::State(_, _, reply, purpose) => self.on_reply(index, &reply, purpose),
            Delivery::NotNeeded(..) => self.end_process(index, None),
            Delivery::Built(_, _, stage) => self.on_built(index, stage),
            Delivery::Ran(..) => self.on_ran(index),
            Delivery::Heartbeat(_, incarnation) => {
                if !self.is_registered(index) {
                    return self.restart(index);
                }
                if std::mem::take(&mut self.replicas[index].is_refused) {
                    self.register(index);
                }
                self.send_due_heartbeat(index);
                self.open_tables(index);
                self.measure_links(index);
                self.lie(index);
                self.queue.schedule_in(HEARTBEAT, Delivery::Heartbeat(index, incarnation));
            }
            Delivery::ConfirmExpires(..) => {
                self.at_replica(index, Event::Confirmed(Confirmation::Unreachable));
            }
            _ => {}
        }
    }

    /// The coordinator answered.
    fn on_reply(&mut self, index: usize, reply: &coordinator::Reply, purpose: Purpose) {
        if purpose == Purpose::Routine {
            self.replicas[index].heartbeat_sent_at = None;
        }
        match reply {
            coordinator::Reply::Noted(_) if purpose == Purpose::Ready => {}
            coordinator::Reply::Noted(state) | coordinator::Reply::Joined(state) => {
                self.on_state(index, *state, purpose);
            }
            coordinator::Reply::Unknown if self.replicas[index].admitted => self.on_unknown(index, purpose),
            coordinator::Reply::NotAMember => self.on_expelled(index, purpose),
            coordinator::Reply::JoinRefused(JoinRefusal::Former { .. }) => {
                self.end_process(index, Some(Duration::ZERO));
            }
            coordinator::Reply::JoinRefused(JoinRefusal::AlreadyRuns { .. }) => {
                self.model.path("refused beside its former start");
                self.replicas[index].is_refused = true;
            }
            coordinator::Reply::JoinRefused(JoinRefusal::Evicted { .. }) => self.end_process(index, None),
            _ => {}
        }
    }

    /// The coordinator does not know the process: it may have been started again, and gets its newest table back.
    fn on_unknown(&mut self, index: usize, purpose: Purpose) {
        let process = &self.replicas[index];
        let table = process.replica.as_ref().map(|replica| replica.table().membership());
        match (table, purpose) {
            (Some(table), Purpose::Routine | Purpose::Ready | Purpose::Done | Purpose::Confirm) => {
                let (from, table) = (process.instance, Box::new(table));
                let returned = coordinator::Event::TableReturned { from, table };
                let confirms = purpose.confirms();
                self.tell_coordinator(from.peer, returned, Purpose::Return { confirms });
            }
            (None, _) | (_, Purpose::Return { .. }) => self.on_expelled(index, purpose),
        }
    }

    /// The coordinator told the state of the process: the reaction depends on the phase of the process.
    fn on_state(&mut self, index: usize, state: MemberState, purpose: Purpose) {
        self.replicas[index].admitted = true;
        if purpose.confirms() {
            return self.at_replica(index, Event::Confirmed(Confirmation::Member));
        }
        let finished = self.coordinator.tells_end(self.replicas[index].instance.peer);
        if self.replicas[index].replica.is_some() {
            let directive = match state {
                _ if finished => Directive::Finished,
                MemberState::Loading(stage) => Directive::Serve(stage),
                MemberState::Serving(_)
                | MemberState::Standby
                | MemberState::Feeding
                | MemberState::Keeping(_)
                | MemberState::Reading => Directive::Continue,
            };
            self.at_replica(index, Event::Directive(directive));
        } else if finished {
            self.end_process(index, None);
        } else if let MemberState::Loading(stage) = state
            && !std::mem::replace(&mut self.replicas[index].is_building, true)
        {
            let incarnation = self.replicas[index].instance.incarnation;
            let delay = self.time_between(Duration::from_millis(50), BUILD_MAX);
            self.queue.schedule_in(delay, Delivery::Built(index, incarnation, stage));
        }
    }

    /// The coordinator does not know this start any more.
    fn on_expelled(&mut self, index: usize, purpose: Purpose) {
        if !self.replicas[index].admitted {
            return;
        }
        if self.replicas[index].replica.is_none() {
            return self.end_process(index, Some(Duration::ZERO));
        }
        let confirmed = Event::Confirmed(Confirmation::NotAMember);
        self.at_replica(index, if purpose.confirms() { confirmed } else { Event::Expelled });
    }

    fn on_built(&mut self, index: usize, stage: StageIndex) {
        let scenario = &self.scenario;
        let process = &mut self.replicas[index];
        let mut config = stage::Config::new(process.instance, stage, scenario.stages);
        config.slots = process.slots;
        config.status_after = scenario.status_after;
        #[cfg(test)]
        {
            config.mutation = scenario.mutation;
        }
        let limits =
            Limits { bytes_max: Weights::bytes(scenario.fragments()), chunk_bytes_max: state::chunk_bytes() };
        let kept = process.kept.take().filter(|&(kept, _)| kept == stage);
        let begin = if kept.is_some() { Begin::Kept(limits) } else { Begin::FromDonor(limits) };
        if let Some((_, weights)) = kept {
            process.executor.weights = weights;
        }
        let (fragments, fragment_size) = (scenario.fragments(), FragmentSize::default());
        let gradient_accumulation_steps = scenario.gradient_accumulation_steps;
        let mut secret = SketchSecret::default();
        secret.0[..8].copy_from_slice(&process.instance.incarnation.0.to_be_bytes());
        let weights = WeightsPolicy::Open;
        let config = Config {
            stage: config,
            gradient_accumulation_steps,
            fragments,
            fragment_size,
            begin,
            weights,
            digest,
            sketch,
            secret,
        };
        let router = scenario.router.build(self.rng.next_u64());
        process.replica = Some(Replica::new(config, router));
        self.model.started(index);
        let table = self.whole_table();
        self.send_table(index, table);
    }

    // --- The replica ----------------------------------------------------------------------------------------

    pub(super) fn at_replica(&mut self, index: usize, event: Event<Payload>) {
        let now = self.now();
        let process = &mut self.replicas[index];
        let Some(replica) = process.replica.as_mut() else { return };
        let stores = matches!(&event, Event::Received { envelope, .. }
            if matches!(envelope.message, Message::Forward { .. }));
        let announcer = announcer(&event);
        let arrives = handed_over(&event);
        let held: Vec<_> = announcer.iter().flat_map(|_| replica.stage().ids()).collect();
        self.model.replica_hears(index, &event, replica);
        if let Event::Averaged(averaging::Reply::Applied { .. }) = &event {
            let rule = self.model.means.replied(process.instance);
            self.model.check(rule);
        }
        let served = replica.is_serving();
        replica.handle(now, event);
        let serves = replica.is_serving();
        while let Some(action) = self.replicas[index].replica.as_mut().and_then(Replica::poll_action) {
            self.act(index, action);
        }
        if stores {
            self.check_slots(index);
        }
        if let Some(microbatch) = arrives {
            self.note_arrival(index, microbatch);
        }
        if let Some(feeder) = announcer {
            self.check_released(index, feeder, &held);
        }
        if serves != served {
            self.note_capacity(index);
        }
        self.note_activity(index);
        let process = &self.replicas[index];
        let alarm = process.replica.as_ref().filter(|_| process.is_alive()).and_then(Replica::poll_timeout);
        self.queue.set_alarm(Machine::Replica(index), alarm.map(|(at, _)| at));
    }

    fn check_released(&mut self, index: usize, feeder: Instance, held: &[MicrobatchId]) {
        let by = self.feeder_of(feeder.peer);
        let replica = self.replicas[index].replica.as_ref();
        let hears = replica.filter(|replica| replica.is_serving() && replica.table().feeds(feeder));
        if let (Some(by), Some(replica)) = (by, hears) {
            let resumed_at = self.replicas[index].resumed_at;
            self.model.released((by, feeder.peer), resumed_at, held, replica);
        }
    }

    fn act(&mut self, index: usize, action: Action<Payload>) {
        let process = &mut self.replicas[index];
        let me = process.instance;
        if let Some(replica) = &process.replica {
            self.model.replica_acts(index, &action, replica);
        }
        match action {
            Action::Execute(job) => self.compute(index, job),
            Action::Average(job) => self.average(index, job),
            Action::StepRest => self.submit_short(index, Task::StepRest),
            // No reader is a member of this world.
            Action::Predict(_) => {}
            Action::Send { to, envelope } => self.say(index, to, envelope),
            Action::Export { state } => self.export(index, state),
            Action::SendChunk { to, state, chunk, offset, bytes } => {
                self.send_chunk(index, to, (state, chunk), (offset, bytes));
            }
            Action::Sketch { to, state, seed } => self.sketch(index, to, state, seed),
            Action::Release { state } => process.executor.release(state),
            Action::Begin { .. } => process.executor.begin_state(),
            Action::Store { offset, payload } => {
                if let Payload::Chunk(words) = payload {
                    process.executor.store(offset, &words);
                }
            }
            Action::Import { .. } => self.submit_short(index, Task::Import),
            Action::Ready { initial } => {
                let Some(stage) = process.replica.as_ref().map(|replica| replica.config().stage.stage) else {
                    return;
                };
                let ready = coordinator::Event::Ready { from: me, stage, initial };
                self.tell_coordinator(me.peer, ready, Purpose::Ready);
            }
            Action::Confirm => {
                self.send_heartbeat(index, Purpose::Confirm);
                self.queue.schedule_in(CONFIRM_WITHIN, Delivery::ConfirmExpires(index, me.incarnation));
            }
            Action::Counted(_) => {}
            Action::End(end) => self.replica_ended(index, end),
        }
    }

    // --- The state ------------------------------------------------------------------------------------------

    fn send_chunk(
        &mut self,
        index: usize,
        to: PeerId,
        (state, chunk): (StateId, u32),
        (offset, bytes): (u64, u32),
    ) {
        let process = &self.replicas[index];
        let me = process.instance;
        let words = process.executor.chunk(state, offset, bytes);
        let Some(words) = words.and_then(|words| self.forge_chunk(index, chunk, words)) else { return };
        let message = Message::Transfer(TransferMessage::Chunk { state, chunk });
        self.post(me, to, Envelope::with_payload(message, Payload::Chunk(words)));
    }

    /// Reports the round trips to distant replicas, as the transport would measure them.
    fn measure_links(&mut self, index: usize) {
        self.measure_ways(index);
        let links = &self.scenario.links;
        let far = links.distances.iter().filter_map(|(&(a, b), &time)| match (a == index, b == index) {
            (true, _) => Some((b, time)),
            (_, true) => Some((a, time)),
            _ => None,
        });
        let round_trips: Vec<_> = far
            .map(|(other, time)| (self.replicas[other].instance, 2 * (time + links.delay_max / 2)))
            .collect();
        for (other, round_trip) in round_trips {
            self.at_replica(index, Event::RoundTrip(other, round_trip));
        }
    }

    // --- The end --------------------------------------------------------------------------------------------

    fn replica_ended(&mut self, index: usize, end: End) {
        match end {
            End::RunFinished => {
                self.finish_tasks(index);
                self.check_rest(index);
                self.end_process(index, None);
            }
            End::Diverged { .. } => self.end_process(index, None),
            End::Left(unfinished) => {
                self.finish_tasks(index);
                self.check_rest(index);
                match unfinished {
                    None => self.check_departure(index),
                    Some(Unfinished::Microbatches(_)) => self.model.path("left with microbatches"),
                    Some(Unfinished::Fragments(_)) => self.model.path("left with fragments unaveraged"),
                }
                self.note_lost(index);
                self.end_process(index, Some(BACK_AFTER));
            }
            End::Expelled { has_state } => {
                let is_member = self.state_of(self.replicas[index].instance).is_some();
                self.model.path(if is_member { "gave way to trained weights" } else { "expelled" });
                self.keep_weights(index, has_state);
                self.end_process(index, Some(Duration::ZERO));
            }
        }
    }

    /// An expelled process keeps the weights of its stage, apart from the parts of a round that is open, and from a step that
    /// is not complete.
    fn keep_weights(&mut self, index: usize, has_state: bool) {
        let process = &mut self.replicas[index];
        let stage = process.replica.as_ref().map(|replica| replica.config().stage.stage);
        let weights = || process.executor.weights.clone().at_rest();
        process.kept = stage.filter(|_| has_state).map(|stage| (stage, weights()));
    }

    /// Checks that a replica which ends in order holds no contribution that waits for the rest of its step.
    fn check_rest(&mut self, index: usize) {
        let process = &self.replicas[index];
        let (me, waiting) = (process.instance, process.executor.weights.waiting());
        self.model.require(waiting == 0, || format!("{me:?} ends with {waiting} contributions in no step"));
    }

    /// Checks that a replica which leaves without unfinished work has no contribution that the other replicas lack.
    fn check_departure(&mut self, index: usize) {
        self.model.path("left");
        let process = &self.replicas[index];
        let Some(replica) = &process.replica else { return };
        let table = replica.table();
        let others = table.serving(replica.config().stage.stage).count() > 1;
        if others && table.feeders().next().is_some() && self.scenario.averaging.is_some() {
            self.model.path("left with everything averaged");
            self.model.leaves(process.instance, process.executor.weights.unaveraged());
        }
    }

    /// The process dies or leaves with contributions that no other has.
    pub(super) fn note_lost(&mut self, index: usize) {
        let process = &self.replicas[index];
        let hop = process
            .replica
            .as_ref()
            .filter(|replica| replica.is_serving())
            .map(|replica| replica.config().stage.hop());
        if let Some(hop) = hop {
            self.model.loses(hop, process.executor.own());
        }
    }

    /// Ends a process, and starts it again after `back_after`.
    fn end_process(&mut self, index: usize, back_after: Option<Duration>) {
        let from = self.replicas[index].instance;
        self.replicas[index].liveness = Liveness::Dead;
        self.note_capacity(index);
        self.tell_coordinator(from.peer, coordinator::Event::Leave { from }, Purpose::Routine);
        self.break_connections(from, Duration::ZERO);
        if let Some(after) = back_after {
            self.queue.schedule_in(after, Delivery::Start(index));
        }
    }
}

/// The training microbatch that the event hands over.
pub(super) fn handed_over(event: &Event<Payload>) -> Option<MicrobatchId> {
    let Event::Received { envelope, .. } = event else { return None };
    match envelope.message {
        Message::Forward { microbatch, .. } if !microbatch.is_evaluation() => Some(microbatch),
        _ => None,
    }
}

/// The feeder whose announcement of outcomes the event is.
fn announcer(event: &Event<Payload>) -> Option<Instance> {
    match event {
        Event::Received { from, envelope } if matches!(envelope.message, Message::Outcomes { .. }) => {
            Some(*from)
        }
        _ => None,
    }
}
