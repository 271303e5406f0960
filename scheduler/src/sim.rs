//! A seeded world around the production state machines: a coordinator, a feeder, replicas with executors, and
//! messages that take random times. One seed gives one run; every run has a step bound.

mod executor;
mod garbage;
mod scenario;
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use crate::router::{RouterFactory, UniformConfig};
use crate::{
    Admission, Coordinator, Duration, Feeder, Hop, Incarnation, Membership, Message, MicrobatchId, PeerId,
    Purpose, Rng, Role, Stage, StageIndex, Standing, Time, coordinator, feeder, stage,
};

use executor::{Executor, time_below};
use scenario::Scenario;

const HEARTBEAT: Duration = Duration::from_secs(1);

/// What is on its way.
#[derive(Debug)]
enum Delivery {
    Coordinator(coordinator::Event),
    Feeder(feeder::Event<u8>),
    /// To a replica, if it is still the start the sender knew.
    Replica(usize, Incarnation, stage::Event<u8>),
    Membership(usize, Membership),
    Join(usize),
    Beat(usize, Incarnation),
    FeederBeat,
    Kill(usize),
}

#[derive(Debug)]
struct Replica {
    peer: PeerId,
    incarnation: Incarnation,
    alive: bool,
    stage: Option<Stage<u8>>,
    executor: Executor,
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
    coordinator: Coordinator,
    feeder: Feeder<u8>,
    replicas: Vec<Replica>,
    record: Record,
}

/// What happened, for the tests to judge.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Record {
    pub(crate) outcomes: BTreeMap<MicrobatchId, Vec<feeder::Outcome>>,
    /// Training microbatches admitted.
    pub(crate) admitted: u64,
    /// Those of them without an outcome, and as which they were admitted.
    pub(crate) open: BTreeMap<MicrobatchId, u64>,
    pub(crate) sent: BTreeSet<MicrobatchId>,
    pub(crate) measured: Vec<feeder::Measured>,
    pub(crate) done: u32,
    pub(crate) finished: u32,
    pub(crate) in_flight_max: usize,
}

impl World {
    pub(crate) fn new(scenario: Scenario) -> Self {
        let mut rng = Rng::new(scenario.seed);
        let mut config = feeder::Config::new(
            feeder_key(),
            Incarnation(1),
            scenario.stages,
            scenario.total,
            scenario.admission,
        );
        config.lease_count = scenario.lease_count;
        let feeder = Feeder::new(config, UniformConfig.build(rng.next_u64()));
        let coordinator = Coordinator::new(coordinator::Config::new(scenario.stages));
        let replicas = (0..usize::from(scenario.stages + scenario.spares)).map(Replica::new).collect();
        let mut world = Self {
            scenario,
            rng,
            now: Time(0),
            sequence: 0,
            steps: 0,
            queue: BTreeMap::new(),
            coordinator,
            feeder,
            replicas,
            record: Record::default(),
        };
        world.open();
        world
    }

    /// Plays until the feeder is done and nothing is under way.
    pub(crate) fn run(&mut self) -> &Record {
        while !(self.feeder.is_done() && self.is_quiet()) {
            self.step();
        }
        &self.record
    }

    fn open(&mut self) {
        self.send_in(Duration::ZERO, Delivery::FeederBeat);
        for index in 0..self.replicas.len() {
            self.send(Delivery::Join(index));
        }
        for measure in self.scenario.evaluations.clone() {
            let event = feeder::Event::Evaluate { first: 0, count: measure.count, purpose: measure.purpose };
            self.send_in(measure.at, Delivery::Feeder(event));
        }
        for kill in self.scenario.kills.clone() {
            self.send_in(kill.at, Delivery::Kill(kill.replica));
            if let Some(after) = kill.back_after {
                self.send_in(kill.at + after, Delivery::Join(kill.replica));
            }
        }
        let join = coordinator::Event::Join {
            peer: feeder_key(),
            incarnation: Incarnation(1),
            role: Role::Feeder,
            address: address(),
        };
        self.send(Delivery::Coordinator(join));
    }

    fn step(&mut self) {
        self.steps += 1;
        let (seed, limit) = (self.scenario.seed, self.scenario.steps_max);
        assert!(self.steps < limit, "seed {seed}: not over after {limit} steps, {:?}", self.feeder.counts());
        let due = self.queue.first_key_value().map(|(&(at, _), _)| at);
        let woken = self.wake(due);
        if !woken && let Some(((at, _), delivery)) = self.queue.pop_first() {
            self.now = at;
            self.deliver(delivery);
        }
        self.judge();
    }

    /// Fires the first timeout that is due before the next delivery.
    fn wake(&mut self, due: Option<Time>) -> bool {
        let before = |at: &Time| due.is_none_or(|due| *at <= due);
        let feeder = self.feeder.poll_timeout().map(|(at, _)| at).filter(before);
        let coordinator = self.coordinator.poll_timeout().map(|(at, _)| at).filter(before);
        let alive = self.replicas.iter().enumerate().filter(|(_, replica)| replica.alive);
        let stages =
            alive.filter_map(|(index, replica)| Some((replica.stage.as_ref()?.poll_timeout()?.0, index)));
        let replica = stages.filter(|(at, _)| before(at)).min();
        let Some(at) = [feeder, coordinator, replica.map(|(at, _)| at)].into_iter().flatten().min() else {
            return false;
        };
        self.now = self.now.max(at);
        if feeder == Some(at) {
            self.deliver(Delivery::Feeder(feeder::Event::Timeout));
        } else if coordinator == Some(at) {
            self.deliver(Delivery::Coordinator(coordinator::Event::Timeout));
        } else if let Some((_, index)) = replica {
            let incarnation = self.replicas[index].incarnation;
            self.deliver(Delivery::Replica(index, incarnation, stage::Event::Timeout));
        }
        true
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Coordinator(event) => self.at_coordinator(event),
            Delivery::Feeder(event) => self.at_feeder(event),
            Delivery::Replica(index, incarnation, event) => {
                let replica = &self.replicas[index];
                if replica.alive && replica.incarnation == incarnation {
                    self.at_replica(index, event);
                }
            }
            Delivery::Membership(index, membership) => self.at_table(index, membership),
            Delivery::Join(index) => self.join(index),
            Delivery::Beat(index, incarnation) => self.beat(index, incarnation),
            Delivery::FeederBeat => {
                let (peer, incarnation) = (feeder_key(), Incarnation(1));
                let progress = stage::Progress::default();
                self.send(Delivery::Coordinator(coordinator::Event::Heartbeat {
                    peer,
                    incarnation,
                    progress,
                }));
                self.send_in(HEARTBEAT, Delivery::FeederBeat);
            }
            Delivery::Kill(index) => self.kill(index),
        }
    }

    // --- The machines ---------------------------------------------------------------------------------------

    fn at_coordinator(&mut self, event: coordinator::Event) {
        self.coordinator.handle(self.now, event);
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                coordinator::Action::Answer { answer: coordinator::Answer::Leased(lease), .. } => {
                    self.send(Delivery::Feeder(feeder::Event::Lease(lease)));
                }
                coordinator::Action::Answer { .. } => {}
                coordinator::Action::Membership(membership) => {
                    self.send(Delivery::Feeder(feeder::Event::Membership(membership.clone())));
                    for index in 0..self.replicas.len() {
                        self.send(Delivery::Membership(index, membership.clone()));
                    }
                }
                coordinator::Action::Finished => self.record.finished += 1,
            }
        }
    }

    fn at_feeder(&mut self, event: feeder::Event<u8>) {
        self.feeder.handle(self.now, event);
        while let Some(action) = self.feeder.poll_action() {
            self.note(&action);
            let (peer, incarnation) = (feeder_key(), Incarnation(1));
            match action {
                feeder::Action::Draw { microbatch, .. } => {
                    self.send(Delivery::Feeder(feeder::Event::Drawn { microbatch, ids: 1 }));
                }
                feeder::Action::Send { to, message } => self.post(peer, incarnation, to, message),
                feeder::Action::RequestLease { count } => {
                    self.send(Delivery::Coordinator(coordinator::Event::LeaseRequest {
                        peer,
                        incarnation,
                        count,
                    }));
                }
                feeder::Action::Done => {
                    self.send(Delivery::Coordinator(coordinator::Event::FeederDone { peer, incarnation }));
                }
                feeder::Action::Outcome { .. }
                | feeder::Action::EvaluationDone(_)
                | feeder::Action::EvaluationDeclined => {}
            }
        }
    }

    fn at_replica(&mut self, index: usize, event: stage::Event<u8>) {
        let now = self.now;
        let Some(stage) = self.replicas[index].stage.as_mut() else { return };
        stage.handle(now, event);
        let mut actions = Vec::new();
        while let Some(action) = stage.poll_action() {
            actions.push(action);
        }
        let (peer, incarnation) = (self.replicas[index].peer, self.replicas[index].incarnation);
        for action in actions {
            match action {
                stage::Action::Execute(job) => self.execute(index, &job),
                stage::Action::Send { to, message } => self.post(peer, incarnation, to, message),
                stage::Action::Counted(_) | stage::Action::Drained => {}
            }
        }
    }

    fn execute(&mut self, index: usize, job: &stage::Job<u8>) {
        let refuse = self.rng.chance(self.scenario.refused_per_mille, 1_000);
        let service = time_below(&mut self.rng, self.scenario.service_max);
        let replica = &mut self.replicas[index];
        let stage = replica.stage.as_ref().unwrap().config().stage.0;
        let last = stage + 1 == self.scenario.stages;
        let incarnation = replica.incarnation;
        if let Some((at, completion)) = replica.executor.run(self.now, job, last, refuse, service) {
            self.send_at(at, Delivery::Replica(index, incarnation, stage::Event::Completed(completion)));
        }
    }

    /// A replica acts on what the table says of it.
    fn at_table(&mut self, index: usize, membership: Membership) {
        let scenario = &self.scenario;
        let replica = &mut self.replicas[index];
        if !replica.alive {
            return;
        }
        let (peer, incarnation) = (replica.peer, replica.incarnation);
        let me =
            membership.members.iter().find(|member| (member.peer, member.incarnation) == (peer, incarnation));
        if let (Some(Standing::Loading(stage)), None) = (me.map(|member| member.standing), &replica.stage) {
            let mut config = stage::Config::new(peer, incarnation, stage, scenario.stages);
            config.slots = scenario.slots;
            replica.stage = Some(Stage::new(config, UniformConfig.build(self.rng.next_u64())));
            self.send(Delivery::Coordinator(coordinator::Event::Ready { peer, incarnation }));
        }
        self.at_replica(index, stage::Event::Membership(membership));
    }

    fn join(&mut self, index: usize) {
        let replica = &mut self.replicas[index];
        let incarnation = Incarnation(replica.incarnation.0 + 1);
        *replica = Replica { incarnation, alive: true, ..Replica::new(index) };
        let (peer, role) = (replica.peer, Role::Replica);
        let join = coordinator::Event::Join { peer, incarnation, role, address: address() };
        self.send(Delivery::Coordinator(join));
        self.send_in(HEARTBEAT, Delivery::Beat(index, incarnation));
    }

    fn beat(&mut self, index: usize, incarnation: Incarnation) {
        let replica = &self.replicas[index];
        if replica.alive && replica.incarnation == incarnation {
            let progress = replica.stage.as_ref().map(|stage| stage.progress(self.now)).unwrap_or_default();
            let peer = replica.peer;
            self.send(Delivery::Coordinator(coordinator::Event::Heartbeat { peer, incarnation, progress }));
            self.send_in(HEARTBEAT, Delivery::Beat(index, incarnation));
        }
    }

    /// Silent for the coordinator; its connections break.
    fn kill(&mut self, index: usize) {
        self.replicas[index].alive = false;
        let (peer, incarnation) = (self.replicas[index].peer, self.replicas[index].incarnation);
        self.send(Delivery::Feeder(feeder::Event::PeerLost { peer, incarnation }));
        for other in 0..self.replicas.len() {
            let known = self.replicas[other].incarnation;
            self.send(Delivery::Replica(other, known, stage::Event::PeerLost { peer, incarnation }));
        }
    }

    // --- The network ----------------------------------------------------------------------------------------

    /// Takes a message to a peer; the sender hears if that is dead.
    fn post(&mut self, from: PeerId, incarnation: Incarnation, to: PeerId, message: Message<u8>) {
        if self.rng.chance(self.scenario.garbage_per_mille, 1_000) {
            self.post_garbage();
        }
        if to == feeder_key() {
            return self.send(Delivery::Feeder(feeder::Event::Received { from, incarnation, message }));
        }
        let Some(index) = self.replicas.iter().position(|replica| replica.peer == to) else { return };
        let (alive, known) = (self.replicas[index].alive, self.replicas[index].incarnation);
        if alive {
            return self.send(Delivery::Replica(
                index,
                known,
                stage::Event::Received { from, incarnation, message },
            ));
        }
        let (peer, lost) = (to, known);
        if from == feeder_key() {
            self.send(Delivery::Feeder(feeder::Event::PeerLost { peer, incarnation: lost }));
        } else if let Some(sender) = self.replicas.iter().position(|replica| replica.peer == from) {
            let event = stage::Event::PeerLost { peer, incarnation: lost };
            self.send(Delivery::Replica(sender, incarnation, event));
        }
    }

    fn post_garbage(&mut self) {
        let mut peers: Vec<_> = self.replicas.iter().map(|replica| replica.peer).collect();
        peers.extend([feeder_key(), PeerId([255; 32])]);
        let ids_below = self.scenario.total * 2;
        let index = usize::try_from(self.rng.below(self.replicas.len() as u64 + 1)).unwrap();
        let (from, incarnation) = (*self.rng.pick(&peers).unwrap(), Incarnation(self.rng.below(3)));
        let message = garbage::message(&mut self.rng, &peers, ids_below);
        if index == self.replicas.len() {
            return self.send(Delivery::Feeder(feeder::Event::Received { from, incarnation, message }));
        }
        let forged = self.rng.chance(1, 3).then(|| self.route_to(index)).flatten();
        let event = match forged {
            Some(route) => {
                let sender = route[route.len() - 1];
                let message = garbage::forged_forward(&mut self.rng, route, ids_below);
                stage::Event::Received { from: sender.peer, incarnation: sender.incarnation, message }
            }
            None => stage::Event::Received { from, incarnation, message },
        };
        self.send(Delivery::Replica(index, self.replicas[index].incarnation, event));
    }

    /// The route a forward to this replica would have.
    fn route_to(&self, index: usize) -> Option<Vec<Hop>> {
        let stage = self.replicas[index].stage.as_ref()?;
        let mut route = vec![self.feeder.config().hop()];
        for before in (0..stage.config().stage.0).map(StageIndex) {
            route.push(stage.table().eligible(self.now, before).next()?);
        }
        Some(route)
    }

    fn send(&mut self, delivery: Delivery) {
        let delay = time_below(&mut self.rng, self.scenario.delay_max);
        self.send_in(delay, delivery);
    }

    fn send_in(&mut self, delay: Duration, delivery: Delivery) {
        self.send_at(self.now + delay, delivery);
    }

    fn send_at(&mut self, at: Time, delivery: Delivery) {
        self.sequence += 1;
        self.queue.insert((at, self.sequence), delivery);
    }

    // --- Judgement ------------------------------------------------------------------------------------------

    fn note(&mut self, action: &feeder::Action<u8>) {
        let record = &mut self.record;
        match action {
            feeder::Action::Draw { microbatch, purpose: Purpose::Train } => {
                record.open.insert(*microbatch, record.admitted);
                record.admitted += 1;
            }
            feeder::Action::Draw { .. } => assert!(record.open.is_empty(), "evaluation amid training"),
            feeder::Action::Send {
                message: Message::Forward { microbatch, purpose: Purpose::Train, .. },
                ..
            } => {
                assert!(record.sent.insert(*microbatch), "{microbatch} is injected twice");
            }
            feeder::Action::Outcome { microbatch, outcome } => {
                record.open.remove(microbatch);
                record.outcomes.entry(*microbatch).or_default().push(outcome.clone());
            }
            feeder::Action::EvaluationDone(measured) => record.measured.push(*measured),
            feeder::Action::Done => record.done += 1,
            feeder::Action::Send { .. }
            | feeder::Action::RequestLease { .. }
            | feeder::Action::EvaluationDeclined => {}
        }
    }

    /// What holds after every step.
    fn judge(&mut self) {
        let (seed, open) = (self.scenario.seed, &self.record.open);
        self.record.in_flight_max = self.record.in_flight_max.max(open.len());
        match self.scenario.admission {
            Admission::Asynchronous(window) => {
                assert!(open.len() <= window as usize, "seed {seed}: {open:?} in flight");
            }
            Admission::Synchronous(group) => {
                let groups: BTreeSet<_> = open.values().map(|order| order / u64::from(group)).collect();
                assert!(groups.len() <= 1, "seed {seed}: groups {groups:?} in flight");
            }
        }
        for stage in self.replicas.iter().filter_map(|replica| replica.stage.as_ref()) {
            assert!(stage.slots_used() <= stage.config().slots, "seed {seed}: slots");
        }
    }

    /// Nothing but heartbeats is on its way and nobody holds anything.
    fn is_quiet(&self) -> bool {
        let idle = |delivery: &Delivery| match delivery {
            Delivery::Beat(..) | Delivery::FeederBeat => true,
            Delivery::Coordinator(event) => matches!(event, coordinator::Event::Heartbeat { .. }),
            Delivery::Feeder(_)
            | Delivery::Replica(..)
            | Delivery::Membership(..)
            | Delivery::Join(_)
            | Delivery::Kill(_) => false,
        };
        self.held() == 0 && self.queue.values().all(idle)
    }

    /// Microbatches held by replicas that live.
    pub(crate) fn held(&self) -> usize {
        self.stages().map(Stage::held).sum()
    }

    /// Stashes kept by executors that live.
    pub(crate) fn stashes(&self) -> usize {
        let alive = self.replicas.iter().filter(|replica| replica.alive);
        alive.map(|replica| replica.executor.stashes.len()).sum()
    }

    pub(crate) fn refused_by_executors(&self) -> u64 {
        self.replicas.iter().map(|replica| replica.executor.refused).sum()
    }

    pub(crate) fn stages(&self) -> impl Iterator<Item = &Stage<u8>> {
        self.replicas.iter().filter(|replica| replica.alive).filter_map(|replica| replica.stage.as_ref())
    }

    pub(crate) fn feeder(&self) -> &Feeder<u8> {
        &self.feeder
    }

    pub(crate) fn coordinator(&self) -> &Coordinator {
        &self.coordinator
    }

    pub(crate) fn record(&self) -> &Record {
        &self.record
    }
}

impl Replica {
    fn new(index: usize) -> Self {
        let peer = PeerId([u8::try_from(index + 1).unwrap(); 32]);
        Self { peer, incarnation: Incarnation(0), alive: false, stage: None, executor: Executor::default() }
    }
}

fn feeder_key() -> PeerId {
    PeerId([0; 32])
}

fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4_000))
}
