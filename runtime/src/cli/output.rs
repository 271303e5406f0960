//! The result of a command on standard output: a result that could not be written is a failure.

use std::io::{self, ErrorKind, Write as _};

use super::Failure;
use crate::report::Reporter;

/// Standard output, and the first write that failed.
#[derive(Debug, Default)]
pub(super) struct Output {
    fault: Option<io::Error>,
}

impl Output {
    /// Writes a piece of the result at once, unless a piece before could not be written.
    pub(super) fn show(&mut self, text: &str) {
        if self.fault.is_none() {
            let mut out = io::stdout();
            self.fault = out.write_all(text.as_bytes()).and_then(|()| out.flush()).err();
        }
    }

    /// Whether all of it was written. A closed pipe is not an error: its reader has seen enough.
    pub(super) fn done(self) -> Result<(), Failure> {
        let fault = self.fault.filter(|fault| fault.kind() != ErrorKind::BrokenPipe);
        fault.map_or(Ok(()), |fault| Err(unwritten(&fault)))
    }
}

/// Writes the whole result of a command.
pub(super) fn print(text: &str) -> Result<(), Failure> {
    let mut output = Output::default();
    output.show(text);
    output.done()
}

/// Whether a reporter has written every event.
pub(super) fn told(reporter: &Reporter) -> Result<(), Failure> {
    reporter.take_fault().map_or(Ok(()), |fault| Err(unwritten(&fault)))
}

fn unwritten(fault: &io::Error) -> Failure {
    Failure::failed(format!("cannot write the result to standard output: {fault}; send it to another place"))
}
