//! The end of the stream: final norm, logits, cross-entropy.

use swarmline_kernels::{Backend, Result, Write};

use crate::model::block::linear_backward;
use crate::model::layout::Head;
use crate::model::pass::Pass;

/// Sum over the microbatch of the cross-entropies, nats; leaves `dL/dlogits` of their mean in
/// `scratch.logits`. The sum is taken in f64, row by row.
pub(super) fn forward<B: Backend>(pass: &mut Pass<'_, B>, head: Head, targets: &B::Ids) -> Result<f64> {
    let Pass { backend, params, scratch, sizes, .. } = pass;
    let (rows, width, vocab) = (sizes.rows, sizes.width, sizes.vocab);
    let gain = &params[head.norm].weight;
    let (normed, rstd) = (&mut scratch.normed, &mut scratch.head_rstd);
    backend.rmsnorm(normed, rstd, &scratch.stream, gain, rows, width, sizes.epsilon)?;
    let shape = sizes.linear(width, vocab);
    backend.linear(&mut scratch.logits, normed, &params[head.head].weight, shape, Write::Set)?;
    let scale = 1.0 / rows as f32;
    backend.cross_entropy(&mut scratch.losses, &mut scratch.logits, targets, vocab, scale)?;
    let mut losses = vec![0.0; rows];
    backend.download(&mut losses, &scratch.losses)?;
    Ok(losses.iter().map(|&loss| f64::from(loss)).sum())
}

/// `scratch.gradient[N,d] =` the gradient of the stream, from what [`forward`] left; the parameters' `+=`.
pub(super) fn backward<B: Backend>(pass: &mut Pass<'_, B>, head: Head) -> Result<()> {
    let Pass { backend, params, scratch, sizes, .. } = pass;
    let backend = &mut **backend;
    let (rows, width) = (sizes.rows, sizes.width);
    let shape = sizes.linear(width, sizes.vocab);
    let dnormed = &mut scratch.normed_gradient;
    let (w, dlogits) = (&mut params[head.head], &scratch.logits);
    linear_backward(backend, dnormed, w, dlogits, &scratch.normed, shape, Write::Set)?;
    let norm = &mut params[head.norm];
    let (dx, dgain) = (&mut scratch.gradient, &mut norm.gradient);
    let (x, rstd) = (&scratch.stream, &scratch.head_rstd);
    backend.rmsnorm_backward(dx, dgain, dnormed, x, &norm.weight, rstd, rows, width, Write::Set)
}
