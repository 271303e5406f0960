//! The form of the residual stream in each layer, and the part of it that crosses a cut.
//!
//! Both depend on the [`Run`] and the index of the layer alone, so shards of any layer ranges compute the same
//! function.
//!
//! | kind | stream in front of the last stage | crosses a cut |
//! | --- | --- | --- |
//! | identity | `X[N,d]` | `X` |
//! | subspace | coordinates `Z[N,k]`, with `X = E0[ids] + Z U^T` | `Z` |
//! | none | `X[N,d]`, restarted behind each cut from a trained anchor | 0 bytes |
//!
//! Constrained layers keep the stream as coordinates, so a code is an exact copy of the stream. The first layer of the
//! last stage lifts the coordinates to a dense stream; a run with one stage constrains no layer.

use super::{Kind, Run};

/// Change of the stream at the entry of a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// The stream is unchanged.
    Continue,
    /// Coordinates become a dense stream.
    Lift,
    /// A trained anchor replaces the stream.
    Restart,
}

/// Form of the stream inside a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// `X[N,d]`
    Dense,
    /// `Z[N,k]` with `X = E0[ids] + Z U^T`
    Coordinates,
}

impl Run {
    /// Number of layers, counted from layer 0, with writers confined to the column space.
    #[must_use]
    pub fn constrained_layers(&self) -> usize {
        match self.boundary.kind {
            Kind::Subspace => self.layers_of(self.last_stage()).start,
            Kind::Identity | Kind::None => 0,
        }
    }

    /// Whether the stream is dense and unbroken in every layer, as in a model in one piece.
    #[must_use]
    pub fn is_dense(&self) -> bool {
        let layers = 0..self.model.num_hidden_layers;
        self.constrained_layers() == 0 && layers.into_iter().all(|layer| self.entry(layer) == Entry::Continue)
    }

    /// Change of the stream at the entry of `layer`.
    #[must_use]
    pub fn entry(&self, layer: usize) -> Entry {
        match self.boundary.kind {
            Kind::Subspace if layer > 0 && layer == self.constrained_layers() => Entry::Lift,
            Kind::None if layer > 0 && self.starts_stage(layer) => Entry::Restart,
            Kind::Subspace | Kind::Identity | Kind::None => Entry::Continue,
        }
    }

    /// Form of the stream inside `layer`, behind its entry.
    #[must_use]
    pub fn stream(&self, layer: usize) -> Stream {
        if layer < self.constrained_layers() { Stream::Coordinates } else { Stream::Dense }
    }

    /// Numbers per token of `stream`: `d` or `k`.
    #[must_use]
    pub fn stream_width(&self, stream: Stream) -> usize {
        match stream {
            Stream::Dense => self.model.hidden_size,
            Stream::Coordinates => self.boundary.rank,
        }
    }

    /// Numbers per token that cross a cut in front of `layer`; 0 in front of layer 0 and behind the last layer.
    #[must_use]
    pub fn code_width(&self, layer: usize) -> usize {
        if layer == 0 || layer >= self.model.num_hidden_layers || self.entry(layer) == Entry::Restart {
            return 0;
        }
        self.stream_width(self.stream(layer - 1))
    }

    fn starts_stage(&self, layer: usize) -> bool {
        let starts = self.pipeline.layers_per_stage.iter().scan(0, |next, layers| {
            let start = *next;
            *next += layers;
            Some(start)
        });
        starts.take_while(|start| *start <= layer).any(|start| start == layer)
    }
}

#[cfg(test)]
mod tests;
