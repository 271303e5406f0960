//! A run, described once and parsed once into types that cannot hold nonsense.

mod run;

pub use run::{
    Batch, Boundary, Data, Join, Kind, Mode, Model, Optimizer, OptimizerKind, Packing, Pipeline, Policy, Run,
    Stash, Tokenizer,
};
