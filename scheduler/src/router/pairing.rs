//! The senders and replicas of two neighbouring stages that work together.

use crate::PeerId;
use crate::rng::spread;

/// Replicas that a sender works with on average, or all of a smaller stage.
pub const REPLICAS_OF_A_SENDER: usize = 96;

/// Senders that a replica works with on average at least, or all if there are fewer: enough that each replica of a wide
/// stage is fed although its senders are few.
pub const SENDERS_OF_A_REPLICA: usize = 24;

/// The size of a stage counts with so many leading bits.
const SIZE_BITS: u32 = 6;

/// The pairs of a sender and a replica of the next stage that may hand on microbatches and exchange heartbeats.
///
/// Each pair is drawn by a hash of both keys, with a probability that follows from the sizes of the two stages. So both
/// peers of a pair know of it without a message, a peer that comes or goes changes few other pairs, and the cost of a peer
/// does not grow with its stage. A size is rounded by a few hundredths: the probability rarely changes, and peers whose
/// tables differ a little agree about it. A peer that chooses its key can choose its pairs, but gains only more of them by
/// that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pairing {
    /// A pair is drawn if its hash is not above this.
    reach: u64,
}

impl Default for Pairing {
    /// The pairing that draws all.
    fn default() -> Self {
        Self { reach: u64::MAX }
    }
}

impl Pairing {
    /// The pairs of this many senders and replicas.
    #[must_use]
    pub fn new(senders: usize, replicas: usize) -> Self {
        let reach = part(REPLICAS_OF_A_SENDER, replicas).max(part(SENDERS_OF_A_REPLICA, senders));
        Self { reach }
    }

    /// Whether `sender` may choose `replica`.
    #[must_use]
    pub fn pairs(&self, sender: PeerId, replica: PeerId) -> bool {
        self.draws_all() || spread(spread(0, sender), replica) <= self.reach
    }

    /// Whether every sender is paired with every replica.
    #[must_use]
    pub fn draws_all(&self) -> bool {
        self.reach == u64::MAX
    }

    /// A pairing that draws every pair of this one, and about as many besides.
    #[must_use]
    pub fn wider(&self) -> Self {
        Self { reach: self.reach.saturating_mul(2) }
    }

    /// Whether it draws every pair of `other`, and about four times as many at most.
    #[must_use]
    pub fn is_just_wider_than(&self, other: Self) -> bool {
        (self.reach / 4..=self.reach).contains(&other.reach)
    }

    /// The number of `peers` of one stage that a peer of the other stage is paired with on average; at least 1.
    #[must_use]
    pub fn expected(&self, peers: usize) -> usize {
        let all = u128::try_from(peers).unwrap_or(u128::MAX);
        let drawn = all.saturating_mul(u128::from(self.reach)).div_ceil(u128::from(u64::MAX));
        usize::try_from(drawn).unwrap_or(peers).max(1)
    }
}

/// The reach of a hash that draws about `some` of this many; all if there are no more.
fn part(some: usize, count: usize) -> u64 {
    let rounding = usize::BITS.saturating_sub(count.leading_zeros() + SIZE_BITS);
    let rounded = (count >> rounding << rounding).max(1) as u128;
    let reach = (some as u128 * (u128::from(u64::MAX) + 1)) / rounded;
    u64::try_from(reach).unwrap_or(u64::MAX)
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
        assert_eq!(counts(96, 96), [vec![96; 96], vec![96; 96]]);
        assert_eq!(counts(0, 0), [Vec::<usize>::new(), Vec::new()]);
    }

    #[test]
    fn in_large_stages_each_peer_has_about_a_hundred_partners() {
        let all = counts(1_250, 1_250);
        assert!(all.iter().flatten().all(|&count| (55..140).contains(&count)), "{all:?}");
    }

    #[test]
    fn a_few_senders_reach_each_replica_of_any_stage() {
        assert_eq!(counts(1, 5_000), [vec![5_000], vec![1; 5_000]], "one feeder");
        let [_, of_replicas] = counts(100, 5_000);
        assert!(of_replicas.iter().all(|&senders| senders >= 8), "{of_replicas:?}");
    }

    #[test]
    fn a_peer_that_leaves_changes_hardly_any_other_pair() {
        for size in [97, 128, 129, 500, 513, 1_000, 1_251, 5_000] {
            let (before, after) = (Pairing::new(size, size), Pairing::new(size, size - 1));
            let pairs = |pairing: Pairing| (0..size).filter(|&r| pairing.pairs(key(30_000), key(r))).count();
            let more = pairs(after) - pairs(before);
            assert!(more <= 9, "{size}: {more} more of {}", pairs(before));
        }
        assert_eq!((Pairing::new(1_000, 1_000).expected(1_000), Pairing::new(90, 90).expected(90)), (97, 90));
    }
}
