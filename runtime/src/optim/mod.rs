//! How weights change: what one replica of a stage does with the gradients of its microbatches.
//!
//! [`StageOptimizer::contribute`] is the whole story: a microbatch's gradients are refused if they are not
//! numbers, clipped against those before them, gathered until a step is complete, clipped again, and applied
//! at a learning rate that follows a [`Schedule`] and shrinks with measured staleness. The other files each hold
//! one of these rules as plain arithmetic on scalars, in f64; tensors are touched in `stage_optimizer` alone.
//!
//! Nothing here knows the model: parameters come in as a list of [`ParameterMut`].

mod adam;
mod clip;
mod schedule;
mod stage_optimizer;
mod staleness;
mod state;

pub use adam::Adam;
pub use clip::{MicrobatchClip, stage_clip_scale};
pub use schedule::Schedule;
pub use stage_optimizer::{Contribution, ParameterMut, StageOptimizer};
pub use staleness::{StalenessCorrection, StalenessHistogram};
pub use state::{Counters, ImportError, NamedTensor, OptimizerState};

#[cfg(test)]
mod tests;
