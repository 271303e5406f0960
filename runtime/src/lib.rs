//! The part of swarmline that acts: threads, sockets, weights and files.

pub mod config;
