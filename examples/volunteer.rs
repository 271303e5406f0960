//! The shortest program that serves a stage: `cargo run --release --example volunteer -- KEY@HOST:PORT`.
//!
//! It joins the run at the address, trains its stage, and leaves at the end of the run or on Ctrl-C.

use anyhow::Context as _;
use swarmline::report::{Audience, Reporter};
use swarmline::{Identity, Invite, Replica, ReplicaOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let invite: Invite = std::env::args().nth(1).context("usage: volunteer KEY@HOST:PORT")?.parse()?;
    let replica = Replica::join(ReplicaOptions::new(invite, Identity::ephemeral()?)).await?;
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    replica.run(&Reporter::new(Audience::People), stop).await?;
    Ok(())
}
