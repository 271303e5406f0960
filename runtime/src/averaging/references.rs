//! The weights of the last mean of each fragment, for replicas that a mean has left out.
//!
//! A mean that lacks the contribution of a replica must not take away what the replica has learned. The replica moves
//! as far as the mean has moved since the last mean that it knows: `w <- w + (mean - reference)`. So it stays with the
//! others, and what it has learned waits for the next mean. A joiner's first reference is the state of its donor.
//!
//! References take 4 bytes a number. Only replicas that have been left out, and joiners before their first mean of a
//! fragment, hold them.

use swarmline_scheduler::averaging::FragmentIndex;

/// By fragment, in the order of its numbers; NaN where no mean is known.
#[derive(Clone, Debug)]
pub(super) struct References(Vec<Option<Vec<f32>>>);

impl References {
    pub(super) fn none(fragments: u32) -> Self {
        Self(vec![None; fragments.max(1) as usize])
    }

    pub(super) fn set(&mut self, fragment: FragmentIndex, weights: Vec<f32>) {
        if let Some(known) = self.0.get_mut(fragment.0 as usize) {
            *known = Some(weights);
        }
    }

    pub(super) fn forget(&mut self, fragment: FragmentIndex) {
        if let Some(known) = self.0.get_mut(fragment.0 as usize) {
            *known = None;
        }
    }

    /// Puts the mean of the number at `index` in place of its reference, which is returned if it was known. Without
    /// references they begin here if `is_left_out`.
    pub(super) fn follow(
        &mut self,
        fragment: FragmentIndex,
        index: usize,
        mean: f32,
        is_left_out: bool,
    ) -> Option<f32> {
        let known = self.0.get_mut(fragment.0 as usize)?;
        if known.is_none() && !is_left_out {
            return None;
        }
        let known = known.get_or_insert_default();
        if known.len() <= index {
            known.resize(index + 1, f32::NAN);
        }
        Some(std::mem::replace(&mut known[index], mean)).filter(|reference| !reference.is_nan())
    }
}
