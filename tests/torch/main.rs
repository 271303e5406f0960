//! Our arithmetic against PyTorch's: the fixtures under `tests/fixtures` and their README tell what is compared.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;
mod model;
mod optimizer;
