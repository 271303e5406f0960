//! The optimizer of one replica of a stage: from the gradients of microbatches to changed weights.
//!
//! [`StageOptimizer::contribute`] does all of it: the gradients of a microbatch are refused if they are not finite,
//! clipped against earlier norms, accumulated until their step is complete, clipped again, and applied at a learning
//! rate that follows a [`Schedule`] and shrinks with measured staleness. Each of the other files holds one of these
//! rules as arithmetic on f64 scalars; only `stage_optimizer` handles tensors.
//!
//! This module does not know the model: parameters are a list of [`ParameterMut`].

mod adam;
mod clip;
mod schedule;
mod stage_optimizer;
mod staleness;
mod state;

pub use adam::Adam;
pub use clip::{MicrobatchClip, NORMS_KEPT, stage_clip_scale};
pub use schedule::Schedule;
pub use stage_optimizer::{Contribution, ParameterMut, StageOptimizer};
pub use staleness::{StalenessCorrection, StalenessHistogram};
pub use state::{Counters, ImportError, NamedTensor, OptimizerState};

#[cfg(test)]
mod tests;
