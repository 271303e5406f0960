//! The state of a pass over the layers of a shard.

use swarmline_kernels::{Backend, Result};

use crate::model::layout::Layout;
use crate::model::params::Params;
use crate::model::sizes::Sizes;
use crate::subspace::Subspace;

/// Buffers that hold values during one pass.
#[derive(Debug)]
pub(super) struct Scratch<B: Backend> {
    /// The stream between layers, `[N,d]` or `[N,k]`.
    pub(super) stream: B::Tensor,
    /// The gradient of the stream between layers, `[N,d]` or `[N,k]`.
    pub(super) gradient: B::Tensor,
    /// A stream of coordinates in its dense form, and its gradient, `[N,d]`.
    pub(super) dense: B::Tensor,
    pub(super) dense_gradient: B::Tensor,
    /// `E0[ids]`, `[N,d]`; empty without a subspace.
    pub(super) anchor: B::Tensor,
    /// Output of a norm, and its gradient, `[N,d]`.
    pub(super) normed: B::Tensor,
    pub(super) normed_gradient: B::Tensor,
    /// `[N,d]`, `[N,d]`, `[N, g*e]`, `[N, g*e]`
    pub(super) attended_gradient: B::Tensor,
    pub(super) q_gradient: B::Tensor,
    pub(super) k_gradient: B::Tensor,
    pub(super) v_gradient: B::Tensor,
    /// `[N,f]` each
    pub(super) hidden: B::Tensor,
    pub(super) hidden_gradient: B::Tensor,
    pub(super) gate_gradient: B::Tensor,
    pub(super) up_gradient: B::Tensor,
    /// Of the head; empty without one. Logits of some rows, as many as the device wants; `[N]`, `[N]`, `[N]`.
    pub(super) logits: B::Tensor,
    pub(super) losses: B::Tensor,
    pub(super) head_rstd: B::Tensor,
    pub(super) host_losses: Vec<f32>,
}

impl<B: Backend> Scratch<B> {
    pub(super) fn new(backend: &mut B, layout: &Layout, sizes: &Sizes) -> Result<Self> {
        let (d, f, kv_width) =
            (sizes.model.hidden_size, sizes.model.intermediate_size, sizes.model.kv_width());
        let (logits, head) =
            if layout.head.is_some() { (backend.head_logits(sizes.head()), 1) } else { (0, 0) };
        let logits = backend.zeros(logits)?;
        let mut rows_of = |width: usize| backend.zeros(sizes.rows * width);
        Ok(Self {
            stream: rows_of(d)?,
            gradient: rows_of(d)?,
            dense: rows_of(d)?,
            dense_gradient: rows_of(d)?,
            anchor: rows_of(if layout.needs_subspace() { d } else { 0 })?,
            normed: rows_of(d)?,
            normed_gradient: rows_of(d)?,
            attended_gradient: rows_of(d)?,
            q_gradient: rows_of(d)?,
            k_gradient: rows_of(kv_width)?,
            v_gradient: rows_of(kv_width)?,
            hidden: rows_of(f)?,
            hidden_gradient: rows_of(f)?,
            gate_gradient: rows_of(f)?,
            up_gradient: rows_of(f)?,
            logits,
            losses: rows_of(head)?,
            head_rstd: rows_of(head)?,
            host_losses: vec![0.0; head * sizes.rows],
        })
    }
}

/// The state that the steps of a pass share. `scratch.stream` is the value of forward, `scratch.gradient` of backward.
pub(super) struct Pass<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) params: &'a mut Params<B>,
    pub(super) scratch: &'a mut Scratch<B>,
    pub(super) space: Option<&'a Subspace<B>>,
    pub(super) layout: &'a Layout,
    pub(super) sizes: &'a Sizes,
}
