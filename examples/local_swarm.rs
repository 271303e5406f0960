//! A whole swarm in one program: `cargo run --release --example local_swarm -- [FILE OR FOLDER]`.
//!
//! A coordinator, a feeder and a replica per stage run as tasks, speak over real sockets on loopback and train a small
//! model on the text for a few dozen microbatches. Every replica computes on a thread of its own. Without an argument
//! the text is the Rust sources of this workspace. The program ends with the run.

use std::future::pending;
use std::path::{Path, PathBuf};

use swarmline::config::Data;
use swarmline::report::Reporter;
use swarmline::{
    Coordinator, CoordinatorOptions, Feeder, FeederOptions, Identity, Replica, ReplicaOptions, Run,
};
use tokio::task::JoinSet;

/// A run file, as `swarmline coordinator --run` would read it.
const RUN: &str = r#"
name = "local-swarm"
seed = 1

[model]
hidden_size = 64
num_hidden_layers = 4
max_position_embeddings = 64

[pipeline]
stages = 4

[optimizer]
learning_rate = 0.004
steps = 60

[data]
paths = ["runtime/src", "scheduler/src", "kernels/src"]
extensions = ["rs"]
"#;

/// Folder that the paths in [`RUN`] start from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let run = run_on(std::env::args_os().nth(1).map(PathBuf::from))?;
    let stages = run.pipeline.stages;
    let options = CoordinatorOptions::new(run, Identity::ephemeral()?).with_base(WORKSPACE);
    let coordinator = Coordinator::bind(options).await?;
    let invite = coordinator.invite().clone();

    let mut swarm = JoinSet::new();
    swarm.spawn(async move { coordinator.run(&printing("coordinator"), pending()).await });
    for index in 0..stages {
        let options = ReplicaOptions::new(invite.clone(), Identity::ephemeral()?);
        let reporter = printing(&format!("replica {index}"));
        swarm.spawn(async move { Replica::join(options).await?.run(&reporter, pending()).await });
    }
    let options = FeederOptions::new(invite, Identity::ephemeral()?);
    swarm.spawn(async move { Feeder::open(options).await?.run(&printing("feeder"), pending()).await });

    while let Some(ended) = swarm.join_next().await {
        ended??;
    }
    Ok(())
}

/// The run above, on the text at `path` if there is one.
fn run_on(path: Option<PathBuf>) -> anyhow::Result<Run> {
    let mut run = Run::parse(RUN, "the run in this program", Path::new(WORKSPACE))?;
    if let Some(path) = path {
        run.data = Data::of(vec![std::path::absolute(path)?]);
    }
    Ok(run)
}

/// A reporter that prints each event after the name of its task.
#[expect(clippy::print_stdout, reason = "standard output is where this program shows its events")]
fn printing(name: &str) -> Reporter {
    let name = name.to_owned();
    Reporter::to(move |event| println!("{name:<12} {event}"))
}
