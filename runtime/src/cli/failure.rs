//! The end of a command that failed.

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use swarmline_kernels::device::Unavailable;

use crate::config::ConfigError;
use crate::error::Error;
use crate::net::identity::IdentityError;
use crate::report::Event;

/// Exit code of a command that a person stopped before it was done.
pub(super) const INTERRUPTED: u8 = 130;

/// How long the last words of a process wait for their reader.
const WRITE_WITHIN: Duration = Duration::from_secs(1);

/// A message for a person and the exit code that goes with it.
#[derive(Debug)]
pub(super) struct Failure {
    code: u8,
    message: String,
}

impl Failure {
    /// Exit code 1: the command failed.
    pub(super) fn failed(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into() }
    }

    /// Exit code 2: the command line or the run file is wrong.
    pub(super) fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: message.into() }
    }

    /// Exit code 3: the coordinator refused.
    pub(super) fn refused(message: impl Into<String>) -> Self {
        Self { code: 3, message: message.into() }
    }

    /// Exit code 130: a person stopped the command before it was done, and it ended cleanly.
    pub(super) fn interrupted(message: impl Into<String>) -> Self {
        Self { code: INTERRUPTED, message: message.into() }
    }

    /// Prints the message and returns the exit code. A pipe that nothing reads is waited for a second.
    /// With `json` the last line of standard output says so too, for programs.
    pub(super) fn report(self, json: bool) -> ExitCode {
        let (written, done) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            if json {
                let event = Event::Failed { code: self.code, message: self.message.clone() };
                let _ = writeln!(std::io::stdout(), "{}", serde_json::to_string(&event).unwrap_or_default());
            }
            let _ = writeln!(std::io::stderr(), "swarmline: {}", self.message);
            drop(written);
        });
        let _ = done.recv_timeout(WRITE_WITHIN);
        ExitCode::from(self.code)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let message = error.to_string();
        match error {
            Error::Config(_)
            | Error::Identity(_)
            | Error::OtherRun { .. }
            | Error::OtherKey { .. }
            | Error::ResumeOtherRun { .. }
            | Error::HasBegun { .. }
            | Error::KeyGone { .. }
            | Error::NoOrigin { .. }
            | Error::OtherOrigin { .. } => Self::usage(message),
            refusal if refusal.is_refusal() => Self::refused(message),
            _ => Self::failed(message),
        }
    }
}

impl From<Unavailable> for Failure {
    fn from(reason: Unavailable) -> Self {
        Self::failed(reason.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        Self::usage(error.to_string())
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        Self::usage(error.to_string())
    }
}
