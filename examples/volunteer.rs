//! The shortest program that serves a stage: `cargo run --release --example volunteer -- KEY@HOST:PORT`.
//!
//! It joins the run behind the address, trains the stage it is given, and leaves when the run is over or on Ctrl-C.

use anyhow::Context as _;
use swarmline::net::{Identity, Invite};
use swarmline::report::{Audience, Reporter};
use swarmline::stage::{self, JoinOptions};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let address = std::env::args().nth(1).context("usage: volunteer KEY@HOST:PORT")?;
    let options = JoinOptions::new(address.parse::<Invite>()?, Identity::ephemeral()?);
    let stop = async {
        let _ = tokio::signal::ctrl_c().await;
    };
    stage::join(options, &Reporter::new(Audience::People), stop).await?;
    Ok(())
}
