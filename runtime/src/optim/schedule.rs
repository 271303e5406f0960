//! The learning rate over a run.

use std::f64::consts::PI;

use crate::config::Optimizer;

/// Linear warm-up from 0 to the peak, then half a cosine from the peak to a floor, then the floor.
///
/// Updates are counted from 1: with `w` updates of warm-up in a run of `u`, the rate is `peak / w` at update 1,
/// the peak at update `w` and the floor at update `u` and after it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    warmup_updates: u64,
    updates: u64,
    final_share: f64,
}

impl Schedule {
    /// The schedule of a run.
    #[must_use]
    pub fn new(config: &Optimizer) -> Self {
        Self {
            peak: f64::from(config.learning_rate),
            warmup_updates: config.warmup_updates,
            updates: config.updates,
            final_share: f64::from(config.final_share),
        }
    }

    /// Learning rate of `update`, counted from 1.
    #[must_use]
    pub fn rate(&self, update: u64) -> f64 {
        if update < self.warmup_updates {
            return self.peak * update as f64 / self.warmup_updates as f64;
        }
        let cosine = 0.5 * (1.0 + (PI * self.progress(update)).cos());
        self.peak * (self.final_share + (1.0 - self.final_share) * cosine)
    }

    /// Share of the way from the end of the warm-up to the end of the run, 0 to 1.
    fn progress(&self, update: u64) -> f64 {
        let done = update.saturating_sub(self.warmup_updates);
        let all = self.updates.saturating_sub(self.warmup_updates);
        if all == 0 { f64::from(u8::from(done > 0)) } else { (done as f64 / all as f64).min(1.0) }
    }
}
