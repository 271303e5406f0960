//! What a replica's numbers have to do with an averaging round; when, and with whom, is decided by
//! [`swarmline_scheduler::Averaging`].
//!
//! All numbers of a stage are divided into [`IndexSets`]. For a round, [`Averager::snapshot`] copies one set (weights
//! and both moments) as parts; [`reduce`] makes the mean of the shares of a part; [`Averager::apply`] moves the
//! replica's own numbers by what the mean differs from the copy, so that what was learned meanwhile stays. Averaging
//! only ever sees weights between two updates.
//!
//! Nothing here knows the model: tensors come in as a list of [`TensorsMut`].

mod averager;
mod contributions;
mod fragments;
mod job;
mod merge;
mod part;
mod reduce;

pub use averager::{ApplyError, Averager, Learned, SetSnapshot, TensorsMut};
pub use contributions::Ledger;
pub use fragments::IndexSets;
pub use job::Job;
pub use reduce::reduce;

#[cfg(test)]
mod tests;
