//! The selection of replicas of a large stage that a sender chooses among.

use crate::{Hop, PeerId, Rng};

/// Replicas of one stage that a sender chooses among, at most: the cost of a decision does not grow with the swarm.
pub const CANDIDATES_MAX: usize = 64;

/// A sender's own selection of the replicas of a stage.
///
/// Every replica has a rank, a hash of its key and the sender's; the lowest [`CANDIDATES_MAX`] are selected. A replica
/// that comes or goes changes at most one place, and senders select differently, so that every replica of a large
/// stage is in the selection of some sender. (Rendezvous hashing: Thaler and Ravishankar, 1998.)
#[derive(Clone, Copy, Debug, Default)]
pub struct Sample {
    seed: u64,
}

impl Sample {
    /// The selection of `sender`.
    #[must_use]
    pub fn new(sender: PeerId) -> Self {
        Self { seed: hash(0, sender) }
    }

    /// The selected members of `replicas`, by peer id.
    #[must_use]
    pub fn select(&self, mut replicas: Vec<Hop>) -> Vec<Hop> {
        if replicas.len() > CANDIDATES_MAX {
            replicas.sort_by_cached_key(|hop| (hash(self.seed, hop.peer()), hop.peer()));
            replicas.truncate(CANDIDATES_MAX);
        }
        replicas.sort_by_key(Hop::peer);
        replicas
    }
}

/// Spreads keys evenly. A peer that chooses its key can choose its rank, but gains only more selections by that.
fn hash(seed: u64, peer: PeerId) -> u64 {
    let (words, _) = peer.0.as_chunks::<8>();
    words.iter().fold(seed, |state, word| Rng::new(state ^ u64::from_le_bytes(*word)).next_u64())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::router::fixtures::hop;

    fn selected(sender: u16, replicas: std::ops::Range<u16>) -> BTreeSet<Hop> {
        let sample = Sample::new(hop(sender).peer()).select(replicas.map(hop).collect());
        assert!(sample.is_sorted_by_key(Hop::peer));
        sample.into_iter().collect()
    }

    #[test]
    fn few_are_all_selected_and_many_are_not() {
        assert_eq!(selected(7, 0..64).len(), 64);
        assert_eq!(selected(7, 0..1_000).len(), CANDIDATES_MAX);
        assert!(selected(7, 0..0).is_empty());
    }

    #[test]
    fn a_replica_that_leaves_changes_one_place() {
        let before = selected(7, 0..500);
        let after = selected(7, 0..499);
        assert!(before.difference(&after).count() <= 1);
        let gone = *before.first().unwrap();
        let rest: Vec<_> = (0..500).map(hop).filter(|hop| *hop != gone).collect();
        let rest: BTreeSet<_> = Sample::new(hop(7).peer()).select(rest).into_iter().collect();
        assert_eq!(before.difference(&rest).collect::<Vec<_>>(), [&gone]);
        assert_eq!(rest.len(), CANDIDATES_MAX);
    }

    #[test]
    fn senders_select_differently_and_leave_no_replica_out() {
        let all: BTreeSet<_> = (1_000..1_050).flat_map(|sender| selected(sender, 0..300)).collect();
        assert_eq!(all.len(), 300);
        assert_ne!(selected(1_000, 0..300), selected(1_001, 0..300));
    }
}
