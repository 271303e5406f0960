//! The start of the stream: the embedding, or the anchor behind a cut that nothing crosses.

use swarmline_kernels::{Backend, Result, Write};

use crate::model::layout::Layer;
use crate::model::pass::Pass;

/// `stream[N,w] = embed[ids]`, if the shard has the embedding; `w` is `d`, or `k` in constrained layers.
pub(super) fn forward<B: Backend>(pass: &mut Pass<'_, B>, ids: &B::Ids) -> Result<()> {
    let Some(embed) = pass.layout.embed else { return Ok(()) };
    let table = &pass.params[embed.table].weight;
    pass.backend.embedding(&mut pass.scratch.stream, ids, table, embed.width, Write::Set)
}

/// `dembed[ids] += dstream[N,w]`, if the shard has the embedding.
pub(super) fn backward<B: Backend>(pass: &mut Pass<'_, B>, ids: &B::Ids) -> Result<()> {
    let Some(embed) = pass.layout.embed else { return Ok(()) };
    let table = &mut pass.params[embed.table].gradient;
    pass.backend.embedding_backward(table, &pass.scratch.gradient, ids, embed.width)
}

/// `stream[N,d] = anchor[ids]`
pub(super) fn restart<B: Backend>(pass: &mut Pass<'_, B>, layer: &Layer, ids: &B::Ids) -> Result<()> {
    let Some(anchor) = layer.anchor else { unreachable!("a layer that restarts has an anchor") };
    let table = &pass.params[anchor].weight;
    pass.backend.embedding(&mut pass.scratch.stream, ids, table, pass.sizes.model.hidden_size, Write::Set)
}

/// `danchor[ids] += dstream[N,d]`
pub(super) fn restart_backward<B: Backend>(
    pass: &mut Pass<'_, B>,
    layer: &Layer,
    ids: &B::Ids,
) -> Result<()> {
    let Some(anchor) = layer.anchor else { unreachable!("a layer that restarts has an anchor") };
    let table = &mut pass.params[anchor].gradient;
    pass.backend.embedding_backward(table, &pass.scratch.gradient, ids, pass.sizes.model.hidden_size)
}
