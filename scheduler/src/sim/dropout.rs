//! TUD-1: throughput under dropout, a fixed amount of trouble for every router and every build.
//!
//! A [`Workload`] is a swarm of unequal peers over twelve regions of the world, and what befalls them. Everything follows
//! from its shape, its churn and its seed: the peers, and a [`Trace`] of strikes that can be written down and replayed
//! elsewhere. [`Workload::play`] plays it in virtual time. The [`Report`](super::Report) says how much of the capacity
//! that lived became finished microbatches, and its account where the rest went.
//!
//! The first fifth of a run is not measured.

mod churn;
mod peers;
mod regions;
mod trace;
mod workload;

pub use churn::Churn;
pub use peers::Peer;
pub use regions::{REGIONS, paths};
pub use trace::{Strike, Trace, What};
pub use workload::{EPOCH, Shape, ShapeError, Workload};
