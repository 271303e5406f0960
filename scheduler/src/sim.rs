//! A seeded world around the production state machines: a coordinator, a feeder with its journal, replicas with executors,
//! a network that delays, loses, breaks and splits. One seed gives one run; every run has a step bound.
//!
//! The machines are the types that production runs, [`Replica`](crate::Replica) among them, so the world has no rules
//! of its own: it carries messages, keeps time and performs the actions of the machines. A reference model watches
//! their events and actions and checks the rules that must always hold; a run that breaks a rule ends with a
//! [`Violation`].
//!
//! Describe a run with a [`Scenario`], run it in a [`World`], and read the [`Report`].

mod account;
mod act;
mod connections;
mod delivery;
mod donor_act;
pub mod dropout;
mod executor;
mod fault;
mod feeder_act;
mod keeper_process;
mod network;
mod noise;
mod payload;
mod process;
pub(crate) mod queue;
mod recoveries;
mod reference_model;
mod report;
mod scenario;
mod scenario_error;
mod state;
#[cfg(test)]
mod tests;
mod uplink;
mod wan;
mod world;

pub use account::{Account, Losses};
pub use act::Act;
pub use donor_act::DonorAct;
pub use fault::{End, Fault, Way};
pub use feeder_act::FeederAct;
pub use network::Links;
pub use report::{ReplicaReport, Report, Violation};
pub use scenario::{Measure, Scenario};
pub use scenario_error::{FRAGMENTS_MAX, MEMBERS_MAX, SLOTS_MAX, ScenarioError};
pub use uplink::Uplinks;
pub use wan::{FrameBytes, Path, Wan};
pub use world::World;
