//! Times one operation, bounded in count and in time.

use std::hint::black_box;
use std::time::{Duration, Instant};

use super::statistics::median;

/// Limits of a measurement.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Samples taken even if they take longer than `time`, at least 1.
    pub(super) samples_min: usize,
    pub(super) samples_max: usize,
    pub(super) time: Duration,
}

/// Seconds of one call.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    pub(super) median_s: f64,
    pub(super) best_s: f64,
}

/// Shortest sample: long enough that the time to read the clock does not count.
const SAMPLE_MIN: Duration = Duration::from_micros(200);
/// Limit of the calls in one sample.
const CALLS_MAX: u32 = 10_000;

/// Seconds of one call of `work`, after one call that does not count.
///
/// # Errors
/// The errors of `work`.
pub(super) fn time<E>(bounds: Bounds, mut work: impl FnMut() -> Result<(), E>) -> Result<Timing, E> {
    let mut sample = |calls: u32| {
        let started = Instant::now();
        for _ in 0..calls {
            black_box(work()?);
        }
        Ok(started.elapsed())
    };
    let first = sample(1)?;
    let calls = calls_a_sample(first);
    let started = Instant::now();
    let mut seconds = Vec::new();
    while seconds.len() < bounds.samples_min.max(1)
        || (seconds.len() < bounds.samples_max && started.elapsed() < bounds.time)
    {
        seconds.push(sample(calls)?.as_secs_f64() / f64::from(calls));
    }
    let best_s = seconds.iter().copied().fold(f64::INFINITY, f64::min);
    Ok(Timing { median_s: median(&seconds).unwrap_or(best_s), best_s })
}

fn calls_a_sample(one: Duration) -> u32 {
    let calls = SAMPLE_MIN.as_nanos().div_ceil(one.as_nanos().max(1));
    u32::try_from(calls).unwrap_or(CALLS_MAX).clamp(1, CALLS_MAX)
}

#[cfg(test)]
mod tests {
    use super::{Bounds, CALLS_MAX, calls_a_sample, time};
    use std::time::Duration;

    #[test]
    fn work_is_called_often_enough_and_not_too_often() {
        let mut calls = 0;
        let bounds = Bounds { samples_min: 2, samples_max: 5, time: Duration::from_secs(3600) };
        let work = || -> Result<(), ()> {
            calls += 1;
            std::thread::sleep(Duration::from_millis(1));
            Ok(())
        };
        let timing = time(bounds, work).unwrap();
        assert!(timing.best_s > 0.0 && timing.best_s <= timing.median_s);
        assert_eq!(calls, 1 + 5);
    }

    #[test]
    fn an_error_ends_the_measurement() {
        let bounds = Bounds { samples_min: 1, samples_max: 1, time: Duration::ZERO };
        assert_eq!(time(bounds, || Err("broken")).unwrap_err(), "broken");
    }

    #[test]
    fn short_work_is_called_several_times_a_sample() {
        assert_eq!(calls_a_sample(Duration::from_millis(3)), 1);
        assert_eq!(calls_a_sample(Duration::from_micros(30)), 7);
        assert_eq!(calls_a_sample(Duration::ZERO), CALLS_MAX);
    }
}
