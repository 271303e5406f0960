//! Limits on gradient norms.

use std::collections::VecDeque;

/// Number of the latest norms in the running median.
pub const NORMS_KEPT: usize = 64;

/// First microbatches, which are not clipped: a median of fewer norms says little.
const NORMS_BEFORE_CLIPPING: usize = 8;

/// Scales down a microbatch's gradient whose norm is far above the norms before it, and leaves out one that is beyond all
/// measure: such a gradient has no direction worth a step.
///
/// Both limits are multiples of the running median of the latest 64 norms of this stage, so they need no tuning per
/// model, and one outlier cannot move them. The first 8 microbatches pass as they are.
#[derive(Clone, Debug, PartialEq)]
pub struct MicrobatchClip {
    clip: f64,
    skip: f64,
    recent: VecDeque<f64>,
}

impl MicrobatchClip {
    /// Clips at `clip` times the median, and leaves out what is beyond `skip` times the median; 0 turns either off.
    #[must_use]
    pub fn new(clip: f32, skip: f32) -> Self {
        let recent = VecDeque::with_capacity(NORMS_KEPT);
        Self { clip: f64::from(clip), skip: f64::from(skip), recent }
    }

    /// Records `norm` and returns the factor, at most 1, that brings the gradient within the limit; 0 leaves it out.
    ///
    /// The recorded norm is not clipped, so the median follows gradients that grow for good, and no more than half of 64
    /// in a row are left out.
    pub fn scale(&mut self, norm: f64) -> f64 {
        if self.clip == 0.0 && self.skip == 0.0 {
            return 1.0;
        }
        let median = self.median();
        self.remember(norm);
        match median {
            Some(median) if self.skip > 0.0 && norm > self.skip * median => 0.0,
            Some(median) if self.clip > 0.0 => scale_to(norm, self.clip * median),
            Some(_) | None => 1.0,
        }
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

    /// The usual norm; `None` if the norms so far give no measure of a large one, as zeros do not.
    fn median(&self) -> Option<f64> {
        let is_known = self.recent.len() >= NORMS_BEFORE_CLIPPING;
        is_known.then(|| median(&self.recent)).filter(|&median| median > 0.0)
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
