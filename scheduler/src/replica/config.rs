//! Settings of a replica.

use crate::WeightsPolicy;
use crate::averaging::FragmentSize;
use crate::stage;
use crate::transfer::{ChunkHash, ChunkSketch, Limits, SketchSecret, SketchSeed};

/// Settings of a replica. `P` is the payload that the digests are taken of.
#[derive(Clone, Debug)]
pub struct Config<P> {
    /// Identity of the replica, its stage, and its limits.
    pub stage: stage::Config,
    /// Contributions of one optimizer step, at least 1.
    pub gradient_accumulation_steps: u64,
    /// Fragments that the numbers of a stage are divided into; 0 if the run does not average.
    pub fragments: u32,
    /// The size of a fragment.
    pub fragment_size: FragmentSize,
    /// The state that the replica begins with.
    pub begin: Begin,
    /// The keepers that get the state of the stage.
    pub weights: WeightsPolicy,
    /// Length in bytes and digest of the payload of a chunk or of a mean.
    pub digest: fn(&P) -> (u64, ChunkHash),
    /// Projections of the payload of a chunk, by the number of the chunk in its state.
    pub sketch: fn(&P, u32, SketchSeed) -> ChunkSketch,
    /// The secret that a joiner compares donors with. No other process may know it.
    pub secret: SketchSecret,
}

/// The state that a replica begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begin {
    /// The state of a replica that serves the stage, within these limits; the initial weights of the run if there is no
    /// such replica.
    FromDonor(Limits),
    /// Likewise, but the executor has the state that the process had when it was expelled, and keeps it if there is no
    /// such replica. No contribution can enter twice: grants are never given again.
    Kept(Limits),
    /// The state that the executor has already.
    Given,
}

impl Begin {
    /// Whether the executor has a state of the run, without a donor.
    pub(super) fn has_state(self) -> bool {
        match self {
            Self::Kept(_) | Self::Given => true,
            Self::FromDonor(_) => false,
        }
    }
}
