//! The senders and replicas of two neighbouring stages that work together.

use crate::{PeerId, Rng};

/// Replicas that a sender works with: between this number and its double, or all of a smaller stage.
pub const REPLICAS_OF_A_SENDER: usize = 64;

/// Senders that a replica works with at least, or all if there are fewer: enough that each replica of a wide stage is
/// fed although its senders are few.
pub const SENDERS_OF_A_REPLICA: usize = 16;

/// The pairs of a sender and a replica of the next stage that may hand on microbatches and exchange heartbeats.
///
/// Each pair is drawn by a hash of both keys, with a probability that follows from the sizes of the two stages. So both
/// peers of a pair know of it without a message, a peer that comes or goes changes no other pair, and the cost of a peer
/// does not grow with its stage. The probability is a power of two: it rarely changes, and peers whose tables differ a
/// little agree about it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pairing {
    /// The binary logarithm of one in how many pairs is drawn.
    halvings: u32,
}

impl Pairing {
    /// The pairs of this many senders and replicas.
    #[must_use]
    pub fn new(senders: usize, replicas: usize) -> Self {
        // Both limits are half of the largest stage that is paired in full.
        let beyond = |count: usize, limit: usize| logarithm(count).saturating_sub(logarithm(2 * limit));
        Self { halvings: beyond(replicas, REPLICAS_OF_A_SENDER).min(beyond(senders, SENDERS_OF_A_REPLICA)) }
    }

    /// Whether `sender` may choose `replica`.
    #[must_use]
    pub fn pairs(&self, sender: PeerId, replica: PeerId) -> bool {
        self.halvings == 0 || hash(hash(0, sender), replica).leading_zeros() >= self.halvings
    }

    /// Whether every sender is paired with every replica.
    #[must_use]
    pub fn draws_all(&self) -> bool {
        self.halvings == 0
    }

    /// The pairing of a stage of half the size. It draws every pair of this one, and about as many besides.
    #[must_use]
    pub fn wider(&self) -> Self {
        Self { halvings: self.halvings.saturating_sub(1) }
    }

    /// Whether it draws every pair of `other` and of the pairing that is wider than `other`, and four times as many pairs as
    /// `other` at most.
    #[must_use]
    pub fn is_just_wider_than(&self, other: Self) -> bool {
        let least = other.halvings.saturating_sub(2);
        (least..=other.wider().halvings).contains(&self.halvings)
    }

    /// The number of `peers` of one stage that a peer of the other stage is paired with on average; at least 1.
    #[must_use]
    pub fn expected(&self, peers: usize) -> usize {
        peers.div_ceil(1 << self.halvings).max(1)
    }
}

/// The binary logarithm, rounded up.
fn logarithm(count: usize) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// Spreads keys evenly. A peer that chooses its key can choose its pairs, but gains only more of them by that.
fn hash(seed: u64, peer: PeerId) -> u64 {
    let (words, _) = peer.0.as_chunks::<8>();
    words.iter().fold(seed, |state, word| Rng::new(state ^ u64::from_le_bytes(*word)).next_u64())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::router::fixtures::hop;

    fn key(index: usize) -> PeerId {
        hop(u16::try_from(index).unwrap()).peer()
    }

    /// How many replicas each sender is paired with, and how many senders each replica.
    fn counts(senders: usize, replicas: usize) -> [Vec<usize>; 2] {
        let pairing = Pairing::new(senders, replicas);
        let sender = |index: usize| key(30_000 + index);
        let of_sender = |s| (0..replicas).filter(|&r| pairing.pairs(sender(s), key(r))).count();
        let of_replica = |r| (0..senders).filter(|&s| pairing.pairs(sender(s), key(r))).count();
        [(0..senders).map(of_sender).collect(), (0..replicas).map(of_replica).collect()]
    }

    #[test]
    fn small_stages_are_paired_in_full() {
        assert_eq!(counts(128, 128), [vec![128; 128], vec![128; 128]]);
        assert_eq!(counts(0, 0), [Vec::<usize>::new(), Vec::new()]);
    }

    #[test]
    fn in_large_stages_each_peer_has_about_a_hundred_partners() {
        let all = counts(1_250, 1_250);
        assert!(all.iter().flatten().all(|&count| (40..140).contains(&count)), "{all:?}");
    }

    #[test]
    fn a_few_senders_reach_each_replica_of_any_stage() {
        assert_eq!(counts(1, 5_000), [vec![5_000], vec![1; 5_000]], "one feeder");
        let [_, of_replicas] = counts(100, 5_000);
        assert!(of_replicas.iter().all(|&senders| senders >= 8), "{of_replicas:?}");
    }

    #[test]
    fn a_peer_that_leaves_changes_no_other_pair() {
        let (before, after) = (Pairing::new(1_000, 1_000), Pairing::new(1_000, 999));
        assert_eq!(before, after);
        assert_eq!(before.expected(1_000), 125);
        assert_ne!(before, Pairing::new(1_000, 100), "a stage that shrinks is paired in full");
    }
}
