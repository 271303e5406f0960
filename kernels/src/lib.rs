//! The arithmetic of swarmline.
//!
//! The trait [`Backend`] has one implementation per device. The CPU backend ([`Cpu`]) is the specification: every other
//! backend computes the same function. Operations take outputs, then inputs, then sizes; the caller owns all buffers;
//! the doc of each operation says the shapes and whether it writes (`=`) or accumulates (`+=`). There is no autograd
//! tape: backward passes are written by hand beside the forward. [`device`] chooses a backend for this machine.
//!
//! Shapes use one alphabet: `N` rows (tokens of a microbatch), `d` width of the residual stream, `k` width of
//! a code, `f` width of the feed-forward layer, `h`/`g` query/key-value heads, `e` head width, `T` tokens of a
//! sequence, `B` sequences, `V` vocabulary. All matrices are row-major.
//!
//! The crate does not know models, peers or tokio.

mod backend;
mod cpu;
#[cfg(feature = "cuda")]
mod cuda;
pub mod device;
mod error;
mod packing;
pub mod peak;
mod profile;
pub mod random;
mod report;

pub use backend::{AdamStep, AttentionShape, Backend, HeadGradients, LinearShape, Write};
pub use cpu::{Cpu, CpuIds, CpuTensor};
#[cfg(feature = "cuda")]
pub use cuda::{Cuda, CudaIds, CudaTensor};
pub use error::{Error, Result};
pub use packing::{PackedFormat, PackingError, RoundingKey};
pub use profile::{NoSuchProfile, Profile};
