//! A run, described once and parsed once into types that cannot hold nonsense.
//!
//! The way of a run file: `document` keeps the line of everything it reads, `resolve` fills in the defaults,
//! `check` holds every rule about values. A [`Manifest`] from a stranger passes through the same three.
//! `parameters` and `stream` say what follows from a run: the shapes of its parameters and the form of its stream.

mod annotate;
mod check;
mod document;
mod error;
mod fields;
pub mod limits;
mod manifest;
mod parameters;
mod resolve;
mod run;
mod stream;
mod suggest;
mod synonyms;
#[cfg(test)]
mod tests;
mod words;

pub use error::{ConfigError, Violation};
pub use manifest::{Manifest, PROTOCOL};
pub use parameters::{Initial, ParameterSpec};
pub use run::{
    Averaging, Batch, Boundary, Data, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing, Pipeline,
    Policy, Run, Tokenizer,
};
pub use stream::{Entry, Stream};
