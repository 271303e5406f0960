//! Newtypes for ids and counts.

use std::cmp::Ordering;
use std::fmt;
use std::ops::Range;

use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

/// Identity of a microbatch. The run seed and this number determine its tokens.
///
/// The number has three parts: whether the text is held out, the block, and the index in the block. Each feeder injects
/// ids of a block of its own, so no two feeders draw the same text, and the order of a feeder's text depends on no other
/// feeder. The first feeder of a run has block 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MicrobatchId(pub u64);

/// Number of a block of [`Block::IDS`] ids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Block(pub u32);

/// Position of a stage in the pipeline, 0-based.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct StageIndex(pub u16);

/// Identity of a peer: its ed25519 public key.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct PeerId(pub [u8; 32]);

/// Number of a start of a peer's process; a restart under the same key has a higher number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Incarnation(pub u64);

/// A number that a process draws at random when it begins. Its later starts under one key, as after an expulsion, have the
/// same number; another process with the key has another.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessNumber(pub u64);

/// One start of one peer. A restarted peer is another instance, and everything that the former instance held is lost.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instance {
    /// The key of the peer.
    pub peer: PeerId,
    /// The start of its process.
    pub incarnation: Incarnation,
}

/// A place on the route of a microbatch: an instance and the stage that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hop {
    /// Position in the pipeline; `None` is the feeder, which comes before every stage.
    pub stage: Option<StageIndex>,
    /// The replica or feeder.
    pub instance: Instance,
}

/// Number of an attempt to hand a microbatch to the next stage, counted from 0 by the sender. A reply carries the
/// number of its attempt, so a late reply to an abandoned attempt is not mistaken for a reply to the retry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Attempt(pub u32);

/// Number of optimizer steps that a shard has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WeightVersion(pub u64);

impl MicrobatchId {
    /// The bit that tells ids of held-out text from ids of training text: evaluations use the upper half of the
    /// id space, so the ids never collide.
    pub const EVALUATION_BIT: u64 = 1 << 63;

    /// The id of held-out microbatch number `index`, counted from 0, as the feeder of `block` sends it. The text depends
    /// on the index alone.
    #[must_use]
    pub fn evaluation(block: Block, index: u64) -> Self {
        Self(Self::EVALUATION_BIT | block.first().0 | (index % Block::IDS))
    }

    /// The block that the id belongs to.
    #[must_use]
    pub fn block(self) -> Block {
        Block(u32::try_from((self.0 & !Self::EVALUATION_BIT) / Block::IDS).unwrap_or(u32::MAX))
    }

    /// Number of ids before this one in its block.
    #[must_use]
    pub fn index(self) -> u64 {
        self.0 % Block::IDS
    }

    /// Whether this id belongs to held-out text.
    #[must_use]
    pub fn is_evaluation(self) -> bool {
        self.0 & Self::EVALUATION_BIT != 0
    }
}

impl Block {
    /// Ids of a block: more than a run can use up.
    pub const IDS: u64 = 1 << 40;
    /// Number of blocks.
    pub const COUNT: u32 = 1 << 23;

    /// The first id of the block.
    #[must_use]
    pub fn first(self) -> MicrobatchId {
        MicrobatchId(u64::from(self.0 % Self::COUNT) * Self::IDS)
    }

    /// The ids of the block, as numbers.
    #[must_use]
    pub fn ids(self) -> Range<u64> {
        self.first().0..self.first().0 + Self::IDS
    }
}

/// The order of the bytes. Most keys differ in the first eight: lookups in large tables compare one number.
impl Ord for PeerId {
    fn cmp(&self, other: &Self) -> Ordering {
        self.prefix().cmp(&other.prefix()).then_with(|| self.0.cmp(&other.0))
    }
}

impl PartialOrd for PeerId {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl From<PeerId> for String {
    fn from(peer: PeerId) -> Self {
        HEXLOWER.encode(&peer.0)
    }
}

impl TryFrom<String> for PeerId {
    type Error = &'static str;

    fn try_from(digits: String) -> Result<Self, Self::Error> {
        let bytes = HEXLOWER.decode(digits.as_bytes()).ok().and_then(|bytes| bytes.try_into().ok());
        bytes.map(Self).ok_or("not the 64 hexadecimal digits of a key")
    }
}

impl PeerId {
    fn prefix(&self) -> u64 {
        self.0.first_chunk().map_or(0, |bytes| u64::from_be_bytes(*bytes))
    }
}

impl Instance {
    /// The start `incarnation` of `peer`.
    #[must_use]
    pub const fn new(peer: PeerId, incarnation: Incarnation) -> Self {
        Self { peer, incarnation }
    }
}

impl Hop {
    /// `instance` as the feeder of a route.
    #[must_use]
    pub const fn feeder(instance: Instance) -> Self {
        Self { stage: None, instance }
    }

    /// `instance` as a replica of `stage`.
    #[must_use]
    pub const fn replica(stage: StageIndex, instance: Instance) -> Self {
        Self { stage: Some(stage), instance }
    }

    /// The key of the instance.
    #[must_use]
    pub const fn peer(&self) -> PeerId {
        self.instance.peer
    }
}

/// The short form of the key, and the start: `01020304#7`.
impl fmt::Debug for Instance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}#{}", self.peer, self.incarnation.0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_in_the_order_of_their_bytes() {
        let keys = [0_usize, 7, 8, 31].map(|place| {
            let mut key = [1; 32];
            key[place] = 255;
            key
        });
        for (a, b) in keys.iter().flat_map(|a| keys.iter().map(move |b| (a, b))) {
            assert_eq!(PeerId(*a).cmp(&PeerId(*b)), a.cmp(b));
        }
    }

    #[test]
    fn an_id_is_its_block_and_its_index() {
        let id = MicrobatchId(Block(3).first().0 + 7);
        assert_eq!((id.block(), id.index(), id.is_evaluation()), (Block(3), 7, false));
        let held_out = MicrobatchId::evaluation(Block(3), 7);
        assert_eq!((held_out.block(), held_out.index(), held_out.is_evaluation()), (Block(3), 7, true));
        assert_ne!(held_out, MicrobatchId::evaluation(Block(4), 7));
        let last = Block(Block::COUNT - 1);
        assert_eq!(last.ids().end, MicrobatchId::EVALUATION_BIT);
        assert_eq!(MicrobatchId(u64::MAX).block(), last);
    }
}
