//! Shared parts of feeders and replicas: a clock, heartbeats to the coordinator, the data plane, and notices of network
//! incidents.

mod clock;
mod contact;
mod donors;
mod heartbeats;
mod network;
mod notices;
mod start;

pub(crate) use clock::Clock;
pub(crate) use contact::{Contact, PATIENCE};
pub(crate) use donors::donor_fault;
pub(crate) use heartbeats::Heartbeats;
pub(crate) use network::{Network, NetworkOptions, lost_instance};
pub(crate) use notices::Notices;
pub(crate) use start::{incarnation, join_after_former, registration};
