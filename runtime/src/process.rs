//! What the processes of a run have in common: a clock, heartbeats to the coordinator, the data plane, and a rule about
//! which network events a person hears of.

mod clock;
mod heartbeats;
mod network;
mod notices;

pub(crate) use clock::{Clock, incarnation};
pub(crate) use heartbeats::Heartbeats;
pub(crate) use network::{Network, NetworkOptions, lost_instance};
pub(crate) use notices::Notices;
