//! The clock of the state machines.

use std::time::{Instant, SystemTime, UNIX_EPOCH};

use swarmline_scheduler::{Incarnation, Time};

/// Time since [`Clock::start`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that reads zero now.
    pub(crate) fn start() -> Self {
        Self { origin: Instant::now() }
    }

    pub(crate) fn now(&self) -> Time {
        Time(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Sleeps until `deadline`; for ever without a deadline.
    pub(crate) async fn sleep_until(&self, deadline: Option<Time>) {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline.since(self.now())).await,
            None => std::future::pending().await,
        }
    }
}

/// The number of this start of a process: nanoseconds since 1970, so a later start has a higher number.
pub(crate) fn incarnation() -> Incarnation {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Incarnation(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
