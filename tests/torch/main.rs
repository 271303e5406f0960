//! Our arithmetic against PyTorch's: see the README of the fixtures in `tests/fixtures`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod fixture;
mod model;
mod optimizer;
