//! Which replica a microbatch visits next.
//!
//! A policy is a [`Router`]; its settings are a type of their own that is a [`RouterFactory`]. A sender owns one
//! router, asks it with the candidates of the next stage and tells it what became of what it sent.

mod uniform;

use std::fmt::Debug;

use crate::{Hop, MicrobatchId, Time};

pub use uniform::{Uniform, UniformConfig};

/// What became of a microbatch handed to a replica.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Its gradient or its evaluation came back.
    Returned,
    /// It was refused, by whomever.
    Refused,
    /// The replica was lost.
    Lost,
}

/// A policy that chooses among the eligible replicas of a stage.
pub trait Router: Debug + Send {
    /// One of `eligible`, or `None` to choose none of them. `eligible` is ordered by peer id.
    fn choose(&mut self, now: Time, eligible: &[Hop]) -> Option<Hop>;

    /// A microbatch was handed to `to`.
    fn on_sent(&mut self, _now: Time, _to: Hop, _microbatch: MicrobatchId) {}

    /// What was handed to `to` is settled; exactly once for every `on_sent`.
    fn on_settled(&mut self, _now: Time, _to: Hop, _microbatch: MicrobatchId, _how: Settled) {}
}

/// Builds routers of one policy.
pub trait RouterFactory: Debug + Send + Sync {
    /// A fresh router whose draws follow from `seed`.
    fn build(&self, seed: u64) -> Box<dyn Router>;
}
