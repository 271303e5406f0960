//! Which replica a microbatch visits next.
//!
//! A policy is a [`Router`]; its settings are a type of their own that is a [`RouterFactory`]. A sender owns one
//! router, asks it with the candidates of the next stage and tells it what became of what it sent.

#[cfg(test)]
mod fixtures;
mod iwrr;
mod least_outstanding;
mod outstanding;
mod policy;
mod sample;
#[cfg(test)]
mod tests;
mod uniform;

use std::fmt::Debug;

use crate::{Duration, Hop, MicrobatchId, Time};

pub use iwrr::{Iwrr, IwrrConfig};
pub use least_outstanding::{Resident, ResidentConfig};
pub use outstanding::Residents;
pub use policy::{Policy, UnknownPolicy};
pub use sample::{CANDIDATES_MAX, Sample};
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

/// A replica of the next stage that a microbatch may be handed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Which one.
    pub hop: Hop,
    /// Its moving average of the time one forward takes to compute, as it reports it; `None` if unknown.
    pub service: Option<Duration>,
    /// Round trip to it; zero if unknown.
    pub rtt: Duration,
}

impl Candidate {
    /// A replica of which nothing is known yet.
    #[must_use]
    pub fn unknown(hop: Hop) -> Self {
        Self { hop, service: None, rtt: Duration::ZERO }
    }
}

/// What a router chooses from.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Ordered by peer id, at most [`CANDIDATES_MAX`] of them; none is suspect, all have a credit.
    pub candidates: &'a [Candidate],
    /// Peers, this one included, that hand microbatches to a candidate. 0 counts as 1.
    pub senders: u32,
}

/// A policy that chooses among the candidates of a stage.
pub trait Router: Debug + Send {
    /// One of the candidates, or `None` to hold the microbatch for now: ask again when something is settled or the
    /// candidates change.
    fn choose(&mut self, now: Time, choice: &Choice<'_>) -> Option<Hop>;

    /// What was handed over and is not settled.
    fn residents(&self) -> &Residents;

    /// The same, for the router itself to keep up.
    fn residents_mut(&mut self) -> &mut Residents;

    /// A microbatch was handed to `to`.
    fn on_sent(&mut self, _now: Time, to: Hop, _microbatch: MicrobatchId) {
        self.residents_mut().add(to);
    }

    /// What was handed to `to` is settled; exactly once for every `on_sent`, whether or not `to` still lives.
    fn on_settled(&mut self, _now: Time, to: Hop, _microbatch: MicrobatchId, _how: Settled) {
        self.residents_mut().remove(&to);
    }

    /// Microbatches handed to `hop` and not settled.
    fn resident(&self, hop: &Hop) -> u32 {
        self.residents().of(hop)
    }
}

/// Builds routers of one policy.
pub trait RouterFactory: Debug + Send + Sync {
    /// A fresh router whose draws follow from `seed`.
    fn build(&self, seed: u64) -> Box<dyn Router>;
}
