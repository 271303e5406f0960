//! The processes of the world.

use std::net::SocketAddr;

use super::Delivery;
use super::averaging::Rounds;
use super::executor::Executor;
use super::scenario::Scenario;
use crate::feeder::Record;
use crate::{Duration, Feeder, Incarnation, PeerId, Role, Stage};

/// Whether a process runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Liveness {
    Dead,
    Awake,
    /// Stopped; what arrives waits.
    Suspended,
}

#[derive(Debug)]
pub(super) struct ReplicaNode {
    pub(super) peer: PeerId,
    pub(super) incarnation: Incarnation,
    pub(super) liveness: Liveness,
    /// The coordinator has let this start in.
    pub(super) admitted: bool,
    /// Waits for the coordinator's word after a suspension.
    pub(super) unsure: bool,
    pub(super) stage: Option<Stage<u8>>,
    /// Only where there is averaging, and with a stage.
    pub(super) rounds: Option<Rounds>,
    pub(super) executor: Executor,
    pub(super) slots: usize,
    pub(super) service: Duration,
    pub(super) backlog: Vec<Delivery>,
}

impl ReplicaNode {
    pub(super) fn new(index: usize, scenario: &Scenario) -> Self {
        Self {
            peer: PeerId([u8::try_from(index + 1).unwrap(); 32]),
            incarnation: Incarnation(0),
            liveness: Liveness::Dead,
            admitted: false,
            unsure: false,
            stage: None,
            rounds: None,
            executor: Executor::default(),
            slots: scenario.slots_of(index),
            service: scenario.service_of(index),
            backlog: Vec::new(),
        }
    }
}

/// A feeder and what it has on disk.
#[derive(Debug)]
pub(super) struct FeederNode {
    pub(super) peer: PeerId,
    /// As what it joins.
    pub(super) role: Role,
    pub(super) incarnation: Incarnation,
    /// The coordinator has let this start in.
    pub(super) admitted: bool,
    /// `None` while it is dead.
    pub(super) machine: Option<Feeder<u8>>,
    pub(super) journal: Vec<Record>,
}

impl FeederNode {
    pub(super) fn new(index: usize) -> Self {
        Self {
            peer: PeerId([200 + u8::try_from(index).unwrap(); 32]),
            role: if index == 0 { Role::Feeder } else { Role::Successor },
            incarnation: Incarnation(0),
            admitted: false,
            machine: None,
            journal: Vec::new(),
        }
    }
}

pub(super) fn coordinator_key() -> PeerId {
    PeerId([255; 32])
}

pub(super) fn address() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4_000))
}
