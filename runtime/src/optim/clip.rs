//! Limits on gradient norms.

use std::collections::VecDeque;

/// Number of the latest norms in the running median.
pub const NORMS_KEPT: usize = 64;

/// First microbatches, which are not clipped: a median of fewer norms says little.
const NORMS_BEFORE_CLIPPING: usize = 8;

/// Scales down a microbatch's gradient whose norm is far above the norms before it.
///
/// The limit is a multiple of the running median of the latest 64 norms of this stage, so it needs no tuning per
/// model, and one outlier cannot move it. The first 8 microbatches are not clipped.
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

    /// Records `norm` and returns the factor, at most 1, that brings the gradient within the limit.
    ///
    /// The recorded norm is not clipped, so the median follows gradients that grow for good.
    pub fn scale(&mut self, norm: f64) -> f64 {
        if self.multiple == 0.0 {
            return 1.0;
        }
        let limit = self.limit();
        self.remember(norm);
        scale_to(norm, limit)
    }

    /// The norms that the next limit is computed from, oldest first.
    pub fn recent(&self) -> impl Iterator<Item = f64> + '_ {
        self.recent.iter().copied()
    }

    /// Takes over the norms of another replica of the stage; the latest 64 count.
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
        // If most norms are zero, they give no measure of a large norm.
        if median > 0.0 { self.multiple * median } else { f64::INFINITY }
    }
}

/// Factor, at most 1, that brings a stage's accumulated gradient of norm `norm` within `limit`; a limit of 0 turns
/// clipping off.
#[must_use]
pub fn stage_clip_scale(norm: f64, limit: f32) -> f64 {
    if limit == 0.0 { 1.0 } else { scale_to(norm, f64::from(limit)) }
}

fn scale_to(norm: f64, limit: f64) -> f64 {
    if norm > limit { limit / norm } else { 1.0 }
}

/// The median; for an even number the lower of the two middle norms, so that it is one of the norms.
fn median(norms: &VecDeque<f64>) -> f64 {
    let mut sorted: Vec<f64> = norms.iter().copied().collect();
    sorted.sort_by(f64::total_cmp);
    sorted[(sorted.len() - 1) / 2]
}
