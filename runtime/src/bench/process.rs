//! Another process that prints a report, with a limit on the time it may take.

use std::io::{Read as _, Seek as _};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Pause between two checks for the end of the process; short beside any measurement.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// Limit of the last line of a process in a message, characters.
const WORDS_MAX: usize = 300;

/// Why a process gave no output.
#[derive(Debug, thiserror::Error)]
pub(super) enum ProcessError {
    #[error("it cannot be started: {0}")]
    Start(std::io::Error),
    #[error("it took longer than {} s", .0.as_secs())]
    TooLong(Duration),
    #[error("it failed: {0}")]
    Failed(String),
}

/// Runs `command` to its end, at most for `limit`, and returns its standard output. If the process fails, the message
/// has the last line of its standard error.
pub(super) fn output(command: &mut Command, limit: Duration) -> Result<String, ProcessError> {
    let (mut out, mut err) = (
        tempfile::tempfile().map_err(ProcessError::Start)?,
        tempfile::tempfile().map_err(ProcessError::Start)?,
    );
    let for_child = |file: &std::fs::File| file.try_clone().map(Stdio::from).map_err(ProcessError::Start);
    let mut child = command
        .stdin(Stdio::null())
        .stdout(for_child(&out)?)
        .stderr(for_child(&err)?)
        .spawn()
        .map_err(ProcessError::Start)?;
    let started = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(ProcessError::Start)? {
            break status;
        }
        if started.elapsed() > limit {
            let _ = child.kill();
            let _ = child.wait();
            return Err(ProcessError::TooLong(limit));
        }
        std::thread::sleep(LOOK_EVERY);
    };
    let read = |file: &mut std::fs::File| {
        let mut bytes = Vec::new();
        file.rewind().and_then(|()| file.read_to_end(&mut bytes)).map_err(ProcessError::Start)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    if status.success() { read(&mut out) } else { Err(ProcessError::Failed(last_words(&read(&mut err)?))) }
}

/// The last line that is not empty: interpreters put the cause there.
fn last_words(text: &str) -> String {
    let line = text.lines().rev().map(str::trim).find(|line| !line.is_empty());
    line.unwrap_or("without a message").chars().take(WORDS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn the_output_of_a_process_comes_back() {
        assert_eq!(output(&mut shell("echo one; echo two >&2"), Duration::from_secs(20)).unwrap(), "one\n");
    }

    #[test]
    fn a_failure_comes_with_the_last_words() {
        let error = output(&mut shell("echo Trace >&2; echo Cause >&2; exit 3"), Duration::from_secs(20));
        assert_eq!(error.unwrap_err().to_string(), "it failed: Cause");
    }

    #[test]
    fn a_process_that_takes_too_long_is_killed() {
        let error = output(&mut shell("exec sleep 1000"), Duration::from_millis(30));
        assert!(matches!(error, Err(ProcessError::TooLong(_))));
    }
}
