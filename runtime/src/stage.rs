//! Computation of a stage: the engine that does the work of a microbatch, the thread that runs it, and the state of a
//! stage as bytes for a joining replica.

mod engine;
mod executor;
mod recut;
mod state_check;
mod state_transfer;

pub use engine::{Engine, EngineError, Grant, Learning, LossAndGradient, StateError, state_bytes_max};
pub use recut::{recut_state, stages_with_layers_of};
pub use state_check::check_state;
pub use state_transfer::{StateCopy, StateInbox, chunk_digest, chunk_sketch, download_limits};

pub(crate) use engine::Exported;
pub(crate) use executor::{Compute, Executor, ExecutorEvent, Origin};
