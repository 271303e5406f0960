//! Rules on scalars first, then the optimizer that ties them together.

mod clip;
mod schedule;
mod stage_optimizer;
mod staleness;
mod state;
mod toy;

use crate::config::{Optimizer, OptimizerKind};

/// AdamW at a constant rate of 0.01 without anything that changes gradients.
fn plain() -> Optimizer {
    Optimizer {
        kind: OptimizerKind::AdamW,
        learning_rate: 0.01,
        warmup_updates: 0,
        updates: 100,
        final_share: 1.0,
        beta1: 0.9,
        beta2: 0.95,
        epsilon: 1e-8,
        weight_decay: 0.1,
        momentum_decay: 0.004,
        clip_microbatch: 0.0,
        clip_stage: 0.0,
        staleness_power: 0.0,
    }
}

#[track_caller]
fn assert_near(found: f64, expected: f64) {
    assert!((found - expected).abs() <= 1e-12 * expected.abs(), "{found} instead of {expected}");
}
