//! Limits on gradient norms.

use std::collections::VecDeque;

/// Norms in the running median: those of the latest microbatches.
const NORMS_KEPT: usize = 64;

/// Microbatches that pass unclipped: a median of fewer norms says little.
const NORMS_BEFORE_CLIPPING: usize = 8;

/// Scales a microbatch's gradient down when its norm stands out from those before it.
///
/// The limit is a multiple of the running median of the latest 64 norms of this stage, so it needs no tuning per
/// model and one outlier cannot move it. The first 8 microbatches pass as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct MicrobatchClip {
    multiple: f64,
    recent: VecDeque<f64>,
}

impl MicrobatchClip {
    /// Clips at `multiple` of the median; 0 turns clipping off.
    #[must_use]
    pub fn new(multiple: f32) -> Self {
        Self { multiple: f64::from(multiple), recent: VecDeque::with_capacity(NORMS_KEPT) }
    }

    /// Remembers `norm` and returns the factor, at most 1, that brings the gradient within the limit.
    ///
    /// The norm is remembered as it came, not as clipped: when gradients grow for good, the median follows.
    pub fn scale(&mut self, norm: f64) -> f64 {
        if self.multiple == 0.0 {
            return 1.0;
        }
        let limit = self.limit();
        self.remember(norm);
        scale_to(norm, limit)
    }

    /// The norms that the next limit is taken from, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = f64> + '_ {
        self.recent.iter().copied()
    }

    /// Goes on with norms that another replica of the stage saw; the latest 64 count.
    pub(super) fn resume(&mut self, norms: &[f64]) {
        self.recent.clear();
        norms.iter().for_each(|&norm| self.remember(norm));
    }

    fn remember(&mut self, norm: f64) {
        if self.recent.len() == NORMS_KEPT {
            self.recent.pop_front();
        }
        self.recent.push_back(norm);
    }

    fn limit(&self) -> f64 {
        if self.recent.len() < NORMS_BEFORE_CLIPPING {
            return f64::INFINITY;
        }
        let median = median(&self.recent);
        // Gradients that are mostly exactly zero give no measure of a large one.
        if median > 0.0 { self.multiple * median } else { f64::INFINITY }
    }
}

/// Factor, at most 1, that brings a stage's accumulated gradient of norm `norm` within `limit`; a limit of 0 is
/// none.
#[must_use]
pub fn stage_clip_scale(norm: f64, limit: f32) -> f64 {
    if limit == 0.0 { 1.0 } else { scale_to(norm, f64::from(limit)) }
}

fn scale_to(norm: f64, limit: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}

/// The lower of the two middle norms where their number is even: a norm that did occur.
fn median(norms: &VecDeque<f64>) -> f64 {
    let mut sorted: Vec<f64> = norms.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}
