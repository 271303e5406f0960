//! The decision logic of swarmline.
//!
//! Pure and sans-IO: no socket, no clock, no entropy, no tensor. Time and seeds are arguments, so a seed reproduces a
//! run bit for bit. State machines have four verbs and nothing else: `handle(now, event)`, `poll_action()`,
//! `poll_timeout()` and getters. After every `handle`, drain the actions before the next.
//!
//! Each process of a run is one machine. A [`Replica`] serves a stage, a [`Feeder`] injects microbatches and counts
//! outcomes, a [`Keeper`] takes the states for checkpoints, the [`Coordinator`] decides about the members and their
//! places. Replicas and feeders exchange [`Message`]s
//! and know each other from the [`Membership`] that the coordinator publishes. Start reading at [`stage`], the life of a
//! microbatch, and go on with [`replica`], the life of a process.
//!
//! The other modules are parts of these machines. A policy of [`router`] chooses the next replica, [`health`] judges
//! which neighbours live, [`averaging`] keeps the replicas of a stage together, [`transfer`] gives their state to a
//! joiner. [`topology`] computes the highest throughput of a swarm.

mod ack_range;
mod alarms;
pub mod averaging;
pub mod coordinator;
mod directive;
mod evidence;
pub mod feeder;
#[cfg(test)]
mod fixtures;
mod handoff;
pub mod health;
mod id;
mod id_set;
pub mod keeper;
mod lease;
mod membership;
mod message;
mod moving_average;
mod mutation;
mod peer_table;
mod places;
pub mod prediction;
pub mod recovery_report;
pub mod replica;
mod rng;
mod route_proof;
pub mod router;
#[cfg(any(test, feature = "sim"))]
pub mod sim;
pub mod stage;
mod table;
mod time;
pub mod topology;
pub mod transfer;

pub use ack_range::{ACK_OPEN_MAX, ACK_RANGES_MAX, AckRange};
pub use averaging::Averaging;
pub use coordinator::Coordinator;
pub use directive::Directive;
pub use evidence::Evidence;
pub use feeder::{Admission, Feeder};
pub use health::{Health, Quarantine, Suspension, Verdict};
pub use id::{
    Attempt, Block, Hop, Incarnation, Instance, MicrobatchId, PeerId, ProcessNumber, StageIndex,
    WeightVersion,
};
pub use id_set::IdSet;
pub use keeper::Keeper;
pub use lease::{BlockTally, LEASE_COUNT_MAX, LEASES_MAX, Lease, LeaseRefusal, LeasedRange, RunTally};
pub use membership::{Member, MemberState, Membership, Origin, Role, WeightsPolicy};
pub use message::{CLAIM_MAX, Envelope, Heartbeat, Loss, Message, Purpose, Refusal, Status};
pub use moving_average::MovingAverage;
pub use peer_table::PeerTable;
pub use prediction::Reader;
pub use replica::Replica;
pub use rng::Rng;
pub use route_proof::{ROUTE_KEY_BYTES, RouteKey, RouteProof, RouteSecret};
pub use stage::Stage;
pub use table::{Table, TableChange, TableUpdate};
pub use time::{Duration, Time};
