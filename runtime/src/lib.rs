//! The part of swarmline that acts: threads, sockets, weights and files.
//!
//! A process of a run is one call: [`coordinator::coordinate`], [`stage::join`], [`feeder::feed`], or
//! [`train::train`] for the whole model in one process. Each takes a future that resolves when it shall stop, and a
//! [`report::Reporter`] it speaks to. Rules live in `swarmline_scheduler`, arithmetic in `swarmline_kernels`.

pub mod averaging;
pub mod bench;
pub mod cli;
mod clock;
pub mod config;
pub mod coordinator;
pub mod data;
mod error;
pub mod feeder;
mod hashing;
mod incidents;
mod member;
pub mod model;
pub mod net;
pub mod optim;
pub mod packing;
pub mod report;
pub mod stage;
pub mod subspace;
mod traffic;
pub mod train;

pub use error::Error;
