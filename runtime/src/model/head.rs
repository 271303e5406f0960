//! The end of the stream: final norm, logits, cross-entropy.

use swarmline_kernels::{Backend, HeadGradients, LinearShape, Result, Write};

use crate::model::layout::Head;
use crate::model::pass::Pass;

/// Purpose of a pass through the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// Losses only.
    Evaluate,
    /// Losses and gradients: [`backward`] follows.
    Train,
}

/// Sum over the microbatch of the cross-entropies, nats. The sum is taken in f64, row by row.
///
/// To train, also stores the gradient of the mean by the norm's output in `scratch.normed_gradient`, and adds the
/// gradient by the head's weights: logits exist for some rows at a time, so their gradients are used at once.
pub(super) fn forward<B: Backend>(
    pass: &mut Pass<'_, B>,
    head: Head,
    targets: &B::Ids,
    purpose: Purpose,
) -> Result<f64> {
    let Pass { backend, params, scratch, sizes, .. } = pass;
    let scratch = &mut **scratch;
    let (rows, width) = (sizes.rows, sizes.model.hidden_size);
    let gain = &params[head.norm].weight;
    let (normed, rstd) = (&mut scratch.normed, &mut scratch.head_rstd);
    backend.rmsnorm(normed, rstd, &scratch.stream, gain, rows, width, sizes.model.rms_norm_eps)?;
    let projection = &mut params[head.head];
    let gradients = (purpose == Purpose::Train).then(|| HeadGradients {
        dx: &mut scratch.normed_gradient,
        dw: &mut projection.gradient,
        scale: 1.0 / rows as f32,
    });
    let (losses, logits, w) = (&mut scratch.losses, &mut scratch.logits, &projection.weight);
    backend.head(losses, gradients, logits, normed, w, targets, sizes.head())?;
    backend.download(&mut scratch.host_losses, losses)?;
    Ok(scratch.host_losses.iter().map(|&loss| f64::from(loss)).sum())
}

/// The logits of the token at `row`, `[V]`. The norm is taken of all rows, and the product of this one.
pub(super) fn logits<B: Backend>(pass: &mut Pass<'_, B>, head: Head, row: usize) -> Result<Vec<f32>> {
    let Pass { backend, params, scratch, sizes, .. } = pass;
    let scratch = &mut **scratch;
    let (rows, width) = (sizes.rows, sizes.model.hidden_size);
    let gain = &params[head.norm].weight;
    let (normed, rstd) = (&mut scratch.normed, &mut scratch.head_rstd);
    backend.rmsnorm(normed, rstd, &scratch.stream, gain, rows, width, sizes.model.rms_norm_eps)?;
    let mut host = vec![0.0; (row + 1) * width];
    backend.download(&mut host, normed)?;
    let shape = LinearShape { rows: 1, ..sizes.head() };
    let (mut x, mut y) = (backend.zeros(shape.inputs)?, backend.zeros(shape.outputs)?);
    backend.upload(&mut x, &host[row * width..])?;
    backend.linear(&mut y, &x, &params[head.head].weight, shape, Write::Set)?;
    let mut logits = vec![0.0; shape.outputs];
    backend.download(&mut logits, &y)?;
    Ok(logits)
}

/// `scratch.gradient[N,d] =` the gradient of the stream, from the gradient that [`forward`] left; the norm's gain `+=`.
pub(super) fn backward<B: Backend>(pass: &mut Pass<'_, B>, head: Head) -> Result<()> {
    let Pass { backend, params, scratch, sizes, .. } = pass;
    let (rows, width) = (sizes.rows, sizes.model.hidden_size);
    let norm = &mut params[head.norm];
    let (dx, dgain) = (&mut scratch.gradient, &mut norm.gradient);
    let (dnormed, x, rstd) = (&scratch.normed_gradient, &scratch.stream, &scratch.head_rstd);
    backend.rmsnorm_backward(dx, dgain, dnormed, x, &norm.weight, rstd, rows, width, Write::Set)
}
