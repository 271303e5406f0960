//! One replica of a stage: the thread that computes and the loop around it.
//!
//! `engine` is what is done to a microbatch, `executor` the thread that does it, `server` the loop that asks the
//! scheduler what to do, `join` the way in, `leave` the way out. `average` drives the rounds of the replica. `transit`
//! is a stage's state on its way to a joining replica, which `download`s what others `donate`.

mod average;
mod donate;
mod download;
mod engine;
mod executor;
mod join;
mod leave;
mod ledger;
mod server;
mod transit;

pub use engine::{Engine, EngineError, Grant, Learning, StateError, Visit, state_bytes_max};
pub use join::{JoinOptions, join};
pub use transit::{StateCopy, StateInbox, arrived_chunk, download_limits};
