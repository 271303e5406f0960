//! The processes of a demo: this binary, started once for each member.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use swarmline_kernels::device::Setup;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::audit::APPLIED_LOG;
use crate::cli::failure::Failure;
use crate::report::Event;

/// A started process may take this long to its first event: key generation, binding, building a shard.
const FIRST_EVENT_WITHIN: Duration = Duration::from_secs(20);
/// A process that was asked to stop gets this long to hand over and leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);
/// Limit of the events that wait to be drawn; beyond it, a process blocks on its pipe.
const EVENTS_QUEUED_MAX: usize = 1024;

/// A process of the demo.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Coordinator,
    Feeder,
    Replica(usize),
}

/// Output of a process, and its end.
#[derive(Debug)]
pub(super) enum Output {
    /// An event on standard output.
    Event(Event),
    /// A line on standard error.
    Complaint(String),
    /// The process has ended, and all its output was read.
    Ended,
}

/// The running processes. Dropping the swarm closes their standard input, which asks them to stop.
#[derive(Debug)]
pub(super) struct Swarm {
    processes: Vec<(Source, Process)>,
    /// Device, profile and threads of a replica.
    setup: Setup,
    /// Folder for the applied logs of replicas.
    folder: PathBuf,
    sender: mpsc::Sender<(Source, Output)>,
    events: mpsc::Receiver<(Source, Output)>,
}

#[derive(Debug)]
struct Process {
    child: Child,
    leash: Option<ChildStdin>,
}

impl Swarm {
    pub(super) fn new(folder: &Path, setup: Setup) -> Self {
        let (sender, events) = mpsc::channel(EVENTS_QUEUED_MAX);
        Self { processes: Vec::new(), setup, folder: folder.to_owned(), sender, events }
    }

    /// Starts the coordinator and returns the invite it prints.
    pub(super) async fn start_coordinator(&mut self, run_file: &Path) -> Result<(String, String), Failure> {
        let run_file = run_file.to_string_lossy();
        self.start(Source::Coordinator, &["coordinator", "--run", &run_file, "--listen", "127.0.0.1:0"])?;
        let first = tokio::time::timeout(FIRST_EVENT_WITHIN, self.events.recv()).await;
        match first {
            Ok(Some((_, Output::Event(Event::Listening { invite, manifest })))) => Ok((invite, manifest)),
            Ok(Some((_, Output::Complaint(complaint)))) => {
                Err(Failure::failed(format!("the coordinator process did not come up: {complaint}")))
            }
            Ok(_) | Err(_) => Err(Failure::failed(format!(
                "the coordinator process did not come up within {} s",
                FIRST_EVENT_WITHIN.as_secs()
            ))),
        }
    }

    pub(super) fn start_replica(&mut self, index: usize, invite: &str) -> Result<(), Failure> {
        let applied_log = self.folder.join(format!("{APPLIED_LOG}{index}"));
        let applied_log = applied_log.to_string_lossy();
        let Setup { device, profile, threads, .. } = self.setup;
        let (device, profile, threads) = (device.to_string(), profile.to_string(), threads.to_string());
        let computing = ["--device", &device, "--profile", &profile, "--threads", &threads];
        let place = ["--listen", "127.0.0.1:0", "--applied-log", &applied_log];
        self.start(Source::Replica(index), &[&["join", invite], &computing[..], &place[..]].concat())
    }

    /// Ends a replica with SIGKILL, so it cannot hand over its microbatches.
    pub(super) async fn kill(&mut self, index: usize) -> Result<(), Failure> {
        let victim = self.processes.iter_mut().find(|(source, _)| *source == Source::Replica(index));
        let Some((_, process)) = victim else { return Ok(()) };
        let killed = process.child.kill().await;
        killed.map_err(|error| Failure::failed(format!("cannot kill replica {index}: {error}")))
    }

    pub(super) fn start_feeder(&mut self, invite: &str) -> Result<(), Failure> {
        self.start(Source::Feeder, &["feed", invite, "--listen", "127.0.0.1:0"])
    }

    /// The next output of any process.
    pub(super) async fn output(&mut self) -> Option<(Source, Output)> {
        self.events.recv().await
    }

    /// Asks every process to stop and waits for its end; a process that takes too long is killed.
    pub(super) async fn stop(&mut self) {
        for (_, process) in &mut self.processes {
            process.leash = None;
        }
        for (_, process) in &mut self.processes {
            if tokio::time::timeout(LEAVE_WITHIN, process.child.wait()).await.is_err() {
                let _ = process.child.kill().await;
            }
        }
    }

    fn start(&mut self, source: Source, arguments: &[&str]) -> Result<(), Failure> {
        let cannot = |error| Failure::failed(format!("cannot start `swarmline {}`: {error}", arguments[0]));
        let binary = std::env::current_exe().map_err(cannot)?;
        let mut child = Command::new(binary)
            .args(arguments)
            .args(["--json", "--leash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal reaches the demo alone, which then ends the processes in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let leash = child.stdin.take();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            tokio::spawn(listen(source, stdout, stderr, self.sender.clone()));
        }
        self.processes.push((source, Process { child, leash }));
        Ok(())
    }
}

/// Passes on the output of a process, and its end.
async fn listen(
    source: Source,
    stdout: ChildStdout,
    stderr: ChildStderr,
    sender: mpsc::Sender<(Source, Output)>,
) {
    let told = pass_on(stdout, |line| serde_json::from_str(line).ok().map(Output::Event), source, &sender);
    let complained = pass_on(stderr, |line| Some(Output::Complaint(line.to_owned())), source, &sender);
    tokio::join!(told, complained);
    let _ = sender.send((source, Output::Ended)).await;
}

async fn pass_on(
    pipe: impl AsyncRead + Unpin,
    understand: impl Fn(&str) -> Option<Output>,
    source: Source,
    sender: &mpsc::Sender<(Source, Output)>,
) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(heard) = understand(&line)
            && sender.send((source, heard)).await.is_err()
        {
            return;
        }
    }
}
