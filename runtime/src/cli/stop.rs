//! Requests to stop: Ctrl-C, SIGTERM, a closed terminal, or the end of the process that started this one.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;

use super::{Failure, failure};

/// Ties a process to its parent.
#[derive(Clone, Copy, Debug, Default, clap::Args)]
pub(super) struct Leash {
    /// Stop when standard input ends, as it does when the process that started this one dies
    #[arg(long, hide = true)]
    leash: bool,
}

/// The first request to stop. A second one ends the process at once, whatever its other threads do: a thread of its own
/// listens.
#[derive(Clone, Debug)]
pub(super) struct StopRequest {
    is_requested: watch::Receiver<bool>,
}

impl StopRequest {
    /// Listens from now on.
    pub(super) fn listen(leash: Leash) -> Result<Self, Failure> {
        let deaf = |error: std::io::Error| Failure::failed(format!("cannot listen for Ctrl-C: {error}"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(deaf)?;
        let mut signals = {
            let _context = runtime.enter();
            Signals::new().map_err(deaf)?
        };
        let (requested, is_requested) = watch::channel(false);
        let listen = async move {
            tokio::select! {
                () = signals.next() => {}
                () = end_of_input(leash) => {}
            }
            requested.send_replace(true);
            signals.next().await;
            std::process::exit(failure::INTERRUPTED.into());
        };
        std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || runtime.block_on(listen))
            .map_err(deaf)?;
        Ok(Self { is_requested })
    }

    /// Resolves with the request.
    pub(super) async fn requested(mut self) {
        if self.is_requested.wait_for(|requested| *requested).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// A flag that the request raises, for code that does not wait.
    pub(super) fn flag(&self) -> Result<Arc<AtomicBool>, Failure> {
        let (flag, request) = (Arc::new(AtomicBool::new(false)), self.clone());
        let raised = Arc::clone(&flag);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .map_err(|error| Failure::failed(format!("cannot listen for Ctrl-C: {error}")))?;
        std::thread::spawn(move || {
            runtime.block_on(request.requested());
            raised.store(true, Ordering::Relaxed);
        });
        Ok(flag)
    }
}

/// The signals that ask a process to stop.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
    /// `None` if the process was started to outlive its terminal.
    hangup: Option<Signal>,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let hangup = (!ignores_hangup()).then(|| signal(SignalKind::hangup())).transpose()?;
        let (interrupt, terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
        Ok(Self { interrupt, terminate, hangup })
    }

    async fn next(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            () = hangup => {}
        }
    }
}

/// Whether SIGHUP is ignored in this process, as `nohup` asks for. Listening for it would undo that.
fn ignores_hangup() -> bool {
    const HANGUP: u64 = 1;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|digits| u64::from_str_radix(digits.trim(), 16).ok());
    ignored.is_some_and(|signals| signals & HANGUP != 0)
}

/// Resolves at the end of standard input, never without a leash. A thread of its own reads: a blocked read would hold up
/// the thread that listens.
async fn end_of_input(leash: Leash) {
    if !leash.leash {
        return std::future::pending::<()>().await;
    }
    let (ended, end) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        drop(ended);
    });
    let _ = end.await;
}
