//! The transformer, cut into shards of layers.
//!
//! LLaMA: pre-norm RMSNorm, rotary positions, grouped-query causal attention, SwiGLU, final RMSNorm, untied
//! head. Forward and backward are written by hand, side by side, without an autograd tape; the device is a
//! [`Backend`]. A [`Shard`] holds any range of layers: the embedding comes with layer 0, the head with the last layer.
//!
//! Names of parameters are global (`layers.7.attention.wq`) and all matrices are `[out, in]`, row-major.
//!
//! [`Backend`]: swarmline_kernels::Backend

mod block;
mod embed;
mod head;
mod init;
mod layers;
mod layout;
mod log;
mod params;
mod pass;
mod shard;
mod sizes;
mod snapshot;
mod stash;

pub use log::ParameterLog;
pub use params::{Parameter, Params};
pub(crate) use sizes::Sizes;

pub use shard::{Backward, LossAndGradient, Shard, ShardError, Upstream};
pub use snapshot::{Snapshot, SnapshotError, SnapshotTensor};

#[cfg(test)]
pub(crate) mod tests;
