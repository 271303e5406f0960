//! A whole swarm in one program: `cargo run --release --example local_swarm -- [FILE OR FOLDER]`.
//!
//! A coordinator, a feeder and a replica per stage run as tasks, speak over real sockets on loopback and train a small
//! model on the text for a few dozen microbatches. Every replica computes on a thread of its own. Without an argument
//! the text is the Rust sources of this workspace. It ends when the run does.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use swarmline::config::{Data, Run};
use swarmline::coordinator::{self, coordinate};
use swarmline::feeder::{FeedOptions, feed};
use swarmline::net::{Identity, Invite};
use swarmline::report::{Event, Reporter};
use swarmline::stage::{JoinOptions, join};
use tokio::sync::mpsc;
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

/// Where the paths in [`RUN`] start from.
const WORKSPACE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// An event and the task that told it.
type Told = (String, Event);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let run = run_on(std::env::args_os().nth(1).map(PathBuf::from))?;
    let stages = run.pipeline.stages;
    let (tell, mut told) = mpsc::unbounded_channel();
    let mut swarm = JoinSet::new();

    start_coordinator(&mut swarm, run, reporter("coordinator", &tell))?;
    let invite = tokio::select! {
        invite = first_invite(&mut told) => invite?,
        Some(ended) = swarm.join_next() => return ended?,
    };
    for index in 0..stages {
        let options = JoinOptions::new(invite.clone(), Identity::ephemeral()?);
        let reporter = reporter(&format!("replica {index}"), &tell);
        swarm.spawn(async move { Ok(join(options, &reporter, std::future::pending()).await?) });
    }
    let options = FeedOptions::new(invite, Identity::ephemeral()?);
    let reporter = reporter("feeder", &tell);
    swarm.spawn(async move {
        feed(options, &reporter, std::future::pending()).await?;
        Ok(())
    });

    // Every task holds a sender; the events end with the last task.
    drop(tell);
    loop {
        tokio::select! {
            Some((who, event)) = told.recv() => show(&who, &event),
            Some(ended) = swarm.join_next() => ended??,
            else => return Ok(()),
        }
    }
}

/// The run above, on the text at `path` if there is one.
fn run_on(path: Option<PathBuf>) -> anyhow::Result<Run> {
    let mut run = Run::parse(RUN, "the run in this program", Path::new(WORKSPACE))?;
    if let Some(path) = path {
        run.data = Data::of(vec![std::path::absolute(path)?]);
    }
    Ok(run)
}

fn start_coordinator(
    swarm: &mut JoinSet<anyhow::Result<()>>,
    run: Run,
    reporter: Reporter,
) -> anyhow::Result<()> {
    let options = coordinator::Options {
        run,
        base: PathBuf::from(WORKSPACE),
        identity: Identity::ephemeral()?,
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
    };
    swarm.spawn(async move {
        coordinate(options, &reporter, std::future::pending()).await?;
        Ok(())
    });
    Ok(())
}

/// What the coordinator says first is where to join.
async fn first_invite(told: &mut mpsc::UnboundedReceiver<Told>) -> anyhow::Result<Invite> {
    let (_, event) = told.recv().await.context("nobody is there to listen")?;
    let Event::Listening { invite, .. } = event else { bail!("the coordinator said {event} first") };
    Ok(invite.parse()?)
}

/// Sends what one task tells to the loop in `main`.
fn reporter(who: &str, tell: &mpsc::UnboundedSender<Told>) -> Reporter {
    let (who, tell) = (who.to_owned(), tell.clone());
    Reporter::to(move |event| {
        let _ = tell.send((who.clone(), event.clone()));
    })
}

#[expect(clippy::print_stdout, reason = "standard output is where this program shows its events")]
fn show(who: &str, event: &Event) {
    println!("{who:<12} {event}");
}
