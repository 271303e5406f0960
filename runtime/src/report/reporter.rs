//! Passes events to a person, a program or a closure.

use std::fmt;
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};

use super::line_queue::LineQueue;
use super::{Event, Incident};

/// The form in which events are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience {
    /// One line of prose per event.
    People,
    /// One JSON object a line.
    Programs,
}

impl Audience {
    fn line(self, event: &Event) -> String {
        match self {
            Self::People => event.to_string(),
            Self::Programs => serde_json::to_string(event).unwrap_or_default(),
        }
    }
}

/// Passes events to its listener.
///
/// ```
/// use std::sync::{Arc, Mutex};
///
/// use swarmline::report::{Event, Reporter};
///
/// let heard = Arc::new(Mutex::new(Vec::new()));
/// let sink = Arc::clone(&heard);
/// let reporter = Reporter::to(move |event| sink.lock().unwrap().push(event.to_string()));
/// reporter.tell(&Event::Serving { stage: 2 });
/// assert_eq!(*heard.lock().unwrap(), ["serving stage 2; Ctrl-C leaves cleanly"]);
/// ```
pub struct Reporter {
    sink: Box<dyn Fn(&Event) + Send + Sync>,
    /// The first write to standard output that failed.
    fault: Arc<Mutex<Option<io::Error>>>,
}

impl Reporter {
    /// A reporter that prints to standard output for this audience. A closed pipe is not an error; of another one see
    /// [`Reporter::take_fault`].
    #[must_use]
    pub fn new(audience: Audience) -> Self {
        let fault = Arc::default();
        let (out, faults) = (Mutex::new(io::stdout()), Arc::clone(&fault));
        let print = move |event: &Event| {
            let line = audience.line(event);
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            let written = writeln!(out, "{line}").and_then(|()| out.flush());
            if let Err(error) = written
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                Self::note(&faults, error);
            }
        };
        Self { sink: Box::new(print), fault }
    }

    fn note(fault: &Mutex<Option<io::Error>>, error: io::Error) {
        fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The first event that a reporter of [`Reporter::new`] could not print, as the error of its write; later calls get
    /// `None`.
    #[must_use]
    pub fn take_fault(&self) -> Option<io::Error> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// As [`Reporter::new`], for a process that other peers wait for: it never waits for the reader of its output. Lines
    /// that find a long queue are dropped and counted ([`Incident::LinesDropped`]). Dropping the reporter waits a second at
    /// most for the lines that are queued.
    #[must_use]
    pub fn unhindered(audience: Audience) -> Self {
        let about_gap = match audience {
            Audience::People => {
                |lines| Audience::People.line(&Event::Incident(Incident::LinesDropped { lines }))
            }
            Audience::Programs => {
                |lines| Audience::Programs.line(&Event::Incident(Incident::LinesDropped { lines }))
            }
        };
        let queue = LineQueue::new(io::stdout(), about_gap);
        Self::to(move |event| queue.push(audience.line(event)))
    }

    /// A reporter that calls `sink` with every event, for programs that embed a process of a run. The process waits for
    /// `sink`, which must not block.
    #[must_use]
    pub fn to(sink: impl Fn(&Event) + Send + Sync + 'static) -> Self {
        Self { sink: Box::new(sink), fault: Arc::default() }
    }

    /// A reporter without a listener.
    #[must_use]
    pub fn silent() -> Self {
        Self::to(|_| {})
    }

    /// Passes an event to the listener.
    pub fn tell(&self, event: &Event) {
        (self.sink)(event);
    }
}

impl fmt::Debug for Reporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reporter").finish_non_exhaustive()
    }
}
