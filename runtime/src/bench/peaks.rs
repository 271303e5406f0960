//! The peaks of this machine: products in registers, streams through memory.

use std::time::{Duration, Instant};

use serde::Serialize;
use swarmline_kernels::peak;

use super::machine::cache_bytes;

/// Peaks of this machine on a number of threads, each the best of several measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Peaks {
    /// Threads of both measurements.
    pub threads: usize,
    /// f32 fused multiply-adds in registers alone, GFLOP/s.
    pub product_gflops: f64,
    /// Triad `a = b + s c` over arrays much larger than the caches, GB/s. Counts two reads and one write a number,
    /// not the read of a line before it is written.
    pub stream_gb_s: f64,
    /// Bytes of each of its three arrays.
    pub stream_array_bytes: usize,
}

/// Length and size of the measurements.
#[derive(Clone, Copy, Debug)]
pub struct PeakPlan {
    /// Measurements of each kind, at least 1.
    pub repeats: usize,
    /// Rounds of multiply-adds in one measurement.
    pub rounds: u64,
    /// Bytes of each array of the triad.
    pub array_bytes: usize,
}

/// Rounds of one measurement; some milliseconds.
const ROUNDS: u64 = 1_000_000;
const REPEATS: usize = 10;
/// Rounds and repeats of [`product_gflops_now`].
const ROUNDS_NOW: u64 = 300_000;
const REPEATS_NOW: usize = 3;
/// Arrays are this many times the largest cache, within limits that fit a laptop.
const CACHES: usize = 4;
const ARRAY_BYTES_MIN: usize = 64 << 20;
const ARRAY_BYTES_MAX: usize = 192 << 20;

impl PeakPlan {
    /// The plan for this machine, which takes about a second.
    #[must_use]
    pub fn here() -> Self {
        let array_bytes = (CACHES * cache_bytes()).clamp(ARRAY_BYTES_MIN, ARRAY_BYTES_MAX);
        Self { repeats: REPEATS, rounds: ROUNDS, array_bytes }
    }
}

impl Peaks {
    /// Measures both peaks.
    #[must_use]
    pub fn measure(threads: usize, plan: PeakPlan) -> Self {
        Self {
            threads,
            product_gflops: product_gflops(threads, plan),
            stream_gb_s: stream_gb_s(threads, plan),
            stream_array_bytes: plan.array_bytes,
        }
    }
}

/// The product peak at this moment, GFLOP/s, in a few milliseconds. The load of a shared machine changes from one
/// second to the next, so an operation is compared with the peaks just before and after it.
pub(super) fn product_gflops_now(threads: usize) -> f64 {
    product_gflops(threads, PeakPlan { repeats: REPEATS_NOW, rounds: ROUNDS_NOW, array_bytes: 0 })
}

fn product_gflops(threads: usize, plan: PeakPlan) -> f64 {
    let rate = || {
        let started = Instant::now();
        let flops: u64 = std::thread::scope(|scope| {
            let others: Vec<_> =
                (1..threads).map(|_| scope.spawn(|| peak::multiply_adds(plan.rounds))).collect();
            let own = peak::multiply_adds(plan.rounds);
            own + others.into_iter().map(|other| other.join().unwrap_or(0)).sum::<u64>()
        });
        per_second(flops as f64, started.elapsed())
    };
    best(plan.repeats, rate) / 1e9
}

fn stream_gb_s(threads: usize, plan: PeakPlan) -> f64 {
    let numbers = (plan.array_bytes / size_of::<f32>()).max(threads);
    let (mut a, b, c) = (vec![0.0_f32; numbers], vec![1.0_f32; numbers], vec![2.0_f32; numbers]);
    let part = numbers.div_ceil(threads);
    let rate = || {
        let started = Instant::now();
        std::thread::scope(|scope| {
            let parts = a.chunks_mut(part).zip(b.chunks(part)).zip(c.chunks(part));
            for ((a, b), c) in parts {
                // The last part needs no thread of its own, but one thread needs none at all.
                if threads == 1 {
                    peak::triad(a, b, c, 3.0);
                } else {
                    scope.spawn(move || peak::triad(a, b, c, 3.0));
                }
            }
        });
        per_second((3 * size_of::<f32>() * numbers) as f64, started.elapsed())
    };
    best(plan.repeats, rate) / 1e9
}

/// The best of `repeats` rates, after a measurement that warms up.
fn best(repeats: usize, mut rate: impl FnMut() -> f64) -> f64 {
    let _ = rate();
    (0..repeats.max(1)).map(|_| rate()).fold(0.0, f64::max)
}

fn per_second(count: f64, elapsed: Duration) -> f64 {
    count / elapsed.as_secs_f64().max(f64::EPSILON)
}
