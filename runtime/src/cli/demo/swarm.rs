//! The processes of a demo: this very binary, started once per role.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use swarmline_kernels::device::Setup;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStderr, ChildStdin, ChildStdout, Command};
use tokio::sync::mpsc;

use super::audit::LEDGER;
use crate::cli::failure::Failure;
use crate::report::Event;

/// A started process may take this long to say its first word: key generation, binding, building a shard.
const FIRST_WORD_WITHIN: Duration = Duration::from_secs(20);
/// A process that was asked to stop gets this long to hand over and leave.
const LEAVE_WITHIN: Duration = Duration::from_secs(15);
/// Events waiting to be drawn; a reporter blocks its own pipe when nobody reads.
const EVENTS_QUEUED_MAX: usize = 1024;

/// Who said it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaker {
    Coordinator,
    Feeder,
    Replica(usize),
}

/// Something a process said or that happened to it.
#[derive(Debug)]
pub(super) enum Heard {
    /// It told something.
    Event(Event),
    /// It complained on standard error.
    Complaint(String),
    /// It has ended, and everything it said was heard.
    Silence,
}

/// The running processes. Dropping it closes their standard input, which is their sign to stop.
#[derive(Debug)]
pub(super) struct Swarm {
    processes: Vec<(Speaker, Process)>,
    /// What replicas compute on.
    setup: Setup,
    /// Where replicas keep their ledgers.
    folder: PathBuf,
    sender: mpsc::Sender<(Speaker, Heard)>,
    events: mpsc::Receiver<(Speaker, Heard)>,
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
        self.start(Speaker::Coordinator, &["coordinator", "--run", &run_file, "--listen", "127.0.0.1:0"])?;
        let first = tokio::time::timeout(FIRST_WORD_WITHIN, self.events.recv()).await;
        match first {
            Ok(Some((_, Heard::Event(Event::Listening { invite, manifest })))) => Ok((invite, manifest)),
            Ok(Some((_, Heard::Complaint(complaint)))) => {
                Err(Failure::failed(format!("the coordinator process did not come up: {complaint}")))
            }
            Ok(_) | Err(_) => Err(Failure::failed(format!(
                "the coordinator process did not come up within {} s",
                FIRST_WORD_WITHIN.as_secs()
            ))),
        }
    }

    pub(super) fn start_replica(&mut self, index: usize, invite: &str) -> Result<(), Failure> {
        let ledger = self.folder.join(format!("{LEDGER}{index}"));
        let ledger = ledger.to_string_lossy();
        let Setup { device, profile, threads, .. } = self.setup;
        let (device, profile, threads) = (device.to_string(), profile.to_string(), threads.to_string());
        let computing = ["--device", &device, "--profile", &profile, "--threads", &threads];
        let place = ["--listen", "127.0.0.1:0", "--ledger", &ledger];
        self.start(Speaker::Replica(index), &[&["join", invite], &computing[..], &place[..]].concat())
    }

    /// Ends a replica with SIGKILL: it can say no goodbye.
    pub(super) async fn kill(&mut self, index: usize) -> Result<(), Failure> {
        let victim = self.processes.iter_mut().find(|(speaker, _)| *speaker == Speaker::Replica(index));
        let Some((_, process)) = victim else { return Ok(()) };
        let killed = process.child.kill().await;
        killed.map_err(|error| Failure::failed(format!("cannot kill replica {index}: {error}")))
    }

    pub(super) fn start_feeder(&mut self, invite: &str) -> Result<(), Failure> {
        self.start(Speaker::Feeder, &["feed", invite, "--listen", "127.0.0.1:0"])
    }

    /// The next thing anybody says.
    pub(super) async fn heard(&mut self) -> Option<(Speaker, Heard)> {
        self.events.recv().await
    }

    /// Asks everybody to stop and waits until they have; a process that does not is killed.
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

    fn start(&mut self, speaker: Speaker, arguments: &[&str]) -> Result<(), Failure> {
        let cannot = |error| Failure::failed(format!("cannot start `swarmline {}`: {error}", arguments[0]));
        let binary = std::env::current_exe().map_err(cannot)?;
        let mut child = Command::new(binary)
            .args(arguments)
            .args(["--json", "--leash"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Ctrl-C in a terminal reaches the demo alone, which then ends the others in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(cannot)?;
        let leash = child.stdin.take();
        if let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) {
            tokio::spawn(listen(speaker, stdout, stderr, self.sender.clone()));
        }
        self.processes.push((speaker, Process { child, leash }));
        Ok(())
    }
}

/// Passes on everything a process says, and at last that it is silent.
async fn listen(
    speaker: Speaker,
    stdout: ChildStdout,
    stderr: ChildStderr,
    sender: mpsc::Sender<(Speaker, Heard)>,
) {
    let told = pass_on(stdout, |line| serde_json::from_str(line).ok().map(Heard::Event), speaker, &sender);
    let complained = pass_on(stderr, |line| Some(Heard::Complaint(line.to_owned())), speaker, &sender);
    tokio::join!(told, complained);
    let _ = sender.send((speaker, Heard::Silence)).await;
}

async fn pass_on(
    pipe: impl AsyncRead + Unpin,
    understand: impl Fn(&str) -> Option<Heard>,
    speaker: Speaker,
    sender: &mpsc::Sender<(Speaker, Heard)>,
) {
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        if let Some(heard) = understand(&line)
            && sender.send((speaker, heard)).await.is_err()
        {
            return;
        }
    }
}
