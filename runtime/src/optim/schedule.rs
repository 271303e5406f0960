//! The learning rate over a run.

use std::f64::consts::PI;

use crate::config::Optimizer;

/// Linear warm-up from 0 to the peak, then half a cosine from the peak to a floor, then the floor.
///
/// Steps are counted from 1: with `w` steps of warm-up in a run of `u`, the rate is `peak / w` at step 1,
/// the peak at step `w` and the floor at step `u` and after it.
///
/// The two parts go by two clocks, which are one where a single replica takes all steps. Warm-up waits for the moments
/// of Adam to settle, so it goes by the steps that they are made of. The cosine shares out the run, so it goes by the
/// run's own clock.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    peak: f64,
    warmup_steps: u64,
    steps: u64,
    min_lr_ratio: f64,
}

impl Schedule {
    /// The schedule of a run.
    #[must_use]
    pub fn new(config: &Optimizer) -> Self {
        Self {
            peak: f64::from(config.learning_rate),
            warmup_steps: config.warmup_steps,
            steps: config.steps,
            min_lr_ratio: f64::from(config.min_lr_ratio),
        }
    }

    /// Learning rate of `step` of the moments, taken at step `of_run` of the run, both counted from 1.
    #[must_use]
    pub fn rate(&self, step: u64, of_run: u64) -> f64 {
        let cosine = 0.5 * (1.0 + (PI * self.progress(of_run)).cos());
        self.peak * self.warmth(step) * (self.min_lr_ratio + (1.0 - self.min_lr_ratio) * cosine)
    }

    /// Share of the warm-up that is over, 0 to 1.
    fn warmth(&self, step: u64) -> f64 {
        if step < self.warmup_steps { step as f64 / self.warmup_steps as f64 } else { 1.0 }
    }

    /// Share of the way from the end of the warm-up to the end of the run, 0 to 1.
    fn progress(&self, step: u64) -> f64 {
        let done = step.saturating_sub(self.warmup_steps);
        let all = self.steps.saturating_sub(self.warmup_steps);
        if all == 0 { f64::from(u8::from(done > 0)) } else { (done as f64 / all as f64).min(1.0) }
    }
}
