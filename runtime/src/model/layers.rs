//! The loop over the layers of a shard, forward and backward.

use swarmline_kernels::{Backend, Result, Write};

use crate::config::Entry;
use crate::model::layout::Layer;
use crate::model::pass::Pass;
use crate::model::stash::Activations;
use crate::model::{block, embed};

/// Forward pass of the stream through all layers; fills `kept`.
pub(super) fn forward<B: Backend>(
    pass: &mut Pass<'_, B>,
    ids: &B::Ids,
    kept: &mut Activations<B>,
) -> Result<()> {
    anchor(pass, ids)?;
    for (layer, kept) in pass.layout.layers.iter().zip(&mut kept.layers) {
        enter(pass, layer, ids)?;
        block::forward(pass, layer, kept)?;
    }
    Ok(())
}

/// Backward pass of the gradient through all layers; adds to the parameters' gradients.
pub(super) fn backward<B: Backend>(
    pass: &mut Pass<'_, B>,
    ids: &B::Ids,
    kept: &Activations<B>,
) -> Result<()> {
    anchor(pass, ids)?;
    for (layer, kept) in pass.layout.layers.iter().zip(&kept.layers).rev() {
        block::backward(pass, layer, kept)?;
        match layer.entry {
            Entry::Continue => {}
            Entry::Lift => lift_backward(pass)?,
            // The loss does not depend on the layers before.
            Entry::Restart => return embed::restart_backward(pass, layer, ids),
        }
    }
    embed::backward(pass, ids)
}

fn enter<B: Backend>(pass: &mut Pass<'_, B>, layer: &Layer, ids: &B::Ids) -> Result<()> {
    match layer.entry {
        Entry::Continue => Ok(()),
        Entry::Lift => lift(pass),
        Entry::Restart => embed::restart(pass, layer, ids),
    }
}

/// `scratch.anchor = E0[ids]`, if a layer reads it.
fn anchor<B: Backend>(pass: &mut Pass<'_, B>, ids: &B::Ids) -> Result<()> {
    match pass.space {
        Some(space) if pass.layout.layers_need_anchor() => {
            space.anchor(pass.backend, &mut pass.scratch.anchor, ids)
        }
        Some(_) | None => Ok(()),
    }
}

fn lift<B: Backend>(pass: &mut Pass<'_, B>) -> Result<()> {
    let Some(space) = pass.space else { unreachable!("a layer that lifts comes with a subspace") };
    let scratch = &mut *pass.scratch;
    space.lift(pass.backend, &mut scratch.dense, &scratch.stream, &scratch.anchor)?;
    std::mem::swap(&mut scratch.stream, &mut scratch.dense);
    Ok(())
}

fn lift_backward<B: Backend>(pass: &mut Pass<'_, B>) -> Result<()> {
    let Some(space) = pass.space else { unreachable!("a layer that lifts comes with a subspace") };
    let scratch = &mut *pass.scratch;
    space.lift_backward(pass.backend, &mut scratch.dense_gradient, &scratch.gradient, Write::Set)?;
    std::mem::swap(&mut scratch.gradient, &mut scratch.dense_gradient);
    Ok(())
}
