//! The choice of the replica for a microbatch.
//!
//! A policy is a [`Router`]; its settings are a type of their own that is a [`RouterFactory`]. A sender owns one router,
//! offers it the candidates of the next stage and reports the completion of each microbatch that it sent.

#[cfg(test)]
mod fixtures;
mod iwrr;
mod least_outstanding;
mod outstanding;
mod pairing;
mod policy;
#[cfg(test)]
mod tests;
mod uniform;

use std::fmt::Debug;

use crate::{Duration, Hop, MicrobatchId, Time};

pub use iwrr::{Iwrr, IwrrConfig};
pub use least_outstanding::{LeastOutstanding, LeastOutstandingConfig};
pub use outstanding::Outstanding;
pub use pairing::{Pairing, REPLICAS_OF_A_SENDER, SENDERS_OF_A_REPLICA};
pub use policy::Policy;
pub use uniform::{Uniform, UniformConfig};

/// Replicas that one decision looks at, at most: its cost does not grow with the swarm.
pub const CANDIDATES_MAX: usize = 64;

/// The way in which an attempt with a replica ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Completion {
    /// The gradient or evaluation came back.
    Returned,
    /// A replica refused the microbatch.
    Refused,
    /// The replica was lost.
    Lost,
}

/// A replica of the next stage that a microbatch may be handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// The replica.
    pub hop: Hop,
    /// Moving average of the time of one forward, as the replica reports it; `None` if unknown.
    pub service: Option<Duration>,
    /// Smoothed round trip to the replica, as the transport measures it; zero if unknown.
    pub rtt: Duration,
}

impl Candidate {
    /// A replica that has reported nothing yet.
    #[must_use]
    pub fn unknown(hop: Hop) -> Self {
        Self { hop, service: None, rtt: Duration::ZERO }
    }
}

/// The candidates of a decision.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// The candidates by peer id, at most [`CANDIDATES_MAX`]; all are healthy and have credit left.
    pub candidates: &'a [Candidate],
    /// Peers, this one included, that hand microbatches to a candidate. 0 counts as 1.
    pub senders: u32,
}

/// A policy that chooses among the candidates of a stage.
pub trait Router: Debug + Send {
    /// One of the candidates, or `None` to hold the microbatch until a microbatch is completed or the candidates
    /// change.
    fn choose(&mut self, now: Time, choice: &Choice<'_>) -> Option<Hop>;

    /// The microbatches that were handed over and are not completed.
    fn outstanding(&self) -> &Outstanding;

    /// The same, for updates by the router itself.
    fn outstanding_mut(&mut self) -> &mut Outstanding;

    /// A microbatch was handed to `to`.
    fn on_sent(&mut self, _now: Time, to: Hop, _microbatch: MicrobatchId) {
        self.outstanding_mut().add(to);
    }

    /// A microbatch handed to `to` is completed; exactly once for every `on_sent`, whether or not `to` still lives.
    fn on_completed(&mut self, _now: Time, to: Hop, _microbatch: MicrobatchId, _how: Completion) {
        self.outstanding_mut().remove(&to);
    }

    /// Microbatches handed to `hop` and not completed.
    fn outstanding_at(&self, hop: &Hop) -> u32 {
        self.outstanding().of(hop)
    }
}

/// Builds routers of one policy.
pub trait RouterFactory: Debug + Send + Sync {
    /// A new router whose draws follow from `seed`.
    fn build(&self, seed: u64) -> Box<dyn Router>;
}
