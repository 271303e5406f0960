//! The members of a round, and the owner of each part.

use std::collections::BTreeSet;

use crate::{Attempt, Instance};

/// Members of a group at most; replicas after them by peer id do not average. Bounds the memory and traffic of a round.
pub const MEMBERS_MAX: usize = 64;

/// Owners of a part within one round at most, one after the other. More silent members in a row mean a broken network,
/// and the next round follows soon.
pub const ATTEMPTS_MAX: u32 = 3;

/// Number of an averaging round, counted from 0 over the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub u64);

impl Round {
    /// The fragment, of `fragments` (at least 1), that this round averages.
    #[must_use]
    pub fn fragment(self, fragments: u32) -> FragmentIndex {
        FragmentIndex(u32::try_from(self.0 % u64::from(fragments.max(1))).unwrap_or(0))
    }
}

/// One of the disjoint fragments that all numbers of a stage are divided into (Streaming DiLoCo, arXiv 2501.18512).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FragmentIndex(pub u32);

/// A stretch of a fragment; one member reduces it at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartIndex(pub u32);

/// Identity of a group: one round with one list of members. Replicas whose lists differ are in different groups, and a
/// message of one group means nothing in another.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GroupId {
    /// The round.
    pub round: Round,
    /// Digest of the members and of the number of parts.
    pub members: u64,
}

/// The members of a round, as this replica saw them when it began. The list stays as it is until the round ends; a
/// member that is lost meanwhile is marked.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    members: Vec<Instance>,
    me: usize,
    parts: u32,
    absent: BTreeSet<usize>,
}

impl Group {
    /// A group of sorted `members`, in which `me` is the index of this replica. The fragment is cut into at least
    /// `parts_min` parts, as many for each member.
    pub(super) fn new(round: Round, members: Vec<Instance>, me: usize, parts_min: u32) -> Self {
        let each = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
        let parts = parts_min.max(1).div_ceil(each).saturating_mul(each);
        let id = GroupId { round, members: digest(&members, parts) };
        Self { id, members, me, parts, absent: BTreeSet::new() }
    }

    pub(super) fn parts(&self) -> u32 {
        self.parts
    }

    pub(super) fn me(&self) -> usize {
        self.me
    }

    pub(super) fn len(&self) -> usize {
        self.members.len()
    }

    pub(super) fn instance(&self, member: usize) -> Option<Instance> {
        self.members.get(member).copied()
    }

    pub(super) fn position(&self, instance: Instance) -> Option<usize> {
        self.members.binary_search(&instance).ok()
    }

    /// The owner of `part` in this attempt.
    pub(super) fn owner(&self, part: PartIndex, attempt: Attempt) -> usize {
        (part.0 as usize).saturating_add(attempt.0 as usize) % self.members.len().max(1)
    }

    /// The first attempt from `attempt` on whose owner is not known to be gone.
    pub(super) fn attempt_from(&self, part: PartIndex, attempt: Attempt) -> Option<Attempt> {
        let tried = (attempt.0..self.attempts()).map(Attempt);
        tried.into_iter().find(|&attempt| self.is_present(self.owner(part, attempt)))
    }

    /// Number of attempts; each has an owner of its own.
    pub(super) fn attempts(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX).min(ATTEMPTS_MAX)
    }

    /// Members of a majority. Any two majorities share a member, so a later majority knows every mean chosen earlier.
    pub(super) fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Whether enough members are left to choose a mean.
    pub(super) fn can_choose(&self) -> bool {
        self.members.len() - self.absent.len() >= self.majority()
    }

    pub(super) fn is_present(&self, member: usize) -> bool {
        !self.absent.contains(&member)
    }

    /// The other members that are not known to be gone.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|&member| member != self.me && self.is_present(member))
    }

    /// Marks the members that `is_gone` picks. Returns whether one of them was not marked before.
    pub(super) fn mark_absent(&mut self, is_gone: impl Fn(&Instance) -> bool) -> bool {
        let before = self.absent.len();
        let gone = self.members.iter().enumerate().filter(|(_, member)| is_gone(member));
        self.absent.extend(gone.map(|(index, _)| index).filter(|&index| index != self.me));
        self.absent.len() > before
    }
}

/// FNV-1a, 64 bit: tells the lists of honest members apart, and needs no more.
fn digest(members: &[Instance], parts: u32) -> u64 {
    let bytes = members.iter().flat_map(|member| {
        member.peer.0.iter().copied().chain(member.incarnation.0.to_be_bytes()).collect::<Vec<u8>>()
    });
    bytes.chain(parts.to_be_bytes()).fold(0xCBF2_9CE4_8422_2325, |hash: u64, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01B3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, PeerId};

    fn members(count: u8) -> Vec<Instance> {
        let member = |index| Instance::new(PeerId([index; 32]), Incarnation(1));
        (0..count).map(member).collect()
    }

    #[test]
    fn every_member_owns_as_many_parts_and_none_is_too_large() {
        for (count, parts_min, parts) in [(2, 1, 2), (3, 4, 6), (3, 6, 6), (5, 0, 5)] {
            let group = Group::new(Round(1), members(count), 0, parts_min);
            assert_eq!(group.parts(), parts);
        }
    }

    #[test]
    fn a_part_goes_to_the_next_member_that_is_there() {
        let mut group = Group::new(Round(1), members(4), 0, 1);
        let part = PartIndex(3);
        assert_eq!(group.owner(part, Attempt(0)), 3);
        assert_eq!(group.owner(part, Attempt(1)), 0);
        assert!(group.mark_absent(|member| member.peer == PeerId([3; 32])));
        assert_eq!(group.attempt_from(part, Attempt(0)), Some(Attempt(1)));
        assert_eq!(group.attempt_from(part, Attempt(2)), Some(Attempt(2)));
        assert_eq!(group.attempt_from(part, Attempt(3)), None);
        assert!(!group.mark_absent(|member| member.peer == PeerId([3; 32])));
    }

    #[test]
    fn two_of_two_and_two_of_three_are_a_majority() {
        let mut pair = Group::new(Round(1), members(2), 0, 1);
        assert!(pair.can_choose());
        pair.mark_absent(|member| member.peer == PeerId([1; 32]));
        assert!(!pair.can_choose());
        let mut three = Group::new(Round(1), members(3), 0, 1);
        three.mark_absent(|member| member.peer == PeerId([1; 32]));
        assert!(three.can_choose());
    }

    #[test]
    fn the_digest_tells_starts_and_cuts_apart() {
        let mut later = members(3);
        later[1].incarnation = Incarnation(2);
        let id = |members, parts_min| Group::new(Round(1), members, 0, parts_min).id;
        assert_eq!(id(members(3), 1), id(members(3), 3));
        assert_ne!(id(members(3), 1), id(members(3), 4));
        assert_ne!(id(members(3), 1), id(later, 1));
    }

    #[test]
    fn rounds_take_the_fragments_in_turn() {
        assert_eq!(Round(45).fragment(20), FragmentIndex(5));
    }
}
