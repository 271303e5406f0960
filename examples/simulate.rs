//! A swarm in virtual time: `cargo run --release --example simulate -- [SEED]`.
//!
//! The state machines of production play a run with faults drawn from the seed: replicas crash, stall and leave, donors
//! lie, links break. Equal seeds give equal runs. The program prints the report, with each fault and each recovery.

use std::io::Write as _;

use anyhow::Context as _;
use swarmline_scheduler::sim::{Scenario, World};

/// Played if none is given.
const SEED: u64 = 746;

fn main() -> anyhow::Result<()> {
    let seed = std::env::args().nth(1).map_or(Ok(SEED), |seed| seed.parse());
    let seed = seed.context("usage: simulate [SEED], a whole number")?;
    let report = World::new(Scenario::drawn(seed))?.run()?;
    std::io::stdout().write_all(report.to_string().as_bytes())?;
    Ok(())
}
