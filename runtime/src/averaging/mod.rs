//! The arithmetic of an averaging round. [`swarmline_scheduler::Averaging`] decides when a round starts and which
//! replicas take part.
//!
//! The numbers of a stage are divided into [`Fragments`]. For a round, [`Averager::snapshot`] copies the weights and
//! both moments of one fragment, as parts; [`reduce`] computes the mean of a part over the replicas, and keeps wild contributions
//! from being it; and
//! [`Averager::finish`] moves the replica's own numbers by the difference of the means from the copy, which keeps the
//! steps taken meanwhile. Averaging reads and writes weights only between two optimizer steps.
//!
//! This module does not know the model: tensors are a list of [`TensorsMut`].

mod averager;
mod clip;
mod contributions;
mod fragments;
mod merge;
mod part;
mod reduce;
mod references;

pub use averager::{ApplyError, Averager, FragmentSnapshot, Learned, TensorsMut};
pub use contributions::Contributions;
pub use fragments::Fragments;
pub use reduce::reduce;

#[cfg(test)]
mod tests;
