//! The world: it carries messages, keeps time, and performs the actions of the machines.

mod averaging_lies;
mod ending;
mod executing;
mod feeders;
mod keeping;
mod lying;
mod lying_donors;
mod lying_feeders;
mod measuring;
mod replicas;
mod sending;
mod striking;
mod uplinks;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::coordinator::{self, Facts, JoinRefusal};
use crate::{
    Coordinator, Duration, Feeder, Hop, Incarnation, Instance, MemberState, PeerId, Replica, Rng, Role,
    StageIndex, Table, Time, feeder, keeper, replica,
};

use super::account::Meter;
use super::delivery::{Delivery, Purpose};
use super::executor::time_between;
use super::keeper_process::{Checkpoint, KeeperProcess};
use super::network::Network;
use super::process::{FeederProcess, Liveness, ReplicaProcess, coordinator_key, keeper_key, replica_index};
use super::queue::{EventQueue, Next};
use super::recoveries::Recoveries;
use super::reference_model::ReferenceModel;
use super::report::{Report, Violation};
use super::scenario::Scenario;
use super::scenario_error::ScenarioError;

/// Time between two heartbeats to the coordinator.
const HEARTBEAT: Duration = Duration::from_secs(1);
/// A request to the coordinator fails after this.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// A state machine of the world.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Machine {
    Feeder(usize),
    Coordinator,
    Replica(usize),
    Keeper,
}

/// The world of one run.
#[derive(Debug)]
pub struct World {
    pub(super) scenario: Scenario,
    rng: Rng,
    queue: EventQueue<Delivery, Machine>,
    coordinator: Coordinator,
    /// What the coordinator has made durable.
    coordinator_log: Facts,
    /// How often the coordinator has been started again.
    coordinator_starts: u64,
    /// The coordinator's process is dead until then.
    coordinator_back_at: Time,
    /// The coordinator's process stands still until then.
    coordinator_frozen_until: Time,
    /// The first feeder, then its successors in order.
    pub(super) feeders: Vec<FeederProcess>,
    pub(super) replicas: Vec<ReplicaProcess>,
    keeper: Option<KeeperProcess>,
    network: Network,
    /// The table published last.
    table: Arc<Table>,
    pub(super) model: ReferenceModel,
    meter: Meter,
    recoveries: Recoveries,
    /// The time at which training was over.
    trained_at: Option<Time>,
    /// Microbatches with an outcome, as a coordinator counted them when it ended the run.
    ended_with: Option<u64>,
}

impl World {
    /// The world of a scenario, at time 0.
    ///
    /// # Errors
    /// If the scenario cannot be played.
    pub fn new(scenario: Scenario) -> Result<Self, ScenarioError> {
        scenario.check()?;
        let mut config = coordinator::Config::new(scenario.stages);
        config.total = scenario.total;
        config.replicas_per_stage = u32::from(scenario.replicas);
        config.feed = scenario.feed.clone();
        #[cfg(test)]
        {
            config.mutation = scenario.mutation;
        }
        let replica = |index| ReplicaProcess::new(index, Incarnation(0), &scenario);
        let mut world = Self {
            rng: Rng::new(scenario.seed),
            queue: EventQueue::new(),
            coordinator: Coordinator::new(config),
            coordinator_log: Facts::default(),
            coordinator_starts: 0,
            coordinator_back_at: Time::default(),
            coordinator_frozen_until: Time::default(),
            feeders: (0..scenario.feeders()).map(|index| FeederProcess::new(index, Role::Feeder)).collect(),
            replicas: (0..scenario.members()).map(replica).collect(),
            keeper: scenario.keeping.map(|_| KeeperProcess::new(Incarnation(0), Checkpoint::default())),
            network: Network::default(),
            table: Arc::default(),
            model: ReferenceModel::default(),
            meter: Meter::new(scenario.stages, scenario.measure_from),
            recoveries: Recoveries::default(),
            trained_at: None,
            ended_with: None,
            scenario,
        };
        world.open();
        Ok(world)
    }

    /// Runs until the feeder has ended, no microbatch is held and no fault is to come.
    ///
    /// # Errors
    /// The first rule that is broken. A run that does not end within [`Scenario::steps_max`] breaks a rule, too.
    pub fn run(&mut self) -> Result<Report, Violation> {
        while !self.is_time_to_look() || !self.is_over() {
            self.step()?;
        }
        self.check_ending();
        self.verdict()?;
        Ok(self.report())
    }

    /// Whether the run is over takes a look at every replica: in a large world, not after every event.
    fn is_time_to_look(&self) -> bool {
        self.queue.steps().is_multiple_of(1 + self.replicas.len() as u64 / 64)
    }

    fn open(&mut self) {
        for index in 0..self.scenario.feeders() {
            self.queue.schedule(Time(0), Delivery::StartFeeder(index));
        }
        if let Some(at) = self.scenario.duration {
            for index in 0..self.feeders.len() {
                self.queue.schedule_in(at, Delivery::Feeder(index, Incarnation(1), feeder::Event::Stop));
            }
        }
        for index in 0..self.replicas.len() {
            self.soon(Delivery::Start(index));
        }
        if self.keeper.is_some() {
            self.soon(Delivery::StartKeeper);
        }
        for measure in self.scenario.evaluations.clone() {
            let event = feeder::Event::Evaluate { first: 0, count: measure.count, purpose: measure.purpose };
            self.queue.schedule_in(measure.at, Delivery::Feeder(0, Incarnation(1), event));
        }
        for (at, fault) in self.scenario.faults.clone() {
            self.queue.schedule_in(at, Delivery::Fault(fault));
        }
    }

    pub(super) fn step(&mut self) -> Result<(), Violation> {
        let next = self.queue.pop();
        self.model.now = self.now();
        self.measure();
        match next {
            Some(Next::Event(delivery)) => self.deliver(delivery),
            Some(Next::Alarm(machine)) => self.wake(machine),
            None => self.model.require(false, || "no event is left".to_owned()),
        }
        self.meter.note_stuck(self.queue.now(), self.recoveries.stuck());
        let limit = self.scenario.steps_max;
        if self.queue.steps() >= limit {
            let state = self.describe();
            self.model.require(false, || format!("not over after {limit} steps\n{state}"));
        }
        let machines = self.feeders.iter().filter_map(|feeder| feeder.machine.as_ref());
        self.model.in_flight(machines.map(|feeder| feeder.counts().in_flight).max().unwrap_or(0));
        self.verdict()
    }

    fn verdict(&mut self) -> Result<(), Violation> {
        match self.model.broken.take() {
            None => Ok(()),
            Some(rule) => Err(Violation { seed: self.scenario.seed, at: self.now(), rule }),
        }
    }

    fn wake(&mut self, machine: Machine) {
        match machine {
            Machine::Feeder(index) => self.at_feeder(index, feeder::Event::Timeout),
            Machine::Coordinator if self.is_frozen() => {
                self.queue.set_alarm(machine, Some(self.coordinator_frozen_until));
            }
            Machine::Keeper => self.at_keeper(keeper::Event::Timeout),
            Machine::Coordinator => self.at_coordinator(coordinator::Event::Timeout, Purpose::Routine),
            Machine::Replica(index) => {
                if self.replicas[index].liveness == Liveness::Awake {
                    self.at_replica(index, replica::Event::Timeout);
                }
            }
        }
    }

    fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            // A call dies with the process that it was made to.
            Delivery::Coordinator(start, ..) if start != self.coordinator_starts => {}
            Delivery::Coordinator(..) if self.is_frozen() => {
                self.queue.schedule(self.coordinator_frozen_until, delivery);
            }
            Delivery::Coordinator(_, event, purpose) => self.at_coordinator(event, purpose),
            Delivery::Idle(a, b) => self.check_idle(a, b),
            Delivery::DialFails(from, to) => self.dial_fails(from, to),
            Delivery::FrameSent(from) => self.frame_sent(from),
            Delivery::Synced(index, incarnation, count) => {
                if self.feeders[index].instance.incarnation == incarnation && self.feeders[index].is_syncing {
                    self.on_synced(index, count);
                }
            }
            Delivery::Feeder(index, incarnation, event) => {
                if self.feeders[index].instance.incarnation == incarnation {
                    self.at_feeder(index, event);
                }
            }
            Delivery::Start(index) => self.start(index),
            Delivery::StartFeeder(index) => self.start_feeder(index),
            Delivery::FeederHeartbeat(index, incarnation) => self.send_feeder_heartbeat(index, incarnation),
            Delivery::StartKeeper => self.start_keeper(),
            Delivery::KeeperHeartbeat(incarnation) => self.send_keeper_heartbeat(incarnation),
            Delivery::Keeper(incarnation, event) if self.is_keeper(incarnation) => self.at_keeper(event),
            Delivery::KeeperReply(incarnation, reply, finished) if self.is_keeper(incarnation) => {
                self.reply_to_keeper(reply, finished);
            }
            Delivery::Keeper(..) | Delivery::KeeperReply(..) => {}
            Delivery::Fault(fault) => self.strike(fault),
            Delivery::LiarGone => self.end_feeder_act(),
            Delivery::Resume(index, incarnation) => self.resume(index, incarnation),
            Delivery::Replica(index, incarnation, _)
            | Delivery::Table(index, incarnation, _)
            | Delivery::State(index, incarnation, ..)
            | Delivery::NotNeeded(index, incarnation)
            | Delivery::Built(index, incarnation, _)
            | Delivery::Ran(index, incarnation)
            | Delivery::Heartbeat(index, incarnation)
            | Delivery::ConfirmExpires(index, incarnation) => {
                let process = &mut self.replicas[index];
                if process.instance.incarnation != incarnation || process.liveness == Liveness::Dead {
                    return self.note_sent_in_vain(index, incarnation, &delivery);
                }
                match process.liveness {
                    Liveness::Dead => {}
                    Liveness::Suspended => process.backlog.push(delivery),
                    Liveness::Awake => self.deliver_to_process(index, delivery),
                }
            }
        }
    }

    // --- The coordinator ------------------------------------------------------------------------------------

    fn is_frozen(&self) -> bool {
        self.now() < self.coordinator_frozen_until
    }

    fn at_coordinator(&mut self, event: coordinator::Event, purpose: Purpose) {
        let sender = event.sender();
        let begins = self.begins_initially(&event);
        self.coordinator.handle(self.now(), event);
        if let Some((replica, stage)) = begins {
            self.check_beginning(replica, stage);
        }
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                coordinator::Action::Log(facts) => {
                    facts.into_iter().for_each(|fact| self.coordinator_log.keep(fact));
                }
                coordinator::Action::Reply { reply, .. } => {
                    if let Some(to) = sender {
                        self.carry_reply(to, &reply, purpose);
                    }
                }
                coordinator::Action::LateReply { to, reply } => {
                    self.carry_reply(to, &reply, Purpose::Routine);
                }
                coordinator::Action::Membership(membership) => self.publish(membership.into()),
                coordinator::Action::Evicted { .. } => self.model.path("evicted"),
                coordinator::Action::Restored { .. } => self.model.path("restored from a keeper"),
                coordinator::Action::Reset { .. } => self.model.path("said that a stage lost its updates"),
                coordinator::Action::Displaced { .. } => self.model.path("place given to a standby"),
                coordinator::Action::KeeperSilent => self.model.path("keeper fell silent"),
                coordinator::Action::Finished => {
                    self.ended_with = Some(self.coordinator.run_progress().settled);
                    self.model.finished();
                }
                coordinator::Action::End => self.model.path("coordinator ended"),
            }
        }
        let alarm = self.coordinator.poll_timeout().map(|(at, _)| at);
        self.queue.set_alarm(Machine::Coordinator, alarm);
    }

    /// The replica that asks to serve with the initial weights, and its stage.
    fn begins_initially(&self, event: &coordinator::Event) -> Option<(Instance, StageIndex)> {
        let &coordinator::Event::Ready { from, stage, initial: true } = event else { return None };
        (self.state_of(from) == Some(MemberState::Loading(stage))).then_some((from, stage))
    }

    fn check_beginning(&mut self, replica: Instance, stage: StageIndex) {
        if self.state_of(replica) != Some(MemberState::Serving(stage)) {
            return self.model.path("refused to begin with initial weights");
        }
        let holders = self.replicas.iter().filter(|process| process.holds_trained(stage));
        let holders: Vec<_> = holders.map(|process| process.instance).collect();
        self.model.begins(Hop::replica(stage, replica), &holders);
    }

    pub(super) fn state_of(&self, member: Instance) -> Option<MemberState> {
        self.coordinator.membership().get(member).map(|member| member.state)
    }

    /// A call dies with its process: a later start of the caller gets no reply.
    fn carry_reply(&mut self, to: Instance, reply: &coordinator::Reply, purpose: Purpose) {
        if let Some(index) = self.feeder_of(to.peer) {
            if self.feeders[index].instance != to || self.feeders[index].machine.is_none() {
                return;
            }
            return match purpose {
                Purpose::Done => self.reported(index, reply),
                Purpose::Routine | Purpose::Ready | Purpose::Confirm | Purpose::Return { .. } => {
                    self.reply_to_feeder(index, reply, purpose);
                }
            };
        }
        if to.peer == keeper_key() {
            let finished = self.coordinator.tells_end(to.peer);
            let delivery = Delivery::KeeperReply(to.incarnation, reply.clone(), finished);
            self.carry(coordinator_key(), to.peer, delivery);
            return;
        }
        let called = self.replica_of(to.peer).filter(|&index| self.replicas[index].instance == to);
        let Some(index) = called else { return };
        if *reply == coordinator::Reply::JoinRefused(JoinRefusal::Finished) {
            return self.tell_process(index, Delivery::NotNeeded);
        }
        let reply = reply.clone();
        self.tell_process(index, |index, incarnation| Delivery::State(index, incarnation, reply, purpose));
    }

    fn tell_process(&mut self, index: usize, delivery: impl FnOnce(usize, Incarnation) -> Delivery) {
        let Instance { peer, incarnation } = self.replicas[index].instance;
        self.carry(coordinator_key(), peer, delivery(index, incarnation));
    }

    /// Version of the table published last.
    #[cfg(test)]
    pub(super) fn tables(&self) -> u64 {
        self.table.rest().version
    }

    // --- Getters --------------------------------------------------------------------------------------------

    /// The current virtual time.
    #[must_use]
    pub fn now(&self) -> Time {
        self.queue.now()
    }

    /// Number of microbatches that live replicas hold.
    pub(super) fn held(&self) -> usize {
        let alive = self.replicas.iter().filter(|process| process.is_alive());
        alive.filter_map(|process| process.replica.as_ref()).map(|replica| replica.stage().held()).sum()
    }

    /// The feeder that decides now, or the successor that will. One that was late, or died without ids and was followed
    /// by another, decides nothing.
    pub(super) fn latest(&self) -> &FeederProcess {
        &self.feeders[self.latest_index()]
    }

    pub(super) fn latest_index(&self) -> usize {
        let newest = self.feeders.len() - 1;
        let decides = |(index, feeder): (usize, &FeederProcess)| {
            !feeder.is_late && (index == newest || feeder.machine.is_some() || !feeder.journal.is_empty())
        };
        self.feeders.iter().enumerate().rposition(decides).unwrap_or(0)
    }

    fn replica_of(&self, peer: PeerId) -> Option<usize> {
        replica_index(peer)
            .filter(|&index| self.replicas.get(index).is_some_and(|process| process.instance.peer == peer))
    }

    /// Whether this start of the keeper runs.
    fn is_keeper(&self, incarnation: Incarnation) -> bool {
        let keeper = self.keeper.as_ref().filter(|keeper| keeper.machine.is_some());
        keeper.is_some_and(|keeper| keeper.instance.incarnation == incarnation)
    }

    /// The feeder with this key, of several the latest: a feeder that lost its journal succeeds itself.
    fn feeder_of(&self, peer: PeerId) -> Option<usize> {
        self.feeders.iter().rposition(|feeder| feeder.instance.peer == peer)
    }

    fn soon(&mut self, delivery: Delivery) {
        let delay = self.scenario.links.delay(&mut self.rng);
        self.queue.schedule_in(delay, delivery);
    }

    /// The state of the world, for the message of a violation.
    fn describe(&self) -> String {
        let feeder = self.latest().machine.as_ref().map(Feeder::counts);
        let process = |process: &ReplicaProcess| {
            let stage = process.replica.as_ref().map(Replica::stage);
            let held = stage.map(|stage| (stage.config().stage, stage.held(), stage.describe()));
            format!("{:?} {:?} {held:?}", process.instance, process.liveness)
        };
        let alive = self.replicas.iter().filter(|process| process.is_alive());
        let processes: Vec<_> = alive.map(process).collect();
        format!("{:?}\n{feeder:?}\n{}\n{:?}", self.now(), processes.join("\n"), self.scenario)
    }

    fn peers_of(&self, part: &BTreeSet<usize>) -> BTreeSet<PeerId> {
        part.iter().map(|&index| self.replicas[index].instance.peer).collect()
    }

    fn time_between(&mut self, from: Duration, to: Duration) -> Duration {
        time_between(&mut self.rng, from, to)
    }
}
