//! Real processes of the binary on loopback: their behaviour, messages and exit codes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod asynchronous;
mod attack;
mod bench;
mod bucket;
mod churn;
mod cuda;
mod cut_off;
mod divergence;
mod export;
mod feeders;
mod gpu;
mod hostile;
mod in_bucket;
mod interrupt;
mod keep;
mod kept;
mod leak;
mod liar;
mod mistakes;
mod own_keeper;
mod parity;
mod process;
mod reader;
mod recipe;
mod replicas;
mod resume;
mod rogue;
mod run_folder;
mod same_key;
mod silence;
mod standby;
mod swarm;
