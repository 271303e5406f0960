//! A seeded world around the production state machines: a coordinator, a feeder with its journal, replicas with executors,
//! a network that delays, loses, breaks and splits. One seed gives one run; every run has a step bound.
//!
//! The machines are the very types that production runs, [`Replica`](crate::Replica) among them, so the world has no rule
//! of its own: it carries messages, keeps time and does what a machine asks. A reference model watches
//! what goes in and comes out, and knows what must hold whatever happens; a run that breaks a rule ends with a
//! [`Violation`].
//!
//! Describe a run with a [`Scenario`], play it in a [`World`], and read the [`Report`].

mod capacity;
mod delivery;
mod executor;
mod fault;
mod network;
mod noise;
mod payload;
mod process;
pub(crate) mod queue;
mod reference_model;
mod report;
mod scenario;
mod state;
#[cfg(test)]
mod tests;
mod world;

pub use fault::Fault;
pub use network::Links;
pub use report::{ReplicaReport, Report, Violation};
pub use scenario::{Measure, Scenario};
pub use world::World;
