//! The silence that a rhythm of heartbeats explains.
//!
//! The phi accrual failure detector of Hayashibara, Défago, Yared and Katayama (SRDS 2004): intervals between
//! heartbeats are taken to be normal with the mean and deviation of the recent ones, and
//!
//! ```text
//! phi(silence) = -log10(P(an interval is longer than silence))
//! ```
//!
//! phi grows with the silence, so it reaches `p` exactly when the silence reaches
//!
//! ```text
//! mean + z(p) * max(sigma, SIGMA_MIN)      where z(p) is the normal quantile of 1 - 10^-p
//! ```
//!
//! Only that moment matters. It needs a mean, a square root and one constant for each verdict, all in whole
//! nanoseconds: no logarithm, no floating point, and the same result on every platform.

use std::collections::VecDeque;

use crate::{Duration, Time};

/// Time between two heartbeats of a peer. A faster rhythm counts as this one, so that no peer is suspect before a
/// broken own link shows.
pub const HEARTBEAT: Duration = Duration::from_secs(1);

/// The least deviation of a rhythm, however regular it was: a short delay by a scheduler is no death.
pub const SIGMA_MIN: Duration = Duration::from_millis(300);

/// Time that a newly watched peer has for its first heartbeat: it has to learn of this peer and to connect.
pub const FIRST_BEAT: Duration = Duration::from_secs(5);

/// Recent intervals kept: about a minute.
const INTERVALS_MAX: usize = 64;

/// Longer intervals count as this long: an outage is no rhythm. The deviation is then at most half as long, so a peer
/// of any rhythm is suspect after 11.5 s of silence and dead after 13.6 s.
const INTERVAL_MAX: Duration = Duration::from_secs(3);

/// The normal quantile of 1 - 10^-8, in thousandths: phi 8.
const SUSPECT_Z: u32 = 5_612;

/// The normal quantile of 1 - 10^-12, in thousandths: phi 12.
const DEAD_Z: u32 = 7_034;

/// The recent intervals between the heartbeats of a peer.
#[derive(Clone, Debug, Default)]
pub(super) struct PhiAccrual {
    latest: Option<Time>,
    /// Nanoseconds, with their sum and the sum of their squares.
    intervals: VecDeque<u128>,
    sum: u128,
    squares: u128,
    limits: Limits,
}

/// The silences after which a peer is suspect, and dead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    pub(super) suspect: Duration,
    pub(super) dead: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self::of(FIRST_BEAT, SIGMA_MIN)
    }
}

impl Limits {
    fn of(mean: Duration, sigma: Duration) -> Self {
        let reach = |z: u32| mean + sigma * z / 1_000;
        Self { suspect: reach(SUSPECT_Z), dead: reach(DEAD_Z) }
    }
}

impl PhiAccrual {
    pub(super) fn beat(&mut self, at: Time) {
        if let Some(latest) = self.latest.replace(at) {
            self.push(at.since(latest).min(INTERVAL_MAX));
        }
        let (mean, sigma) = self.moments();
        self.limits = Limits::of(mean.max(HEARTBEAT), sigma.max(SIGMA_MIN));
    }

    pub(super) fn limits(&self) -> Limits {
        self.limits
    }

    fn push(&mut self, interval: Duration) {
        if self.intervals.len() == INTERVALS_MAX
            && let Some(oldest) = self.intervals.pop_front()
        {
            self.sum -= oldest;
            self.squares -= oldest.pow(2);
        }
        let nanos = interval.as_nanos();
        self.intervals.push_back(nanos);
        self.sum += nanos;
        self.squares += nanos.pow(2);
    }

    /// Mean and standard deviation; zero without intervals.
    fn moments(&self) -> (Duration, Duration) {
        let count = self.intervals.len().max(1) as u128;
        let mean = self.sum / count;
        // The sum of (interval - mean)^2, multiplied out.
        let deviations = self.squares + count * mean.pow(2) - 2 * mean * self.sum;
        let nanos = |nanos: u128| Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        (nanos(mean), nanos((deviations / count).isqrt()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Limits, in milliseconds, after heartbeats with these intervals.
    fn limits_ms(intervals: impl IntoIterator<Item = u64>) -> (u128, u128) {
        let mut rhythm = PhiAccrual::default();
        let mut at = Time(0);
        rhythm.beat(at);
        for interval in intervals {
            at = at + Duration::from_millis(interval);
            rhythm.beat(at);
        }
        let Limits { suspect, dead } = rhythm.limits();
        (suspect.as_millis(), dead.as_millis())
    }

    #[test]
    fn a_regular_rhythm_has_the_least_deviation() {
        assert_eq!(limits_ms([]), (2_683, 3_110));
        assert_eq!(limits_ms([1_000; 70]), (2_683, 3_110));
        assert_eq!(limits_ms([1_500; 70]), (3_183, 3_610));
    }

    /// 0.5 s and 1.5 s in turn: mean 1 s, sigma 0.5 s.
    #[test]
    fn an_irregular_rhythm_explains_a_longer_silence() {
        assert_eq!(limits_ms([500, 1_500].repeat(32)), (1_000 + 2_806, 1_000 + 3_517));
    }

    #[test]
    fn a_fast_rhythm_counts_as_one_a_second() {
        assert_eq!(limits_ms([100; 70]), (2_683, 3_110));
    }

    #[test]
    fn no_history_buys_more_than_its_bound() {
        assert_eq!(limits_ms([60_000; 70]), (4_683, 5_110));
        let (suspect, dead) = limits_ms([0, 60_000].repeat(32));
        assert!(suspect < 11_500 && dead < 13_600, "{suspect} {dead}");
    }

    #[test]
    fn old_intervals_are_forgotten() {
        assert_eq!(limits_ms([60_000; 64].into_iter().chain([1_000; 64])), (2_683, 3_110));
    }

    #[test]
    fn the_first_beat_has_longer() {
        let suspect = PhiAccrual::default().limits().suspect;
        assert_eq!(suspect, FIRST_BEAT + Duration::from_micros(1_683_600));
    }
}
