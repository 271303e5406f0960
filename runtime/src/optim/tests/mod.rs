//! Tests of the rules on scalars, then of the optimizer.

mod clip;
mod schedule;
mod stage_optimizer;
mod staleness;
mod state;
mod toy;

use crate::config::{Optimizer, OptimizerKind};

/// AdamW at a constant rate of 0.01, without clipping or staleness correction.
fn plain() -> Optimizer {
    Optimizer::plain(OptimizerKind::AdamW, 0.01, 100)
}

#[track_caller]
fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} instead of {expected}");
}
