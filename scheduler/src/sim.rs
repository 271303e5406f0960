//! A seeded world around the production state machines: a coordinator, a feeder with its journal, replicas with
//! executors, a network that delays, loses, breaks and splits. One seed gives one run; every run has a step bound.
//!
//! The machines are the very types production runs. What they do is watched by a [`reference_model::Judge`], a reference model
//! that knows what must hold whatever happens.

mod averaging;
mod executor;
mod fault;
mod network;
mod noise;
mod process;
mod queue;
mod reference_model;
mod scenario;
mod state;
mod tests;

use std::collections::BTreeMap;

use crate::coordinator::RunState;
use crate::router::RouterFactory;
use crate::stage::Progress;
use crate::{
    Coordinator, Duration, Feeder, Incarnation, Membership, Message, PeerId, Purpose, Rng, Role, Stage,
    Standing, Time, coordinator, feeder, stage,
};

use averaging::{News, Rounds};
use executor::time_between;
use fault::Fault;
use network::{Fate, Network};
use process::{FeederNode, Liveness, ReplicaNode, address, coordinator_key};
use queue::{Alarms, Machine};
use reference_model::Judge;
use scenario::Scenario;

const HEARTBEAT: Duration = Duration::from_secs(1);
/// How long a connection to a silent peer lives.
const IDLE: Duration = Duration::from_secs(5);

/// What is on its way, or due.
#[derive(Clone, Debug)]
enum Delivery {
    Coordinator(coordinator::Event),
    /// To a feeder, if it is still that start of it.
    Feeder(usize, Incarnation, feeder::Event<u8>),
    /// To a replica, if it is still that start of it.
    Replica(usize, Incarnation, stage::Event<u8>),
    /// To the rounds of a replica, if it is still that start of it.
    Rounds(usize, Incarnation, crate::averaging::Event<averaging::Numbers>),
    Table(usize, Incarnation, Membership),
    /// The coordinator's answer to a heartbeat.
    Standing(usize, Incarnation, Option<Standing>),
    Join(usize),
    Beat(usize, Incarnation),
    StartFeeder(usize),
    FeederBeat(usize, Incarnation),
    Fault(Fault),
    Resume(usize, Incarnation),
}

/// The world.
#[derive(Debug)]
pub(crate) struct World {
    scenario: Scenario,
    rng: Rng,
    now: Time,
    sequence: u64,
    steps: u64,
    /// Ordered by time, then by when it was sent off: no ties.
    queue: BTreeMap<(Time, u64), Delivery>,
    alarms: Alarms,
    coordinator: Coordinator,
    /// The first, and its successors in a row.
    feeders: Vec<FeederNode>,
    replicas: Vec<ReplicaNode>,
    network: Network,
    judge: Judge,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut config = coordinator::Config::new(scenario.stages);
        config.replicas_per_stage = u32::from(scenario.replicas);
        let replicas = (0..scenario.members()).map(|index| ReplicaNode::new(index, &scenario)).collect();
        let mut world = Self {
            rng: Rng::new(scenario.seed),
            now: Time(0),
            sequence: 0,
            steps: 0,
            queue: BTreeMap::new(),
            alarms: Alarms::default(),
            coordinator: Coordinator::new(config),
            feeders: vec![FeederNode::new(0)],
            replicas,
            network: Network::default(),
            judge: Judge::new(scenario.seed),
            scenario,
        };
        world.open();
        world
    }

    /// Plays until the feeder is done and nothing is held.
    pub(crate) fn run(&mut self) -> &Judge {
        while !self.is_over() {
            self.step();
        }
        &self.judge
    }

    fn open(&mut self) {
        self.send_in(Duration::ZERO, Delivery::StartFeeder(0));
        if let Some(at) = self.scenario.stop_at {
            self.send_in(at, Delivery::Feeder(0, Incarnation(1), feeder::Event::Stop));
        }
        for index in 0..self.replicas.len() {
            self.soon(Delivery::Join(index));
        }
        for measure in self.scenario.evaluations.clone() {
            let event = feeder::Event::Evaluate { first: 0, count: measure.count, purpose: measure.purpose };
            self.send_in(measure.at, Delivery::Feeder(0, Incarnation(1), event));
        }
        for (at, fault) in self.scenario.faults.clone() {
            self.send_in(at, Delivery::Fault(fault));
        }
    }

    fn step(&mut self) {
        self.steps += 1;
        let limit = self.scenario.steps_max;
        assert!(
            self.steps < limit,
            "seed {}: not over after {limit} steps\n{}",
            self.scenario.seed,
            self.describe()
        );
        let due = self.queue.first_key_value().map(|(&(at, _), _)| at);
        let woken = self.wake(due);
        if !woken && let Some(((at, _), delivery)) = self.queue.pop_first() {
            self.now = self.now.max(at);
            self.deliver(delivery);
        }
        let machines = self.feeders.iter().filter_map(|feeder| feeder.machine.as_ref());
        self.judge.in_flight(machines.map(|feeder| feeder.counts().in_flight).max().unwrap_or(0));
    }

    /// Fires the first timeout that is due before the next delivery.
    fn wake(&mut self, due: Option<Time>) -> bool {
        let Some((at, machine)) = self.alarms.pop_until(due) else { return false };
        self.now = self.now.max(at);
        match machine {
            Machine::Feeder(index) => self.at_feeder(index, feeder::Event::Timeout),
            Machine::Coordinator => self.at_coordinator(coordinator::Event::Timeout),
            Machine::Replica(index) => {
                if self.replicas[index].liveness == Liveness::Awake {
                    self.at_replica(index, stage::Event::Timeout);
                }
            }
            Machine::Rounds(index) => {
                if self.replicas[index].liveness == Liveness::Awake {
                    self.at_rounds(index, crate::averaging::Event::Timeout);
                }
            }
        }
        true
    }

    fn set_alarm(&mut self, machine: Machine) {
        let at = match machine {
            Machine::Feeder(index) => {
                self.feeders[index].machine.as_ref().and_then(Feeder::poll_timeout).map(|(at, _)| at)
            }
            Machine::Coordinator => self.coordinator.poll_timeout().map(|(at, _)| at),
            Machine::Replica(index) => {
                self.replicas[index].stage.as_ref().and_then(Stage::poll_timeout).map(|(at, _)| at)
            }
            Machine::Rounds(index) => self.replicas[index].rounds.as_ref().and_then(Rounds::deadline),
        };
        self.alarms.set(machine, at);
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Coordinator(event) => self.at_coordinator(event),
            Delivery::Feeder(index, incarnation, event) => {
                if self.feeders[index].incarnation == incarnation {
                    self.at_feeder(index, event);
                }
            }
            Delivery::Join(index) => self.join(index),
            Delivery::StartFeeder(index) => self.start_feeder(index),
            Delivery::FeederBeat(index, incarnation) => self.beat_feeder(index, incarnation),
            Delivery::Fault(fault) => self.strike(fault),
            Delivery::Resume(index, incarnation) => self.resume(index, incarnation),
            Delivery::Replica(index, incarnation, _)
            | Delivery::Rounds(index, incarnation, _)
            | Delivery::Table(index, incarnation, _)
            | Delivery::Standing(index, incarnation, _)
            | Delivery::Beat(index, incarnation) => {
                let replica = &mut self.replicas[index];
                if replica.incarnation != incarnation {
                    return;
                }
                match replica.liveness {
                    Liveness::Dead => {}
                    Liveness::Suspended => replica.backlog.push(delivery),
                    Liveness::Awake => self.deliver_to_replica(index, delivery),
                }
            }
        }
    }

    fn deliver_to_replica(&mut self, index: usize, delivery: Delivery) {
        match delivery {
            Delivery::Replica(_, _, event) => self.at_replica(index, event),
            Delivery::Rounds(_, _, event) => self.at_rounds(index, event),
            Delivery::Table(_, _, membership) => self.at_table(index, membership),
            Delivery::Standing(_, incarnation, Some(_)) => {
                self.at_replica(index, stage::Event::Reached);
                if std::mem::take(&mut self.replicas[index].unsure) {
                    debug_assert_eq!(self.replicas[index].incarnation, incarnation);
                    self.at_replica(index, stage::Event::Confirmed);
                }
            }
            Delivery::Standing(_, incarnation, None) => self.revoked(index, incarnation),
            Delivery::Beat(..) => self.beat_replica(index),
            _ => {}
        }
    }

    // --- The machines ---------------------------------------------------------------------------------------

    fn at_coordinator(&mut self, event: coordinator::Event) {
        self.coordinator.handle(self.now, event);
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                coordinator::Action::Answer { to, answer } => {
                    if let Some(index) = self.feeder_of(to) {
                        self.answer_feeder(index, &answer);
                    } else if let Some(index) = self.replica_of(to) {
                        self.answer_replica(index, &answer);
                    }
                }
                coordinator::Action::Membership(membership) => {
                    for index in 0..self.feeders.len() {
                        self.tell_table(index, membership.clone());
                    }
                    for index in 0..self.replicas.len() {
                        self.send_table(index, membership.clone());
                    }
                }
                coordinator::Action::Finished => self.judge.finished(),
            }
        }
        self.set_alarm(Machine::Coordinator);
    }

    fn answer_replica(&mut self, index: usize, answer: &coordinator::Answer) {
        let standing = match answer {
            coordinator::Answer::Noted(standing) | coordinator::Answer::Joined(standing) => Some(*standing),
            coordinator::Answer::NotAMember => None,
            _ => return,
        };
        let ReplicaNode { peer, incarnation, .. } = self.replicas[index];
        self.carry(coordinator_key(), peer, Delivery::Standing(index, incarnation, standing));
    }

    fn answer_feeder(&mut self, index: usize, answer: &coordinator::Answer) {
        match answer {
            coordinator::Answer::Leased(lease) => {
                self.tell_feeder(index, coordinator_key(), feeder::Event::Lease(*lease));
            }
            coordinator::Answer::Joined(_) => self.feeders[index].admitted = true,
            // Whoever started it does as the refusal says.
            coordinator::Answer::JoinRefused(coordinator::JoinRefusal::NothingToSucceed) => {
                self.feeders[index].role = Role::Feeder;
            }
            coordinator::Answer::NotAMember if self.feeders[index].admitted => self.expel_feeder(index),
            _ => {}
        }
    }

    /// The process ends. It is started again, and finds in the table who has its ids.
    fn expel_feeder(&mut self, index: usize) {
        let FeederNode { peer, incarnation, .. } = self.feeders[index];
        let table = self.coordinator.membership();
        if table.members.iter().any(|member| (member.peer, member.incarnation) == (peer, incarnation)) {
            // The answer is to a former start.
            return;
        }
        self.judge.path("feeder expelled");
        self.feeders[index].machine = None;
        if !table.successions.is_empty() && !self.feeders[index].journal.is_empty() {
            self.send_in(Duration::from_secs(2), Delivery::StartFeeder(index));
        }
    }

    fn send_table(&mut self, index: usize, membership: Membership) {
        let (peer, incarnation) = (self.replicas[index].peer, self.replicas[index].incarnation);
        self.carry(coordinator_key(), peer, Delivery::Table(index, incarnation, membership));
    }

    fn at_feeder(&mut self, index: usize, event: feeder::Event<u8>) {
        let Some(machine) = self.feeders[index].machine.as_mut() else { return };
        machine.handle(self.now, event);
        let (peer, incarnation) = (self.feeders[index].peer, self.feeders[index].incarnation);
        while let Some(action) = self.feeders[index].machine.as_mut().and_then(Feeder::poll_action) {
            if let Some(machine) = &self.feeders[index].machine {
                self.judge.feeder_acts(index, &action, machine);
            }
            match action {
                feeder::Action::Journal(record) => self.feeders[index].journal.push(record),
                feeder::Action::Draw { microbatch, .. } => {
                    let event = feeder::Event::Drawn { microbatch, ids: 1 };
                    self.soon(Delivery::Feeder(index, incarnation, event));
                }
                feeder::Action::Send { to, message } => self.post(peer, incarnation, to, message),
                feeder::Action::RequestLease { count } => {
                    self.tell_coordinator(
                        peer,
                        coordinator::Event::LeaseRequest { peer, incarnation, count },
                    );
                }
                feeder::Action::Done => {
                    self.tell_coordinator(peer, coordinator::Event::FeederDone { peer, incarnation });
                }
                feeder::Action::Succeeded { .. } => {
                    self.judge.path("yielded to a successor");
                    self.feeders[index].machine = None;
                }
                feeder::Action::Outcome { .. }
                | feeder::Action::EvaluationDone(_)
                | feeder::Action::EvaluationDeclined => {}
            }
        }
        self.set_alarm(Machine::Feeder(index));
    }

    fn at_replica(&mut self, index: usize, event: stage::Event<u8>) {
        let now = self.now;
        let replica = &mut self.replicas[index];
        let Some(stage) = replica.stage.as_mut() else { return };
        let received = matches!(event, stage::Event::Received { message: Message::Forward { .. }, .. });
        self.judge.replica_hears(index, &event, stage);
        let news = News::of(&event);
        stage.handle(now, event);
        let mut actions = Vec::new();
        while let Some(action) = stage.poll_action() {
            actions.push(action);
        }
        let (peer, incarnation) = (replica.peer, replica.incarnation);
        let stashes = |action| matches!(action, &stage::Action::Execute(stage::Job::Forward { .. }));
        let takes = received || actions.iter().any(stashes);
        for action in actions {
            if let Some(stage) = &self.replicas[index].stage {
                self.judge.replica_acts(index, &action, stage);
            }
            match action {
                stage::Action::Execute(job) => self.execute(index, &job),
                stage::Action::Send { to, message } => self.post(peer, incarnation, to, message),
                stage::Action::Confirm => {
                    self.judge.path("suspension noticed");
                    self.replicas[index].unsure = true;
                }
                stage::Action::Counted(_) => {}
                stage::Action::Drained => self.leave(index),
            }
        }
        let replica = &self.replicas[index];
        if let Some(stage) = replica.stage.as_ref().filter(|_| takes) {
            self.judge.slots(index, stage, &replica.executor.stashes);
        }
        self.set_alarm(Machine::Replica(index));
        self.tell_rounds(index, news);
    }

    fn execute(&mut self, index: usize, job: &stage::Job<u8>) {
        let refuse = self.rng.chance(self.scenario.refused_per_mille, 1_000);
        let replica = &mut self.replicas[index];
        let service = time_between(&mut self.rng, replica.service / 2, replica.service * 3 / 2);
        let Some(stage) = replica.stage.as_ref() else { return };
        let (at, incarnation) = (stage.config().stage, replica.incarnation);
        let last = at.0 + 1 == self.scenario.stages;
        let effect = replica.executor.run(self.now, job, last, refuse, service);
        if let Some(microbatch) = effect.applied {
            self.judge.applied(microbatch, at, replica.peer, incarnation);
            self.contribute(index, microbatch);
        }
        if let Some((at, completion)) = effect.answer {
            self.send_at(at, Delivery::Replica(index, incarnation, stage::Event::Completed(completion)));
        }
    }

    // --- The life of a process ------------------------------------------------------------------------------

    /// A replica acts on what the table says of it.
    fn at_table(&mut self, index: usize, membership: Membership) {
        let replica = &mut self.replicas[index];
        let (peer, incarnation) = (replica.peer, replica.incarnation);
        let me =
            membership.members.iter().find(|member| (member.peer, member.incarnation) == (peer, incarnation));
        if let (Some(Standing::Loading(stage)), None) = (me.map(|member| member.standing), &replica.stage) {
            let mut config = stage::Config::new(peer, incarnation, stage, self.scenario.stages);
            config.slots = replica.slots;
            config.ask_after = self.scenario.ask_after;
            config.mutation = self.scenario.mutation;
            let router = self.scenario.router.build(self.rng.next_u64());
            replica.stage = Some(Stage::new(config, router));
            self.judge.started(index);
            self.open_rounds(index, stage);
            // Stands for the download of the state.
            let delay = time_between(&mut self.rng, Duration::from_millis(50), Duration::from_secs(2));
            self.send_in(delay, Delivery::Coordinator(coordinator::Event::Ready { peer, incarnation }));
        }
        self.at_replica(index, stage::Event::Membership(membership));
    }

    /// A new start of a replica, which knows nothing.
    fn join(&mut self, index: usize) {
        if self.replicas[index].liveness != Liveness::Dead {
            return;
        }
        let replica = &mut self.replicas[index];
        let (peer, incarnation) = (replica.peer, Incarnation(replica.incarnation.0 + 1));
        if incarnation > Incarnation(1) {
            let known = self.coordinator.membership().members.iter().any(|member| member.peer == peer);
            self.judge.path(if known { "restarted before it was missed" } else { "rejoined" });
        }
        *replica =
            ReplicaNode { incarnation, liveness: Liveness::Awake, ..ReplicaNode::new(index, &self.scenario) };
        self.judge.started(index);
        self.knock(index);
        self.soon(Delivery::Beat(index, incarnation));
    }

    fn knock(&mut self, index: usize) {
        let (peer, incarnation) = (self.replicas[index].peer, self.replicas[index].incarnation);
        let (role, address) = (Role::Replica, address());
        let join = coordinator::Event::Join { peer, incarnation, role, address };
        self.carry(peer, coordinator_key(), Delivery::Coordinator(join));
    }

    fn beat_replica(&mut self, index: usize) {
        let replica = &self.replicas[index];
        let (peer, incarnation) = (replica.peer, replica.incarnation);
        let progress = replica.stage.as_ref().map(|stage| stage.progress(self.now)).unwrap_or_default();
        if self.coordinator.membership().members.iter().any(|member| member.peer == peer) || replica.admitted
        {
            self.replicas[index].admitted = true;
            let beat = coordinator::Event::Heartbeat { peer, incarnation, progress };
            self.carry(peer, coordinator_key(), Delivery::Coordinator(beat));
            // The stream of tables is opened again where it broke.
            let table = self.coordinator.membership();
            self.send_table(index, table);
        } else {
            self.knock(index);
        }
        if self.coordinator.state() == RunState::Finished {
            self.at_replica(index, stage::Event::Finished);
        }
        self.send_in(HEARTBEAT, Delivery::Beat(index, incarnation));
    }

    /// The coordinator does not know this start any more: everything it holds is void.
    fn revoked(&mut self, index: usize, incarnation: Incarnation) {
        if self.replicas[index].incarnation == incarnation && self.replicas[index].admitted {
            self.judge.path("revoked");
            self.replicas[index].liveness = Liveness::Dead;
            self.soon(Delivery::Join(index));
        }
    }

    fn leave(&mut self, index: usize) {
        let (peer, incarnation) = (self.replicas[index].peer, self.replicas[index].incarnation);
        self.judge.path("left");
        self.replicas[index].liveness = Liveness::Dead;
        self.tell_coordinator(peer, coordinator::Event::Leave { peer, incarnation });
        self.break_connections(peer, incarnation, Duration::ZERO);
        self.send_in(Duration::from_secs(3), Delivery::Join(index));
    }

    fn start_feeder(&mut self, index: usize) {
        let (peer, incarnation) =
            (self.feeders[index].peer, Incarnation(self.feeders[index].incarnation.0 + 1));
        let scenario = &self.scenario;
        let mut config =
            feeder::Config::new(peer, incarnation, scenario.stages, scenario.total, scenario.admission);
        config.lease_count = scenario.lease_count;
        config.ask_after = scenario.ask_after;
        config.carrying = scenario.averaging;
        config.mutation = scenario.mutation;
        let router = scenario.router.build(self.rng.next_u64());
        let feeder = &mut self.feeders[index];
        let journal = feeder.journal.clone();
        if !journal.is_empty() {
            // It knows what was its own; who succeeds it is in the table.
            feeder.role = Role::Feeder;
            self.judge.path(if index == 0 { "feeder resumed" } else { "resumed by a successor" });
        }
        (feeder.incarnation, feeder.admitted) = (incarnation, false);
        feeder.machine = Some(Feeder::resume(config, router, journal));
        self.knock_as_feeder(index);
        self.soon(Delivery::FeederBeat(index, incarnation));
        self.at_feeder(index, feeder::Event::Timeout);
    }

    fn knock_as_feeder(&mut self, index: usize) {
        let FeederNode { peer, incarnation, role, .. } = self.feeders[index];
        let join = coordinator::Event::Join { peer, incarnation, role, address: address() };
        self.tell_coordinator(peer, join);
    }

    fn beat_feeder(&mut self, index: usize, incarnation: Incarnation) {
        let feeder = &self.feeders[index];
        if feeder.incarnation != incarnation || feeder.machine.is_none() {
            return;
        }
        if feeder.admitted {
            let (peer, progress) = (feeder.peer, Progress::default());
            self.tell_coordinator(peer, coordinator::Event::Heartbeat { peer, incarnation, progress });
        } else {
            self.knock_as_feeder(index);
        }
        let table = self.coordinator.membership();
        self.tell_table(index, table);
        self.send_in(HEARTBEAT, Delivery::FeederBeat(index, incarnation));
    }

    // --- The network ----------------------------------------------------------------------------------------

    /// Takes a message to a peer, if the network lets it.
    fn post(&mut self, from: PeerId, incarnation: Incarnation, to: PeerId, message: Message<u8>) {
        if self.rng.chance(self.scenario.garbage_per_mille, 1_000) {
            self.post_garbage();
        }
        if let Some(index) = self.feeder_of(to) {
            let event = feeder::Event::Received { from, incarnation, message };
            return self.tell_feeder(index, from, event);
        }
        let Some(index) = self.replica_of(to) else { return };
        let known = self.replicas[index].incarnation;
        if self.replicas[index].liveness == Liveness::Dead {
            return self.unreachable(from, incarnation, to, known);
        }
        let event = stage::Event::Received { from, incarnation, message };
        self.carry(from, to, Delivery::Replica(index, known, event));
    }

    /// Nobody listens there: the sender notices after a while.
    fn unreachable(&mut self, from: PeerId, incarnation: Incarnation, peer: PeerId, lost: Incarnation) {
        let delay = Duration::from_millis(500);
        if let Some(sender) = self.feeder_of(from) {
            let event = feeder::Event::PeerLost { peer, incarnation: lost };
            self.send_in(delay, Delivery::Feeder(sender, incarnation, event));
        } else if let Some(sender) = self.replica_of(from) {
            let event = stage::Event::PeerLost { peer, incarnation: lost };
            self.send_in(delay, Delivery::Replica(sender, incarnation, event));
        }
    }

    fn carry(&mut self, from: PeerId, to: PeerId, delivery: Delivery) {
        let control = from == coordinator_key() || to == coordinator_key();
        match self.network.fate(&mut self.rng, self.now, from, to, control) {
            Fate::Lost => self.judge.path("message lost"),
            Fate::Delivered { extra } => {
                let delay = time_between(&mut self.rng, Duration::from_micros(100), self.scenario.delay_max);
                self.send_in(delay + extra, delivery);
            }
        }
    }

    fn tell_coordinator(&mut self, from: PeerId, event: coordinator::Event) {
        self.carry(from, coordinator_key(), Delivery::Coordinator(event));
    }

    fn tell_feeder(&mut self, index: usize, from: PeerId, event: feeder::Event<u8>) {
        let FeederNode { peer, incarnation, .. } = self.feeders[index];
        self.carry(from, peer, Delivery::Feeder(index, incarnation, event));
    }

    /// Only members hear of the table.
    fn tell_table(&mut self, index: usize, table: Membership) {
        if !table.members.iter().any(|member| member.peer == self.feeders[index].peer) {
            return;
        }
        self.tell_feeder(index, coordinator_key(), feeder::Event::Membership(table));
        self.tell_feeder(index, coordinator_key(), feeder::Event::Reached);
    }

    /// Everyone who talks to this peer notices, after `silence`.
    fn break_connections(&mut self, peer: PeerId, incarnation: Incarnation, silence: Duration) {
        for index in 0..self.feeders.len() {
            let known = self.feeders[index].incarnation;
            let event = feeder::Event::PeerLost { peer, incarnation };
            self.send_in(silence, Delivery::Feeder(index, known, event));
        }
        for other in 0..self.replicas.len() {
            let known = self.replicas[other].incarnation;
            let event = stage::Event::PeerLost { peer, incarnation };
            let delay = time_between(&mut self.rng, Duration::ZERO, Duration::from_millis(300));
            self.send_in(silence + delay, Delivery::Replica(other, known, event));
        }
    }

    fn post_garbage(&mut self) {
        let mut peers: Vec<_> = self.replicas.iter().map(|replica| replica.peer).collect();
        peers.push(PeerId([254; 32]));
        let ids_below = self.scenario.total * 2;
        let index = usize::try_from(self.rng.below(self.replicas.len() as u64 + 1)).unwrap();
        let (from, incarnation) = (*self.rng.pick(&peers).unwrap(), Incarnation(self.rng.below(3)));
        let message = noise::message(&mut self.rng, &peers, ids_below);
        if index == self.replicas.len() {
            let known = self.latest().incarnation;
            let event = feeder::Event::Received { from, incarnation, message };
            return self.soon(Delivery::Feeder(self.feeders.len() - 1, known, event));
        }
        let known = self.replicas[index].incarnation;
        self.soon(Delivery::Replica(index, known, stage::Event::Received { from, incarnation, message }));
    }

    fn soon(&mut self, delivery: Delivery) {
        let delay = time_between(&mut self.rng, Duration::from_micros(100), self.scenario.delay_max);
        self.send_in(delay, delivery);
    }

    fn send_in(&mut self, delay: Duration, delivery: Delivery) {
        self.send_at(self.now + delay, delivery);
    }

    fn send_at(&mut self, at: Time, delivery: Delivery) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), delivery);
    }

    // --- The end --------------------------------------------------------------------------------------------

    fn is_over(&self) -> bool {
        let done = self.latest().machine.as_ref().is_some_and(Feeder::is_done);
        done && self.held() == 0 && self.faults_left() == 0
    }

    fn faults_left(&self) -> usize {
        self.queue
            .values()
            .filter(|delivery| matches!(delivery, Delivery::Fault(_) | Delivery::Resume(..)))
            .count()
    }

    /// Microbatches held by replicas that live.
    pub(crate) fn held(&self) -> usize {
        self.stages().map(Stage::held).sum()
    }

    /// Stashes kept by executors that live.
    pub(crate) fn stashes(&self) -> usize {
        let alive = self.replicas.iter().filter(|replica| replica.liveness != Liveness::Dead);
        alive.map(|replica| replica.executor.stashes.len()).sum()
    }

    pub(crate) fn stages(&self) -> impl Iterator<Item = &Stage<u8>> {
        let alive = self.replicas.iter().filter(|replica| replica.liveness != Liveness::Dead);
        alive.filter_map(|replica| replica.stage.as_ref())
    }

    pub(crate) fn feeder(&self) -> &Feeder<u8> {
        self.latest().machine.as_ref().unwrap()
    }

    /// The one that decides now, or will.
    fn latest(&self) -> &FeederNode {
        self.feeders.last().unwrap()
    }

    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    pub(crate) fn now(&self) -> Time {
        self.now
    }

    fn replica_of(&self, peer: PeerId) -> Option<usize> {
        let index = usize::from(peer.0[0]).checked_sub(1)?;
        self.replicas.get(index).filter(|replica| replica.peer == peer).map(|_| index)
    }

    fn feeder_of(&self, peer: PeerId) -> Option<usize> {
        self.feeders.iter().position(|feeder| feeder.peer == peer)
    }

    /// For the message of a failure.
    fn describe(&self) -> String {
        let feeder = self.latest().machine.as_ref().map(Feeder::counts);
        let stages: Vec<_> = self
            .replicas
            .iter()
            .map(|replica| {
                let stage = replica.stage.as_ref();
                let held = stage.map(|stage| (stage.config().stage.0, stage.held(), stage.counts()));
                let held_in_detail = stage.map(Stage::describe);
                format!("{:?} {:?} {held:?} {held_in_detail:?}", replica.peer, replica.liveness)
            })
            .collect();
        format!("{:?}\n{feeder:?}\n{}\n{:?}", self.now, stages.join("\n"), self.scenario)
    }
}
