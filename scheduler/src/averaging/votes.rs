//! The votes for the means of a part.
//!
//! A member accepts one mean of a part and no other for the rest of the round, and tells every other member which. So
//! each member counts for itself, and an owner that proposes two means is believed by none: a mean needs a majority,
//! and two majorities share a member that would have accepted both.

use std::collections::BTreeMap;

use crate::transfer::ChunkHash;

use super::group::MemberSet;

/// A mean, as its acceptors vouch for it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct MeanId {
    /// The members whose contributions are in the mean.
    pub contributors: MemberSet,
    /// Digest of its numbers.
    pub digest: ChunkHash,
}

/// The mean that each member has accepted.
#[derive(Clone, Debug, Default)]
pub(super) struct Votes {
    by_member: BTreeMap<usize, MeanId>,
}

impl Votes {
    /// Notes the vote of a member; only its first counts. Returns whether this is the first.
    pub(super) fn add(&mut self, member: usize, mean: MeanId) -> bool {
        let is_first = !self.by_member.contains_key(&member);
        self.by_member.entry(member).or_insert(mean);
        is_first
    }

    pub(super) fn has(&self, member: usize) -> bool {
        self.by_member.contains_key(&member)
    }

    /// Number of members that have accepted the mean.
    pub(super) fn count(&self, mean: MeanId) -> usize {
        self.by_member.values().filter(|accepted| **accepted == mean).count()
    }

    /// Whether a member has accepted another mean.
    pub(super) fn are_divided(&self, mean: MeanId) -> bool {
        self.count(mean) < self.by_member.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_votes_once() {
        let mean = |byte| MeanId { digest: [byte; 32], ..MeanId::default() };
        let mut votes = Votes::default();
        assert!(votes.add(0, mean(1)) && votes.add(1, mean(1)));
        assert!(!votes.add(0, mean(2)), "its second vote");
        assert_eq!((votes.count(mean(1)), votes.count(mean(2))), (2, 0));
        assert!(!votes.are_divided(mean(1)));
        votes.add(2, mean(2));
        assert!(votes.are_divided(mean(1)));
    }
}
