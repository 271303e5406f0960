//! One process of the binary under test: its events, its exit.

use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use swarmline::report::Event;

/// Limit of each wait of a test, generous for a busy machine.
const PATIENCE: Duration = Duration::from_secs(90);
/// Pause between two checks for the end of a process.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// A started `swarmline`. Dropping it kills the process; if the test has failed, its output is printed.
pub(crate) struct Process {
    name: String,
    child: Child,
    /// Closes when this process ends, which stops a child started with `--leash`.
    _leash: Option<ChildStdin>,
    lines: Receiver<Line>,
    out: Vec<String>,
    err: Vec<String>,
}

/// Tests that were started to outlive their terminal ignore SIGHUP, and so would the processes that they start.
fn heed_hang_up() {
    // SAFETY: the default action runs no code of this process.
    #[allow(unsafe_code, reason = "the standard library sets no actions of signals")]
    unsafe {
        libc::signal(libc::SIGHUP, libc::SIG_DFL);
    }
}

enum Line {
    Out(String),
    Err(String),
}

impl Process {
    /// Starts `swarmline` with `arguments`.
    pub(crate) fn start<'a>(name: &str, arguments: impl IntoIterator<Item = &'a str>) -> Self {
        Self::start_in(&[], name, arguments)
    }

    /// Starts `swarmline` with further variables in its environment.
    pub(crate) fn start_in<'a>(
        environment: &[(&str, OsString)],
        name: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_swarmline"));
        command.args(arguments).envs(environment.iter().cloned());
        Self::spawn(name, command)
    }

    /// Starts `swarmline` by another program, which must become it: its last arguments are the program and `arguments`.
    pub(crate) fn start_under<'a>(
        prefix: &[&str],
        name: &str,
        arguments: impl IntoIterator<Item = &'a str>,
    ) -> Self {
        let mut command = Command::new(prefix[0]);
        command.args(&prefix[1..]).arg(env!("CARGO_BIN_EXE_swarmline")).args(arguments);
        Self::spawn(name, command)
    }

    fn spawn(name: &str, mut command: Command) -> Self {
        heed_hang_up();
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        read_lines(child.stdout.take().unwrap(), sender.clone(), Line::Out);
        read_lines(child.stderr.take().unwrap(), sender, Line::Err);
        let leash = child.stdin.take();
        Self { name: name.to_owned(), child, _leash: leash, lines, out: Vec::new(), err: Vec::new() }
    }

    /// The first event that `pick` accepts, past or future.
    pub(crate) fn hear<T>(&mut self, what: &str, pick: impl FnMut(Event) -> Option<T>) -> T {
        self.hear_since(0, what, pick)
    }

    /// As [`Process::hear`], among the events after a [`Process::moment`].
    pub(crate) fn hear_since<T>(
        &mut self,
        moment: usize,
        what: &str,
        mut pick: impl FnMut(Event) -> Option<T>,
    ) -> T {
        let deadline = Instant::now() + PATIENCE;
        let mut seen = moment;
        loop {
            if let Some(found) = self.out[seen..].iter().filter_map(|line| event(line)).find_map(&mut pick) {
                return found;
            }
            seen = self.out.len();
            assert!(self.listen(deadline), "{} ended without this: {what}", self.name);
        }
    }

    /// The current position in the events of this process.
    pub(crate) fn moment(&mut self) -> usize {
        while let Ok(line) = self.lines.try_recv() {
            self.note(line);
        }
        self.out.len()
    }

    /// Waits until the process and its children have ended; returns the exit code. No process may end in a panic.
    pub(crate) fn end(&mut self) -> i32 {
        let deadline = Instant::now() + PATIENCE;
        // A child's child holds the pipe of its standard error open.
        while self.listen(deadline) {}
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{} closed its output and did not end", self.name);
            std::thread::sleep(LOOK_EVERY);
        };
        assert!(!self.errors().contains("panicked at"), "{} panicked", self.name);
        status.code().unwrap_or_else(|| panic!("{} was killed: {status}", self.name))
    }

    /// Interrupts the process, as Ctrl-C does.
    pub(crate) fn interrupt(&self) {
        self.signal(libc::SIGINT);
    }

    /// Hangs up on the process, as a terminal that closes does.
    pub(crate) fn hang_up(&self) {
        self.signal(libc::SIGHUP);
    }

    /// Suspends the process until [`Process::resume`].
    pub(crate) fn suspend(&self) {
        self.signal(libc::SIGSTOP);
    }

    pub(crate) fn resume(&self) {
        self.signal(libc::SIGCONT);
    }

    /// Kills the process with SIGKILL.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Lets the process write to no file beyond this length, bytes, from now on. It must ignore SIGXFSZ.
    pub(crate) fn limit_files(&self, bytes: libc::rlim_t) {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        let limit = libc::rlimit { rlim_cur: bytes, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the call reads one struct that outlives it, and writes to no memory.
        #[allow(unsafe_code, reason = "the standard library sets no limits of other processes")]
        let set = unsafe { libc::prlimit(id, libc::RLIMIT_FSIZE, &raw const limit, std::ptr::null_mut()) };
        assert_eq!(set, 0, "the files of {} cannot be limited", self.name);
    }

    fn signal(&self, signal: libc::c_int) {
        let id = libc::pid_t::try_from(self.child.id()).unwrap();
        // SAFETY: the call touches no memory, and the child has not been waited for, so no other process has its id.
        #[allow(unsafe_code, reason = "the standard library sends no other signal than SIGKILL")]
        let sent = unsafe { libc::kill(id, signal) };
        assert_eq!(sent, 0, "{} cannot be signalled", self.name);
    }

    /// Waits until standard error has `part`.
    pub(crate) fn hear_error(&mut self, part: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.errors().contains(part) {
            assert!(self.listen(deadline), "{} ended without this: {part}", self.name);
        }
    }

    /// Standard output so far.
    pub(crate) fn lines(&self) -> &[String] {
        &self.out
    }

    /// Standard error so far.
    pub(crate) fn errors(&self) -> String {
        self.err.join("\n")
    }

    /// Waits for a line; false at the end of both outputs.
    fn listen(&mut self, deadline: Instant) -> bool {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => self.note(line),
            Err(RecvTimeoutError::Disconnected) => return false,
            Err(RecvTimeoutError::Timeout) => panic!("{} keeps the test waiting", self.name),
        }
        true
    }

    fn note(&mut self, line: Line) {
        match line {
            Line::Out(line) => self.out.push(line),
            Line::Err(line) => self.err.push(line),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            self.moment();
            self.print();
        }
    }
}

impl Process {
    #[allow(clippy::print_stderr, reason = "a failing test shows the output of its processes")]
    fn print(&self) {
        eprintln!("--- {}\n{}\n{}", self.name, self.out.join("\n"), self.errors());
    }
}

fn event(line: &str) -> Option<Event> {
    serde_json::from_str(line).ok()
}

fn read_lines(pipe: impl Read + Send + 'static, sender: Sender<Line>, tag: fn(String) -> Line) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            if sender.send(tag(line)).is_err() {
                return;
            }
        }
    });
}
