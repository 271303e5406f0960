//! Staleness of gradients, and the learning rate that follows from it.
//!
//! The staleness `tau` of a contribution is the number of steps that the stage took between its forward pass and the
//! arrival of its gradient: the current weight version minus the version stamped on the activation.

use crate::config::Optimizer;

/// Number of buckets, one for each staleness; larger values share the last bucket.
const BUCKETS: usize = 256;

/// Lowers the learning rate of stale gradients: `eta / max(1, tau)^rho` (arXiv 2505.01099), where `rho` falls
/// linearly from its start at step 1 to 0 at the last step of the schedule.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StalenessCorrection {
    power: f64,
    steps: u64,
}

impl StalenessCorrection {
    /// The correction of a run; a power of 0 turns it off.
    #[must_use]
    pub fn new(config: &Optimizer) -> Self {
        Self { power: f64::from(config.staleness_power), steps: config.steps }
    }

    /// Divisor, at least 1, of the learning rate of `step` (counted from 1) whose contributions have mean staleness
    /// `staleness`.
    #[must_use]
    pub fn divisor(&self, staleness: f64, step: u64) -> f64 {
        staleness.max(1.0).powf(self.rho(step))
    }

    fn rho(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1) as f64;
        let all = self.steps.saturating_sub(1).max(1) as f64;
        self.power * (1.0 - done / all).max(0.0)
    }
}

/// Counts of each staleness. Values from 255 on are counted together; the maximum is exact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StalenessHistogram {
    counts: Box<[u64; BUCKETS]>,
    max: u64,
}

impl Default for StalenessHistogram {
    fn default() -> Self {
        Self { counts: Box::new([0; BUCKETS]), max: 0 }
    }
}

impl StalenessHistogram {
    /// Counts a contribution of staleness `staleness`.
    pub fn record(&mut self, staleness: u64) {
        let bucket = usize::try_from(staleness).unwrap_or(usize::MAX).min(BUCKETS - 1);
        self.counts[bucket] += 1;
        self.max = self.max.max(staleness);
    }

    /// Contributions counted.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// Median staleness in steps; 0 without contributions.
    #[must_use]
    pub fn p50(&self) -> u64 {
        self.quantile(0.50)
    }

    /// Staleness in steps that 99 % of the contributions do not exceed; 0 without contributions.
    #[must_use]
    pub fn p99(&self) -> u64 {
        self.quantile(0.99)
    }

    /// Largest staleness in steps.
    #[must_use]
    pub fn max(&self) -> u64 {
        self.max
    }

    /// The smallest staleness that at least `share` of the contributions do not exceed (nearest rank).
    fn quantile(&self, share: f64) -> u64 {
        let rank = (share * self.count() as f64).ceil() as u64;
        let mut seen = 0;
        for (staleness, count) in (0..).zip(self.counts.iter()) {
            seen += count;
            if seen >= rank {
                return staleness;
            }
        }
        self.max
    }
}
