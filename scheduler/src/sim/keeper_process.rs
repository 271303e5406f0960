//! A keeper's process, and the checkpoints in its target.

use std::collections::BTreeMap;

use crate::keeper::Given;
use crate::{Incarnation, Instance, Keeper, StageIndex, Time};

use super::payload::Payload;
use super::process::keeper_key;

/// A keeper's process and its target.
#[derive(Debug)]
pub(super) struct KeeperProcess {
    pub(super) instance: Instance,
    /// This start is a member.
    pub(super) admitted: bool,
    /// The machine; `None` while the process is dead.
    pub(super) machine: Option<Keeper<Payload>>,
    /// The words of a state that is being downloaded, or whose write has failed.
    pub(super) inbox: Vec<u64>,
    /// The checkpoint that is not complete.
    pub(super) open: Checkpoint,
    /// The newest complete checkpoint. It outlives the process.
    pub(super) newest: Checkpoint,
    /// The copies that joiners take.
    pub(super) copies: BTreeMap<Given, Vec<u64>>,
    /// The time of its request to join.
    pub(super) registered_at: Time,
    /// The stream of tables is broken, and is opened again at this time.
    pub(super) tables_open_at: Option<Time>,
}

/// The states of the stages after so many microbatches of the run; 0 without any.
#[derive(Clone, Debug, Default)]
pub(super) struct Checkpoint {
    pub(super) microbatches: u64,
    pub(super) states: BTreeMap<StageIndex, Vec<u64>>,
}

impl KeeperProcess {
    pub(super) fn new(incarnation: Incarnation, newest: Checkpoint) -> Self {
        Self {
            instance: Instance::new(keeper_key(), incarnation),
            admitted: false,
            machine: None,
            inbox: Vec::new(),
            open: Checkpoint::default(),
            newest,
            copies: BTreeMap::new(),
            registered_at: Time::default(),
            tables_open_at: None,
        }
    }
}
