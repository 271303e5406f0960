//! Activations between forward and backward, in buffers that are allocated once.

use std::collections::BTreeMap;

use swarmline_kernels::{Backend, Result};
use swarmline_scheduler::{MicrobatchId, WeightVersion};

use crate::model::layout::Layout;
use crate::model::sizes::Sizes;

/// Activations that the backward pass of one layer reads. Norm outputs and the hidden layer are cheap, so backward
/// recomputes them.
#[derive(Debug)]
pub(super) struct LayerActivations<B: Backend> {
    /// Stream in front of the attention, `[N,d]` or `[N,k]`.
    pub(super) input: B::Tensor,
    /// Stream between attention and feed-forward, `[N,d]` or `[N,k]`.
    pub(super) middle: B::Tensor,
    /// `[N]` each
    pub(super) attention_rstd: B::Tensor,
    pub(super) ffn_rstd: B::Tensor,
    /// Not rotated yet, `[N,d]`.
    pub(super) q: B::Tensor,
    /// Not rotated yet, `[N, g*e]`.
    pub(super) k: B::Tensor,
    /// `[N, g*e]`
    pub(super) v: B::Tensor,
    /// Output of the heads, `[N,d]`.
    pub(super) attended: B::Tensor,
    /// `[N,h]`
    pub(super) lse: B::Tensor,
    /// `[N,f]` each
    pub(super) gate: B::Tensor,
    pub(super) up: B::Tensor,
}

impl<B: Backend> LayerActivations<B> {
    fn new(backend: &mut B, sizes: &Sizes, stream_width: usize) -> Result<Self> {
        let (d, f, kv_width) =
            (sizes.model.hidden_size, sizes.model.intermediate_size, sizes.model.kv_width());
        let mut rows_of = |width: usize| backend.zeros(sizes.rows * width);
        Ok(Self {
            input: rows_of(stream_width)?,
            middle: rows_of(stream_width)?,
            attention_rstd: rows_of(1)?,
            ffn_rstd: rows_of(1)?,
            q: rows_of(d)?,
            k: rows_of(kv_width)?,
            v: rows_of(kv_width)?,
            attended: rows_of(d)?,
            lse: rows_of(sizes.model.num_attention_heads)?,
            gate: rows_of(f)?,
            up: rows_of(f)?,
        })
    }
}

/// Activations that the backward pass of a shard reads.
#[derive(Debug)]
pub(super) struct Activations<B: Backend> {
    pub(super) layers: Vec<LayerActivations<B>>,
}

impl<B: Backend> Activations<B> {
    pub(super) fn new(backend: &mut B, layout: &Layout, sizes: &Sizes) -> Result<Self> {
        let layers = layout.layers.iter();
        let layers = layers.map(|layer| LayerActivations::new(backend, sizes, layer.stream_width));
        Ok(Self { layers: layers.collect::<Result<_>>()? })
    }
}

/// The content of a slot, as the run's `activation_checkpointing` says.
#[derive(Debug)]
pub(super) enum Kept<B: Backend> {
    /// The activations; backward reads them and the current weights.
    Activations(Activations<B>),
    /// The packed incoming code; backward recomputes the forward pass at the current weights.
    Input(Vec<u8>),
}

/// A microbatch between its forward and its backward pass.
#[derive(Debug)]
pub(super) struct Stash<B: Backend> {
    pub(super) version: WeightVersion,
    pub(super) ids: B::Ids,
    pub(super) kept: Kept<B>,
}

/// A fixed number of slots, free or held by a microbatch.
#[derive(Debug)]
pub(super) struct Stashes<B: Backend> {
    slots: usize,
    free: Vec<Kept<B>>,
    held: BTreeMap<MicrobatchId, Stash<B>>,
}

impl<B: Backend> Stashes<B> {
    pub(super) fn new(
        backend: &mut B,
        checkpointing: bool,
        layout: &Layout,
        sizes: &Sizes,
        slots: usize,
    ) -> Result<Self> {
        let mut slot = || {
            if checkpointing {
                return Ok(Kept::Input(Vec::new()));
            }
            Activations::new(backend, layout, sizes).map(Kept::Activations)
        };
        let free = (0..slots).map(|_| slot()).collect::<Result<_>>()?;
        Ok(Self { slots, free, held: BTreeMap::new() })
    }

    pub(super) fn slots(&self) -> usize {
        self.slots
    }

    pub(super) fn free(&self) -> usize {
        self.free.len()
    }

    pub(super) fn version_of(&self, microbatch: MicrobatchId) -> Option<WeightVersion> {
        self.held.get(&microbatch).map(|stash| stash.version)
    }

    /// A slot for `microbatch`: its own, emptied, if it holds one, so that a second forward replaces the
    /// first.
    pub(super) fn take(&mut self, microbatch: MicrobatchId) -> Option<Kept<B>> {
        self.held.remove(&microbatch).map(|stash| stash.kept).or_else(|| self.free.pop())
    }

    pub(super) fn hold(&mut self, microbatch: MicrobatchId, stash: Stash<B>) {
        if let Some(replaced) = self.held.insert(microbatch, stash) {
            self.give_back(replaced.kept);
        }
    }

    pub(super) fn remove(&mut self, microbatch: MicrobatchId) -> Option<Stash<B>> {
        self.held.remove(&microbatch)
    }

    pub(super) fn give_back(&mut self, kept: Kept<B>) {
        self.free.push(kept);
        assert!(self.free.len() + self.held.len() <= self.slots, "a slot was given back twice");
    }
}
