//! The clock of the state machines. It goes on while the system is suspended, so that a process which stood still, such
//! as on a laptop with its lid closed, notices the gap.

use std::time::Duration;

use swarmline_scheduler::Time;

/// Time since [`Clock::start`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    origin: Duration,
}

impl Clock {
    /// A clock that reads zero now.
    pub(crate) fn start() -> Self {
        Self { origin: since_boot() }
    }

    pub(crate) fn now(&self) -> Time {
        Time(u64::try_from(since_boot().saturating_sub(self.origin).as_nanos()).unwrap_or(u64::MAX))
    }

    /// Sleeps until `deadline`; for ever without a deadline.
    pub(crate) async fn sleep_until(&self, deadline: Option<Time>) {
        match deadline {
            Some(deadline) => tokio::time::sleep(deadline.since(self.now())).await,
            None => std::future::pending().await,
        }
    }
}

/// Time since the system started, suspensions included.
#[cfg(target_os = "linux")]
fn since_boot() -> Duration {
    use rustix::time::{ClockId, clock_gettime};
    Duration::try_from(clock_gettime(ClockId::Boottime)).unwrap_or_default()
}

/// Time since the first call. Where the standard clock stands still during a suspension, so does this one.
#[cfg(not(target_os = "linux"))]
fn since_boot() -> Duration {
    use std::sync::OnceLock;
    use std::time::Instant;
    static ORIGIN: OnceLock<Instant> = OnceLock::new();
    ORIGIN.get_or_init(Instant::now).elapsed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clock_begins_at_zero_and_never_goes_back() {
        let clock = Clock::start();
        assert!(clock.now() < Time(0) + Duration::from_secs(5));
        let mut latest = clock.now();
        for _ in 0..10_000 {
            let now = clock.now();
            assert!(now >= latest);
            latest = now;
        }
        std::thread::sleep(Duration::from_millis(20));
        assert!(clock.now() >= latest + Duration::from_millis(20));
    }

    /// `/proc/uptime` counts suspensions; the monotonic clock of the standard library does not.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_clock_counts_the_time_of_a_suspended_system() {
        let uptime = || std::fs::read_to_string("/proc/uptime").unwrap();
        let before = since_boot();
        let seconds: f64 = uptime().split_whitespace().next().unwrap().parse().unwrap();
        let after = since_boot();
        let shown = Duration::from_secs_f64(seconds);
        if before.saturating_sub(shown) > Duration::from_secs(60) {
            return eprintln!("skipped: this container shows its own uptime");
        }
        let slack = Duration::from_millis(50);
        assert!(before <= shown + slack && shown <= after + slack, "{before:?} {shown:?} {after:?}");
    }
}
