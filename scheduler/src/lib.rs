//! The part of swarmline that decides.
//!
//! Pure and sans-IO: no socket, no clock, no entropy, no tensor. Time and seeds come in as arguments, so a
//! seed gives a run again, bit for bit. State machines have four verbs and nothing else: `handle(now, event)`,
//! `poll_action()`, `poll_timeout()` and getters. After every `handle`, drain the actions before the next.
//!
//! Three machines: [`Stage`] is one replica, [`Feeder`] injects microbatches and counts outcomes, [`Coordinator`]
//! says who takes part and who serves what. Replicas and feeders talk in [`Message`]s and know each other from the
//! [`Membership`] the coordinator publishes. Start reading at [`stage`]. Which replica comes next is a policy of
//! [`router`]; who lives and who does not is an opinion of [`health`].
//!
//! Beside a stage, replicas of it keep their weights together ([`Averaging`]) and give them to those who join
//! ([`transfer`]).

pub mod averaging;
pub mod coordinator;
pub mod feeder;
#[cfg(test)]
mod fixtures;
mod handoff;
pub mod health;
mod id;
mod lease;
mod message;
mod moving_average;
mod mutation;
mod peer_table;
pub mod recovery_report;
mod rng;
pub mod router;
#[cfg(test)]
mod sim;
pub mod stage;
mod time;
pub mod transfer;

pub use averaging::Averaging;
pub use coordinator::Coordinator;
pub use feeder::Feeder;
pub use feeder::{Admission, Window};
pub use health::{Health, Quarantine, Suspension, Verdict};
pub use id::{Attempt, Incarnation, MicrobatchId, PeerId, StageIndex, WeightVersion};
pub use lease::{
    HeldLease, LEASE_COUNT_MAX, LEASES_MAX, Lease, LeaseBook, LeaseRefusal, SUCCESSIONS_MAX, Succession,
};
pub use message::{
    Beat, CLAIM_MAX, Holding, Hop, Loss, Member, Membership, Message, Purpose, Refusal, Role, SPAN_BYTES_MAX,
    SPANS_MAX, Span, Standing,
};
pub use moving_average::MovingAverage;
pub use peer_table::PeerTable;
pub use recovery_report::Inventory;
pub use rng::Rng;
pub use stage::Stage;
pub use time::{Duration, Time};
