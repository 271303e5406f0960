//! A newtype for every id and count that crosses a border.

use std::fmt;

/// Identity of a microbatch. Together with the run seed it decides which tokens the microbatch holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicrobatchId(pub u64);

/// Position of a stage in the pipeline, 0-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StageIndex(pub u16);

/// Identity of a peer: its ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

/// One start of a peer's process; a restart under the same key is a new incarnation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u64);

/// Which sending of a microbatch this is, counted from 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u32);

/// Number of optimizer steps a shard has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightVersion(pub u64);

impl MicrobatchId {
    /// The bit that tells ids of held-out text from ids of training text: evaluations use the upper half of the
    /// id space, so the two never collide.
    pub const EVALUATION_BIT: u64 = 1 << 63;

    /// The id of held-out microbatch number `index`, counted from 0.
    #[must_use]
    pub fn evaluation(index: u64) -> Self {
        Self(index | Self::EVALUATION_BIT)
    }

    /// Whether this id belongs to held-out text.
    #[must_use]
    pub fn is_evaluation(self) -> bool {
        self.0 & Self::EVALUATION_BIT != 0
    }
}

impl fmt::Display for MicrobatchId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "microbatch {}", self.0)
    }
}

impl fmt::Display for StageIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "stage {}", self.0)
    }
}

/// The whole key in hexadecimal.
impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// The first four bytes of the key: enough to tell peers of one swarm apart in a log.
impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}
