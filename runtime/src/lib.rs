//! The part of swarmline that acts: threads, sockets, weights and files.

pub mod boundary;
pub mod config;
pub mod data;
pub mod model;
pub mod net;
pub mod optim;
pub mod packing;
pub mod stage;
