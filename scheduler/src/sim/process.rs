//! The processes of the world.

use std::collections::VecDeque;
use std::net::SocketAddr;

use crate::coordinator::Join;
use crate::feeder::{Action, Record};
use crate::{
    Duration, Feeder, Incarnation, Instance, PeerId, ProcessNumber, Replica, Role, StageIndex, Time,
};

use super::act::Act;
use super::delivery::Delivery;
use super::donor_act::DonorAct;
use super::executor::Executor;
use super::feeder_act::FeederAct;
use super::payload::Payload;
use super::scenario::Scenario;
use super::state::Weights;

/// The liveness of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Dead,
    Awake,
    /// Stopped; deliveries wait in the backlog.
    Suspended,
}

/// A volunteer's process.
#[derive(Debug)]
pub(super) struct ReplicaProcess {
    pub(super) instance: Instance,
    /// Each process that is started after a crash draws another.
    pub(super) number: ProcessNumber,
    /// Another process with its key lives, for all that the coordinator knows: it asks again.
    pub(super) is_refused: bool,
    pub(super) liveness: Liveness,
    /// This start is a member.
    pub(super) admitted: bool,
    /// The shard of a stage is being built.
    pub(super) is_building: bool,
    /// The machine; `None` before the shard is built.
    pub(super) replica: Option<Replica<Payload>>,
    pub(super) executor: Executor,
    /// The weights of the stage that it served when it was expelled.
    pub(super) kept: Option<(StageIndex, Weights)>,
    pub(super) slots: usize,
    pub(super) service: Duration,
    /// The way in which it lies to joiners, and the end of that.
    pub(super) donor_act: Option<(DonorAct, Time)>,
    /// The way in which it lies, and the end of that.
    pub(super) act: Option<(Act, Time)>,
    /// The end of its last suspension.
    pub(super) resumed_at: Option<Time>,
    /// The lateness of its copies for averaging rounds, and its end.
    pub(super) slow_copies: (Duration, Time),
    pub(super) backlog: Vec<Delivery>,
    /// The time of its request to join.
    pub(super) registered_at: Time,
    /// The time of the heartbeat that has no reply yet.
    pub(super) heartbeat_sent_at: Option<Time>,
    /// The stream of tables is broken, and is opened again at this time.
    pub(super) tables_open_at: Option<Time>,
}

impl ReplicaProcess {
    pub(super) fn new(index: usize, incarnation: Incarnation, scenario: &Scenario) -> Self {
        Self {
            instance: Instance::new(replica_key(index), incarnation),
            number: ProcessNumber::default(),
            is_refused: false,
            liveness: Liveness::Dead,
            admitted: false,
            is_building: false,
            replica: None,
            executor: Executor::new(scenario.fragments(), scenario.gradient_accumulation_steps),
            kept: None,
            slots: scenario.slots_of(index),
            service: scenario.service_of(index),
            donor_act: None,
            act: None,
            resumed_at: None,
            slow_copies: Default::default(),
            backlog: Vec::new(),
            registered_at: Time::default(),
            heartbeat_sent_at: None,
            tables_open_at: None,
        }
    }

    pub(super) fn is_alive(&self) -> bool {
        self.liveness != Liveness::Dead
    }

    /// Whether it has trained weights of a stage, which it serves or served.
    pub(super) fn holds_trained(&self, stage: StageIndex) -> bool {
        let serves = |replica: &&Replica<_>| replica.is_serving() && replica.config().stage.stage == stage;
        let serving = self.replica.as_ref().filter(serves).map(|_| &self.executor.weights);
        let kept = self.kept.as_ref().filter(|(kept, _)| *kept == stage).map(|(_, weights)| weights);
        self.is_alive() && serving.or(kept).is_some_and(Weights::is_trained)
    }
}

/// An action that a feeder has decided on and not done.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) action: Action<Payload>,
    /// The start that a message is for, by the table at the time of the decision.
    pub(super) receiver: Option<Instance>,
}

/// A feeder's process and its journal.
#[derive(Debug)]
pub(super) struct FeederProcess {
    pub(super) instance: Instance,
    /// The role it joins in.
    pub(super) role: Role,
    /// This start is a member.
    pub(super) admitted: bool,
    /// The machine; `None` while the process is dead.
    pub(super) machine: Option<Feeder<Payload>>,
    /// The machine has ended.
    pub(super) ended: bool,
    /// The coordinator has not replied to the report that its work is done.
    pub(super) owes_report: bool,
    /// The way in which it lies.
    pub(super) act: Option<FeederAct>,
    /// It is never started again.
    pub(super) is_gone: bool,
    /// The successor came after the run was finished.
    pub(super) is_late: bool,
    /// The records that are durable.
    pub(super) journal: Vec<Record>,
    /// Actions that wait until the record at their front is durable, that record first.
    pub(super) pending: VecDeque<Pending>,
    /// A sync of the journal is under way.
    pub(super) is_syncing: bool,
    /// The time of its request to join; `None` if that was refused.
    pub(super) registered_at: Option<Time>,
    /// The stream of tables is broken, and is opened again at this time.
    pub(super) tables_open_at: Option<Time>,
}

impl FeederProcess {
    pub(super) fn new(index: usize, role: Role) -> Self {
        Self {
            instance: Instance::new(feeder_key(index), Incarnation(0)),
            role,
            admitted: false,
            machine: None,
            ended: false,
            owes_report: false,
            act: None,
            is_gone: false,
            is_late: false,
            journal: Vec::new(),
            pending: VecDeque::new(),
            is_syncing: false,
            registered_at: None,
            tables_open_at: None,
        }
    }

    /// The process dies, and with it the actions that it has not done.
    pub(super) fn lose_power(&mut self) {
        (self.machine, self.is_syncing) = (None, false);
        self.pending.clear();
    }
}

/// A key with `number` in its first bytes; replicas are numbered from 1.
fn key(number: u32) -> PeerId {
    let mut key = [0; 32];
    key.chunks_exact_mut(4).for_each(|chunk| chunk.copy_from_slice(&number.to_le_bytes()));
    PeerId(key)
}

fn replica_key(index: usize) -> PeerId {
    key(u32::try_from(index).unwrap_or(u32::MAX).saturating_add(1))
}

pub(super) fn keeper_key() -> PeerId {
    key(0xFFFE_0000)
}

fn feeder_key(index: usize) -> PeerId {
    key(0xFFFF_0000 + u32::try_from(index).unwrap_or(0))
}

pub(super) fn coordinator_key() -> PeerId {
    key(u32::MAX)
}

/// The index of the replica with this key; `None` if the key has number 0.
pub(super) fn replica_index(peer: PeerId) -> Option<usize> {
    let number = u32::from_le_bytes(*peer.0.first_chunk()?);
    usize::try_from(number.checked_sub(1)?).ok()
}

/// A request to join.
pub(super) fn join(from: Instance, process: ProcessNumber, role: Role) -> Join {
    let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
    Join { from, process, takes_over: false, role, address, holds: None }
}
