//! The part of swarmline that acts: threads, sockets, weights and files.

pub mod boundary;
pub mod cli;
pub mod config;
pub mod data;
mod error;
pub mod model;
pub mod net;
pub mod optim;
pub mod packing;
pub mod report;
pub mod stage;
pub mod train;

pub use error::Error;
