//! What is done to the residual stream at a cut.
//!
//! A boundary is part of the model, not of the transport: it is decided by the [`Run`] and the index of a
//! layer, so a shard of any layer range computes the same function as the layers it holds in one piece.
//!
//! | kind | stream in front of the last stage | what crosses |
//! | --- | --- | --- |
//! | identity | `X[N,d]` | `X` |
//! | subspace | coordinates `Z[N,k]`, with `X = E0[ids] + Z U^T` | `Z` |
//! | nothing | `X[N,d]`, started anew behind each cut from a trained anchor | 0 bytes |
//!
//! Constrained layers keep the stream as coordinates, so a code is a copy of it and nothing is lost. The first
//! layer of the last stage lifts the coordinates to a dense stream; a run with one stage constrains nothing.

mod subspace;

use swarmline_scheduler::StageIndex;

use crate::config::{Kind, Run};

pub use subspace::Subspace;

/// What happens to the stream at the entry of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It flows on.
    Continue,
    /// Coordinates become a dense stream.
    Lift,
    /// It is dropped; a trained anchor takes its place.
    Restart,
}

/// How the stream is represented inside a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// `X[N,d]`
    Dense,
    /// `Z[N,k]` with `X = E0[ids] + Z U^T`
    Coordinates,
}

/// Number of layers, counted from layer 0, whose writers are confined to the column space.
#[must_use]
pub fn constrained_layers(run: &Run) -> usize {
    match run.boundary.kind {
        Kind::Subspace => run.layers_of(run.last_stage()).start,
        Kind::Identity | Kind::None => 0,
    }
}

/// What happens at the entry of `layer`.
#[must_use]
pub fn entry(run: &Run, layer: usize) -> Entry {
    match run.boundary.kind {
        Kind::Subspace if layer > 0 && layer == constrained_layers(run) => Entry::Lift,
        Kind::None if layer > 0 && starts_stage(run, layer) => Entry::Restart,
        Kind::Subspace | Kind::Identity | Kind::None => Entry::Continue,
    }
}

/// How the stream is represented inside `layer`, behind its entry.
#[must_use]
pub fn stream(run: &Run, layer: usize) -> Stream {
    if layer < constrained_layers(run) { Stream::Coordinates } else { Stream::Dense }
}

/// Numbers per token of `stream`: `d` or `k`.
#[must_use]
pub fn stream_width(run: &Run, stream: Stream) -> usize {
    match stream {
        Stream::Dense => run.model.hidden_size,
        Stream::Coordinates => run.boundary.rank,
    }
}

/// Numbers per token that cross a cut in front of `layer`; 0 in front of layer 0 and behind the last layer.
#[must_use]
pub fn code_width(run: &Run, layer: usize) -> usize {
    if layer == 0 || layer >= run.model.num_hidden_layers || entry(run, layer) == Entry::Restart {
        return 0;
    }
    stream_width(run, stream(run, layer - 1))
}

fn starts_stage(run: &Run, layer: usize) -> bool {
    (0..=run.last_stage().0).any(|stage| run.layers_of(StageIndex(stage)).start == layer)
}

#[cfg(test)]
mod tests;
