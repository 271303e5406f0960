//! The delta rule: how a number moves to the mean of its round after the optimizer has stepped.
//!
//! With `a` the number in the snapshot and `tau` steps since (AsyncMesh, arXiv 2601.22442; the factors follow from the
//! decay of moments):
//!
//! ```text
//! w <- w + (mean - a)
//! m <- m + beta1^tau (mean - a)
//! v <- max(0, v + beta2^tau (mean - a))
//! ```
//!
//! Moments decay: of a difference `tau` steps ago, `beta^tau` is left. Without the factor the second moment could go
//! below zero. A number that has not changed since the snapshot becomes the mean itself, bit for bit, so replicas
//! at rest end equal.

/// A weight, or a first moment with its `decay` (`beta1^tau`; 1 for a weight).
pub(super) fn shifted(now: f32, snapshot: f32, mean: f32, decay: f64) -> f32 {
    if decay == 1.0 && now.to_bits() == snapshot.to_bits() {
        return mean;
    }
    (f64::from(now) + decay * (f64::from(mean) - f64::from(snapshot))) as f32
}

/// A second moment with its `decay`, `beta2^tau`.
pub(super) fn shifted_square(now: f32, snapshot: f32, mean: f32, decay: f64) -> f32 {
    shifted(now, snapshot, mean, decay).max(0.0)
}
