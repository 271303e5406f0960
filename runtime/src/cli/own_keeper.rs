//! The keeper that `swarmline coordinator` starts: this binary once more, as a process of its own, so that no weights pass
//! through the coordinator and a crash of the keeper ends nothing. It is started again if it dies, and stops when the
//! coordinator does, however that ends.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::{Pin, pin};
use std::process::Stdio;
use std::time::{Duration, Instant};

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};
use tokio::process::{Child, ChildStdin, Command};

use crate::keeper::Every;
use crate::net::Invite;
use crate::report::{Event, Incident, KeptReport, Reporter};

/// Pause before a keeper that has died is started again; it doubles with each death up to [`PAUSE_MAX`].
const PAUSE_MIN: Duration = Duration::from_secs(1);
/// Longest such pause.
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A keeper that has lived this long is sound: the next pause is short again.
const SOUND_AFTER: Duration = Duration::from_secs(120);
/// A keeper that is to stop gets this long.
const STOP_WITHIN: Duration = Duration::from_secs(5);

/// The settings of the keeper.
#[derive(Clone, Debug)]
pub(super) struct OwnKeeper {
    pub(super) invite: Invite,
    /// File of its key, which the run admits.
    pub(super) identity: PathBuf,
    /// The folder for its checkpoints.
    pub(super) target: PathBuf,
    /// The checkpoint that the run goes on from.
    pub(super) resume_from: Option<String>,
    /// Time between two checkpoints.
    pub(super) every: Every,
    /// Address on which replicas reach it.
    pub(super) listen: SocketAddr,
}

impl OwnKeeper {
    /// Keeps the run until the keeper has the final states or `stop` resolves; returns the newest checkpoint. A keeper that
    /// dies is started again.
    pub(super) async fn run(
        &self,
        reporter: &Reporter,
        stop: impl Future<Output = ()>,
    ) -> Option<KeptReport> {
        let mut stop = pin!(stop);
        let (mut newest, mut pause) = (None, PAUSE_MIN);
        loop {
            let began = Instant::now();
            let fault = match self.start() {
                Ok(keeper) => keeper.follow(reporter, &mut newest, stop.as_mut()).await,
                Err(error) => Some(error.to_string()),
            };
            let Some(fault) = fault else { return newest };
            if began.elapsed() >= SOUND_AFTER {
                pause = PAUSE_MIN;
            }
            let seconds = pause.as_secs();
            reporter.tell(&Event::Incident(Incident::KeeperDied { fault, seconds }));
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                () = stop.as_mut() => return newest,
            }
        }
    }

    fn start(&self) -> io::Result<Keeper> {
        let (target, identity) = (self.target.to_string_lossy(), self.identity.to_string_lossy());
        let mut command = Command::new(std::env::current_exe()?);
        command
            .args(["keep", &self.invite.to_string(), "--to", &target, "--identity", &identity])
            .args([
                "--every",
                &self.every.to_string(),
                "--listen",
                &self.listen.to_string(),
                "--json",
                "--leash",
            ])
            .args(self.resume_from.iter().flat_map(|checkpoint| ["--resume-from", checkpoint]))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        // Ctrl-C in a terminal reaches the coordinator alone, which then stops its keeper.
        #[cfg(unix)]
        command.process_group(0);
        let mut child = command.spawn()?;
        Ok(Keeper { leash: child.stdin.take(), child })
    }
}

/// A running keeper. It stops when its leash is dropped.
#[derive(Debug)]
struct Keeper {
    child: Child,
    leash: Option<ChildStdin>,
}

impl Keeper {
    /// Passes on what the keeper says until it ends or `stop` resolves. Returns the last words of a keeper that has not
    /// ended well; `None` if it has, or was stopped.
    async fn follow(
        mut self,
        reporter: &Reporter,
        newest: &mut Option<KeptReport>,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<String> {
        let mut complaint = String::new();
        let (said, complained) = (self.child.stdout.take(), self.child.stderr.take());
        let is_stopped = {
            let mut listening = pin!(async {
                tokio::join!(
                    lines(said, |line| pass_on(line, reporter, newest)),
                    lines(complained, |line| line.clone_into(&mut complaint)),
                )
            });
            tokio::select! {
                _ = listening.as_mut() => false,
                () = stop => {
                    self.leash = None;
                    // What it says until its end counts: it may be about the final states.
                    let _ = tokio::time::timeout(STOP_WITHIN, listening.as_mut()).await;
                    true
                }
            }
        };
        let ended = tokio::time::timeout(STOP_WITHIN, self.child.wait()).await;
        match ended {
            _ if is_stopped => None,
            Ok(Ok(status)) if status.success() => None,
            Ok(Ok(status)) if complaint.is_empty() => Some(status.to_string()),
            Ok(Ok(_)) => Some(complaint),
            Ok(Err(error)) => Some(error.to_string()),
            Err(_) => Some("it closed its output and did not end".to_owned()),
        }
    }
}

/// Tells what concerns the run. The final states are named by the last words of the coordinator.
fn pass_on(line: &str, reporter: &Reporter, newest: &mut Option<KeptReport>) {
    match serde_json::from_str(line) {
        Ok(Event::Kept(kept)) => {
            if !kept.is_final {
                reporter.tell(&Event::Kept(kept.clone()));
            }
            *newest = Some(kept);
        }
        Ok(event @ (Event::Keeping(_) | Event::Incident(_))) => reporter.tell(&event),
        Ok(_) | Err(_) => {}
    }
}

async fn lines(pipe: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&str)) {
    let Some(pipe) = pipe else { return };
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        take(&line);
    }
}
