//! A run: its file, its manifest, and the types that both are parsed into.
//!
//! A run file passes three modules: `document` reads TOML and keeps the line of each value, `resolve` fills in the
//! defaults, `check` holds the rules about values. A [`Manifest`] from a stranger passes the same three.
//! `parameters` and `stream` derive the shapes of the parameters and the form of the stream from a run.

mod annotate;
mod check;
mod differences;
mod document;
mod error;
mod fields;
pub mod limits;
mod manifest;
mod parameters;
mod plan;
mod resolve;
mod run;
mod stream;
mod suggest;
mod synonyms;
#[cfg(test)]
mod tests;
mod words;

pub(crate) use check::SECRET_MARK;
pub use differences::{Difference, differences_at_checkpoint, fixed_differences};
pub use error::{ConfigError, Violation};
pub use manifest::{Manifest, PROTOCOL};
pub use parameters::{Initial, ParameterSpec};
pub use plan::Plan;
pub use run::{
    Averaging, Batch, Boundary, Data, Feed, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing,
    Pipeline, Policy, Run, Tokenizer,
};
pub use stream::{Entry, Stream};
