//! One replica of a stage: the thread that computes and the loop around it.
//!
//! `engine` is what is done to a microbatch, `executor` the thread that does it, `server` the loop that asks the
//! scheduler what to do, `join` the way in and out.

mod engine;
mod executor;
mod join;
mod server;

pub use engine::{Engine, EngineError, Learning, StateError, Visit, state_bytes_max};
pub use join::{JoinOptions, join};
