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

use crate::checkpoint::Store;
use crate::keeper::{Every, kept};
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

/// What the keeper leaves behind.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// The newest checkpoint in the target.
    pub(super) newest: Option<KeptReport>,
    /// Why nothing newer is there: the last fault since that checkpoint.
    pub(super) fault: Option<String>,
}

impl OwnKeeper {
    /// Keeps the run until the keeper has the final states or `stop` resolves. A keeper that dies is started again.
    pub(super) async fn run(&self, reporter: &Reporter, stop: impl Future<Output = ()>) -> Left {
        let mut left = self.keep(reporter, stop).await;
        if left.newest.is_none() {
            left.newest = self.newest_before().await;
        }
        left
    }

    async fn keep(&self, reporter: &Reporter, stop: impl Future<Output = ()>) -> Left {
        let mut stop = pin!(stop);
        let (mut left, mut pause) = (Left::default(), PAUSE_MIN);
        loop {
            let began = Instant::now();
            let fault = match self.start() {
                Ok(keeper) => keeper.follow(reporter, &mut left, stop.as_mut()).await,
                Err(error) => Some(error.to_string()),
            };
            let Some(fault) = fault else { return left };
            if began.elapsed() >= SOUND_AFTER {
                pause = PAUSE_MIN;
            }
            left.fault = Some(fault.clone());
            let seconds = pause.as_secs();
            reporter.tell(&Event::Incident(Incident::KeeperDied { fault, seconds }));
            tokio::select! {
                () = tokio::time::sleep(pause) => pause = (pause * 2).min(PAUSE_MAX),
                () = stop.as_mut() => return left,
            }
        }
    }

    /// The newest checkpoint of the target, which an earlier start of the coordinator has heard of.
    async fn newest_before(&self) -> Option<KeptReport> {
        let found = Store::open(&self.target.to_string_lossy()).ok()?.checkpoints().await.ok()?;
        found.checkpoints.first().map(kept)
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
                // Its key is the coordinator's own: who else has it is a keeper that was lost with a coordinator before.
                "--take-over",
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
        left: &mut Left,
        stop: Pin<&mut impl Future<Output = ()>>,
    ) -> Option<String> {
        let mut complaint = String::new();
        let (said, complained) = (self.child.stdout.take(), self.child.stderr.take());
        let is_stopped = {
            let mut listening = pin!(async {
                tokio::join!(
                    lines(said, |line| pass_on(line, reporter, left)),
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
fn pass_on(line: &str, reporter: &Reporter, left: &mut Left) {
    let Ok(event) = serde_json::from_str(line) else { return };
    left.note(&event);
    match event {
        Event::Kept(kept) if kept.is_final => {}
        Event::Kept(_) | Event::Keeping(_) | Event::Incident(_) => reporter.tell(&event),
        _ => {}
    }
}

impl Left {
    fn note(&mut self, event: &Event) {
        match event {
            Event::Kept(kept) => *self = Self { newest: Some(kept.clone()), fault: None },
            Event::Incident(Incident::NotKept { fault }) => self.fault = Some(fault.clone()),
            _ => {}
        }
    }

    /// The final states of a run of so many microbatches.
    ///
    /// # Errors
    /// If they are not kept: why, and what there is in their place.
    pub(super) fn final_states(self, total: u64) -> Result<KeptReport, String> {
        let Self { newest, fault } = self;
        let newest = match newest {
            Some(kept) if kept.is_final && kept.microbatches >= total => return Ok(kept),
            Some(kept) => format!(
                "the newest checkpoint is {}, at {} of {total} microbatches; the same command with --resume goes on from it",
                kept.path, kept.microbatches
            ),
            None => "there is no checkpoint either: the model is gone".to_owned(),
        };
        let fault = fault.unwrap_or_else(|| "its keeper had not joined in time".to_owned());
        Err(format!("the run is finished, but its final states are not kept ({fault}); {newest}"))
    }
}

async fn lines(pipe: Option<impl AsyncRead + Unpin>, mut take: impl FnMut(&str)) {
    let Some(pipe) = pipe else { return };
    let mut lines = BufReader::new(pipe).lines();
    while let Ok(Some(line)) = lines.next_line().await {
        take(&line);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(microbatches: u64, is_final: bool) -> Event {
        Event::Kept(KeptReport {
            path: format!("kept/{microbatches}"),
            microbatches,
            is_final,
            ..KeptReport::default()
        })
    }

    #[test]
    fn the_last_words_name_the_last_fault_and_the_newest_checkpoint() {
        let mut left = Left::default();
        let full = Incident::NotKept { fault: "kept: no space is left".to_owned() };
        for event in [report(20, false), Event::Incident(full), report(40, false)] {
            left.note(&event);
        }
        assert_eq!(left.fault, None, "what has been mended since is no cause");
        left.fault = Some("the disk is gone".to_owned());
        let words = left.final_states(60).unwrap_err();
        for part in ["not kept (the disk is gone)", "kept/40, at 40 of 60 microbatches"] {
            assert!(words.contains(part), "{words}");
        }
    }

    #[test]
    fn the_final_states_of_a_shorter_launch_are_not_those_of_this_one() {
        let mut left = Left::default();
        left.note(&report(60, true));
        assert!(left.final_states(80).unwrap_err().contains("kept/60, at 60 of 80"));
    }
}
