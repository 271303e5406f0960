//! Lines for a reader that may not read.
//!
//! A pipe that nothing reads fills up, and then a write waits. A process of a run must not wait for it: other peers wait
//! for that process. So a thread writes, and lines that find the queue full are dropped and counted.

use std::io::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Lines that wait at most. A replica prints one in ten seconds, a feeder one a second.
const WAITING_MAX: usize = 1_024;

/// How long the end of a process waits for the lines that are queued.
const FLUSH_WITHIN: Duration = Duration::from_secs(1);

/// A queue of lines, and the thread that writes them. Dropping it waits a moment for the last of them.
#[derive(Debug)]
pub(super) struct LineQueue {
    /// `None` once the queue is closed.
    lines: Option<SyncSender<String>>,
    dropped: Arc<AtomicU64>,
    /// Closes when the last line is written.
    written: Mutex<Receiver<()>>,
}

impl LineQueue {
    /// Writes lines to `out`. After a gap the line of `about_gap` for the number of lines dropped comes first. A closed pipe
    /// is not an error.
    pub(super) fn new(mut out: impl Write + Send + 'static, about_gap: fn(u64) -> String) -> Self {
        let (lines, queue) = sync_channel::<String>(WAITING_MAX);
        let (done, written) = sync_channel(0);
        let dropped = Arc::new(AtomicU64::new(0));
        let gap = Arc::clone(&dropped);
        std::thread::spawn(move || {
            let mut write = |line: &str| {
                let _ = writeln!(out, "{line}").and_then(|()| out.flush());
            };
            for line in queue {
                write(&line);
                match gap.swap(0, Ordering::Relaxed) {
                    0 => {}
                    dropped => write(&about_gap(dropped)),
                }
            }
            drop(done);
        });
        Self { lines: Some(lines), dropped, written: Mutex::new(written) }
    }

    /// Queues a line, or drops it.
    pub(super) fn push(&self, line: String) {
        let Some(lines) = &self.lines else { return };
        if let Err(TrySendError::Full(_)) = lines.try_send(line) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Closes the queue; the number of lines that no reader has taken in time.
    fn close(&mut self) -> u64 {
        self.lines = None;
        let written = self.written.get_mut().unwrap_or_else(PoisonError::into_inner);
        match written.recv_timeout(FLUSH_WITHIN) {
            Err(RecvTimeoutError::Timeout) => self.dropped.load(Ordering::Relaxed),
            Err(RecvTimeoutError::Disconnected) | Ok(()) => 0,
        }
    }
}

impl Drop for LineQueue {
    fn drop(&mut self) {
        let dropped = self.close();
        if dropped > 0 {
            tracing::error!(dropped, "lines of output were dropped, since nothing has read them");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::mpsc::{Sender, channel};

    use super::*;

    /// An output that takes a line for each permit.
    struct Gated {
        permits: Receiver<()>,
        written: Sender<String>,
    }

    impl Write for Gated {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.permits.recv();
            let _ = self.written.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_pauses_stops_no_writer_and_learns_what_it_has_missed() {
        let (permit, permits) = channel();
        let (written, lines) = channel();
        let queue = LineQueue::new(Gated { permits, written }, |dropped| format!("{dropped} dropped"));
        let pushed = WAITING_MAX as u64 + 100;
        (0..pushed).for_each(|line| queue.push(line.to_string()));
        drop(permit);
        drop(queue);
        let text: String = lines.iter().collect();
        let shown = text.lines().filter(|line| line.parse::<u64>().is_ok()).count() as u64;
        let dropped = text.lines().find_map(|line| line.strip_suffix(" dropped")).unwrap();
        assert_eq!(shown + dropped.parse::<u64>().unwrap(), pushed, "{text}");
        assert!(text.starts_with("0\n"), "the oldest lines are kept");
    }

    #[test]
    fn a_reader_that_never_reads_holds_up_no_end() {
        let (_permit, permits) = channel();
        let (written, _lines) = channel();
        let queue = LineQueue::new(Gated { permits, written }, |dropped| format!("{dropped} dropped"));
        queue.push("line".to_owned());
        let began = std::time::Instant::now();
        drop(queue);
        assert!(began.elapsed() < 3 * FLUSH_WITHIN);
    }
}
