//! One transformer layer: `x += attention(norm(x))`, `x += ffn(norm(x))`, forward and backward.
//!
//! Constrained layers keep `x` as coordinates: the norms read its dense form, and the writers `wo` and
//! `ffn.down` have `k` outputs instead of `d`, so they add to the coordinates directly.

use swarmline_kernels::{Backend, LinearShape, Result, Write};

use crate::config::Stream;
use crate::model::layout::Layer;
use crate::model::params::Parameter;
use crate::model::pass::Pass;
use crate::model::stash::LayerActivations;
use crate::subspace::Subspace;

/// Forward pass of `scratch.stream` through the layer; fills `kept`.
pub(super) fn forward<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    kept: &mut LayerActivations<B>,
) -> Result<()> {
    attention(pass, layer, kept)?;
    ffn(pass, layer, kept)
}

/// Backward pass of `scratch.gradient` through the layer; adds to the gradients of its parameters.
pub(super) fn backward<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    kept: &LayerActivations<B>,
) -> Result<()> {
    ffn_backward(pass, layer, kept)?;
    attention_backward(pass, layer, kept)
}

fn attention<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    kept: &mut LayerActivations<B>,
) -> Result<()> {
    let sizes = pass.sizes;
    let (d, g) = (sizes.model.hidden_size, sizes.model.kv_width());
    pass.backend.copy(&mut kept.input, &pass.scratch.stream, sizes.rows * layer.stream_width)?;
    norm(pass, layer, &kept.input, &mut kept.attention_rstd, layer.attention_norm)?;

    let Pass { backend, params, scratch, .. } = pass;
    backend.linear(&mut kept.q, &scratch.normed, &params[layer.wq].weight, sizes.linear(d, d), Write::Set)?;
    backend.linear(&mut kept.k, &scratch.normed, &params[layer.wk].weight, sizes.linear(d, g), Write::Set)?;
    backend.linear(&mut kept.v, &scratch.normed, &params[layer.wv].weight, sizes.linear(d, g), Write::Set)?;
    backend.attention(&mut kept.attended, &mut kept.lse, &kept.q, &kept.k, &kept.v, sizes.attention())?;
    let writer = sizes.linear(d, layer.stream_width);
    backend.linear(&mut scratch.stream, &kept.attended, &params[layer.wo].weight, writer, Write::Add)
}

fn ffn<B: Backend>(pass: &mut Pass<'_, B>, layer: &Layer, kept: &mut LayerActivations<B>) -> Result<()> {
    let sizes = pass.sizes;
    let (d, f) = (sizes.model.hidden_size, sizes.model.intermediate_size);
    pass.backend.copy(&mut kept.middle, &pass.scratch.stream, sizes.rows * layer.stream_width)?;
    norm(pass, layer, &kept.middle, &mut kept.ffn_rstd, layer.ffn_norm)?;

    let Pass { backend, params, scratch, .. } = pass;
    let reader = sizes.linear(d, f);
    backend.linear(&mut kept.gate, &scratch.normed, &params[layer.gate].weight, reader, Write::Set)?;
    backend.linear(&mut kept.up, &scratch.normed, &params[layer.up].weight, reader, Write::Set)?;
    backend.swiglu(&mut scratch.hidden, &kept.gate, &kept.up, sizes.rows * f)?;
    let writer = sizes.linear(f, layer.stream_width);
    backend.linear(&mut scratch.stream, &scratch.hidden, &params[layer.down].weight, writer, Write::Add)
}

fn ffn_backward<B: Backend>(pass: &mut Pass<'_, B>, layer: &Layer, kept: &LayerActivations<B>) -> Result<()> {
    let sizes = pass.sizes;
    let (d, f) = (sizes.model.hidden_size, sizes.model.intermediate_size);
    norm_again(pass, layer, &kept.middle, &kept.ffn_rstd, layer.ffn_norm)?;

    let Pass { backend, params, scratch, .. } = pass;
    let backend = &mut **backend;
    let len = sizes.rows * f;
    backend.swiglu(&mut scratch.hidden, &kept.gate, &kept.up, len)?;
    let (dh, dx) = (&mut scratch.hidden_gradient, &scratch.gradient);
    let writer = sizes.linear(f, layer.stream_width);
    linear_backward(backend, dh, &mut params[layer.down], dx, &scratch.hidden, writer, Write::Set)?;
    let (dgate, dup) = (&mut scratch.gate_gradient, &mut scratch.up_gradient);
    backend.swiglu_backward(dgate, dup, dh, &kept.gate, &kept.up, len)?;
    let (dnormed, normed, reader) = (&mut scratch.normed_gradient, &scratch.normed, sizes.linear(d, f));
    linear_backward(backend, dnormed, &mut params[layer.gate], dgate, normed, reader, Write::Set)?;
    linear_backward(backend, dnormed, &mut params[layer.up], dup, normed, reader, Write::Add)?;
    norm_backward(pass, layer, &kept.middle, &kept.ffn_rstd, layer.ffn_norm)
}

fn attention_backward<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    kept: &LayerActivations<B>,
) -> Result<()> {
    let sizes = pass.sizes;
    let (d, g) = (sizes.model.hidden_size, sizes.model.kv_width());
    norm_again(pass, layer, &kept.input, &kept.attention_rstd, layer.attention_norm)?;

    let Pass { backend, params, scratch, .. } = pass;
    let backend = &mut **backend;
    let (dattended, dx) = (&mut scratch.attended_gradient, &scratch.gradient);
    let writer = sizes.linear(d, layer.stream_width);
    linear_backward(backend, dattended, &mut params[layer.wo], dx, &kept.attended, writer, Write::Set)?;
    let (dq, dk, dv) = (&mut scratch.q_gradient, &mut scratch.k_gradient, &mut scratch.v_gradient);
    let (q, k, v, out, lse) = (&kept.q, &kept.k, &kept.v, &kept.attended, &kept.lse);
    backend.attention_backward(dq, dk, dv, dattended, q, k, v, out, lse, sizes.attention())?;
    let (dnormed, normed) = (&mut scratch.normed_gradient, &scratch.normed);
    let (wide, narrow) = (sizes.linear(d, d), sizes.linear(d, g));
    linear_backward(backend, dnormed, &mut params[layer.wq], dq, normed, wide, Write::Set)?;
    linear_backward(backend, dnormed, &mut params[layer.wk], dk, normed, narrow, Write::Add)?;
    linear_backward(backend, dnormed, &mut params[layer.wv], dv, normed, narrow, Write::Add)?;
    norm_backward(pass, layer, &kept.input, &kept.attention_rstd, layer.attention_norm)
}

/// `scratch.normed =`, `rstd =` from the stream `x`.
fn norm<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    x: &B::Tensor,
    rstd: &mut B::Tensor,
    gain: usize,
) -> Result<()> {
    let Pass { backend, params, scratch, space, sizes, .. } = pass;
    let x = Subspace::dense(*space, backend, &mut scratch.dense, x, &scratch.anchor, layer.stream)?;
    let gain = &params[gain].weight;
    let (rows, model) = (sizes.rows, &sizes.model);
    backend.rmsnorm(&mut scratch.normed, rstd, x, gain, rows, model.hidden_size, model.rms_norm_eps)
}

/// `scratch.normed =` the output of [`norm`] for `x`, at the current gain.
fn norm_again<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    x: &B::Tensor,
    rstd: &B::Tensor,
    gain: usize,
) -> Result<()> {
    let Pass { backend, params, scratch, space, sizes, .. } = pass;
    let x = Subspace::dense(*space, backend, &mut scratch.dense, x, &scratch.anchor, layer.stream)?;
    let (rows, width) = (sizes.rows, sizes.model.hidden_size);
    backend.rmsnorm_apply(&mut scratch.normed, x, &params[gain].weight, rstd, rows, width)
}

/// `scratch.gradient +=` the gradient of the norm's input, from `scratch.normed_gradient`; `dgain +=`.
/// For coordinates, `scratch.dense` still holds the dense form of `x` from [`norm_again`].
fn norm_backward<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    x: &B::Tensor,
    rstd: &B::Tensor,
    gain: usize,
) -> Result<()> {
    let Pass { backend, params, scratch, space, sizes, .. } = pass;
    let (rows, width) = (sizes.rows, sizes.model.hidden_size);
    let gain = &mut params[gain];
    let (dgain, dy) = (&mut gain.gradient, &scratch.normed_gradient);
    match (layer.stream, space) {
        (Stream::Dense, _) => {
            let dx = &mut scratch.gradient;
            backend.rmsnorm_backward(dx, dgain, dy, x, &gain.weight, rstd, rows, width, Write::Add)
        }
        (Stream::Coordinates, Some(space)) => {
            let (dx, x) = (&mut scratch.dense_gradient, &scratch.dense);
            backend.rmsnorm_backward(dx, dgain, dy, x, &gain.weight, rstd, rows, width, Write::Set)?;
            space.lift_backward(backend, &mut scratch.gradient, dx, Write::Add)
        }
        (Stream::Coordinates, None) => unreachable!("constrained layers come with a subspace"),
    }
}

/// `dx (= | +=) dy w`, `dw += dy^T x`
fn linear_backward<B: Backend>(
    backend: &mut B,
    dx: &mut B::Tensor,
    w: &mut Parameter<B>,
    dy: &B::Tensor,
    x: &B::Tensor,
    shape: LinearShape,
    write: Write,
) -> Result<()> {
    backend.linear_backward_input(dx, dy, &w.weight, shape, write)?;
    backend.linear_backward_weight(&mut w.gradient, dy, x, shape, Write::Add)
}
