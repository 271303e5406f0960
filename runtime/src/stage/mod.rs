//! One replica of a stage: the thread that computes and the loop around it.

mod engine;
mod executor;

pub use engine::{Engine, EngineError, Learning, Statistics, Visit};
