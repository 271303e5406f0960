//! Who takes part in a round, and whose turn it is with which part.

use std::collections::BTreeSet;

use crate::{Attempt, Incarnation, PeerId};

/// Members of a gathering; who comes after them by peer id averages with nobody. Bounds what one round can hold and
/// send, and is far above the replicas a stage has use for.
pub const MEMBERS_MAX: usize = 64;

/// Owners a part may have within one round, one after the other. More than that many silent members in a row are a
/// broken network, and the next round is never far.
pub const ATTEMPTS_MAX: u32 = 3;

/// One start of a replica, as averaging knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Participant {
    /// Its identity.
    pub peer: PeerId,
    /// Which start of it.
    pub incarnation: Incarnation,
}

/// Number of an averaging round, counted from 0 over the whole run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Round(pub u64);

impl Round {
    /// The index set whose turn it is among `sets` (at least 1).
    #[must_use]
    pub fn set(self, sets: u32) -> SetIndex {
        SetIndex(u32::try_from(self.0 % u64::from(sets.max(1))).unwrap_or(0))
    }
}

/// One of the disjoint sets that all numbers of a stage are divided into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetIndex(pub u32);

/// A stretch of a set: what one member reduces at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartIndex(pub u32);

/// Which gathering a message is about: one round, held by one list of members. Replicas whose lists differ hold
/// different gatherings, and what is said in one is nothing to the other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatheringId {
    /// Which round.
    pub round: Round,
    /// Digest of the members and of the number of parts.
    pub members: u64,
}

/// The members of a round, as this replica saw them when it began. The list stays as it is until the round ends;
/// who is found to be gone meanwhile is marked.
#[derive(Clone, Debug)]
pub(super) struct Gathering {
    pub(super) id: GatheringId,
    members: Vec<Participant>,
    me: usize,
    parts: u32,
    absent: BTreeSet<usize>,
}

impl Gathering {
    /// `members` are in order and `me` is one of them; the set is cut into at least `parts_min` parts, as many for
    /// each member.
    pub(super) fn new(round: Round, members: Vec<Participant>, me: usize, parts_min: u32) -> Self {
        let each = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
        let parts = parts_min.max(1).div_ceil(each).saturating_mul(each);
        let id = GatheringId { round, members: digest(&members, parts) };
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

    pub(super) fn participant(&self, member: usize) -> Option<Participant> {
        self.members.get(member).copied()
    }

    pub(super) fn position(&self, participant: Participant) -> Option<usize> {
        self.members.binary_search(&participant).ok()
    }

    /// Who owns `part` after `attempt` owners before it.
    pub(super) fn owner(&self, part: PartIndex, attempt: Attempt) -> usize {
        (part.0 as usize).saturating_add(attempt.0 as usize) % self.members.len().max(1)
    }

    /// The first attempt from `attempt` on whose owner is not known to be gone.
    pub(super) fn attempt_from(&self, part: PartIndex, attempt: Attempt) -> Option<Attempt> {
        let tried = (attempt.0..self.attempts()).map(Attempt);
        tried.into_iter().find(|&attempt| self.is_present(self.owner(part, attempt)))
    }

    /// Attempts there are: each has an owner of its own.
    pub(super) fn attempts(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX).min(ATTEMPTS_MAX)
    }

    /// Any two majorities share a member: what one has settled, every later one knows.
    pub(super) fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Whether enough members are left to settle anything.
    pub(super) fn can_settle(&self) -> bool {
        self.members.len() - self.absent.len() >= self.majority()
    }

    pub(super) fn is_present(&self, member: usize) -> bool {
        !self.absent.contains(&member)
    }

    /// The other members that are not known to be gone.
    pub(super) fn others(&self) -> impl Iterator<Item = usize> {
        (0..self.members.len()).filter(|&member| member != self.me && self.is_present(member))
    }

    /// Marks members that `is_gone` picks; whether there were new ones among them.
    pub(super) fn mark_absent(&mut self, is_gone: impl Fn(&Participant) -> bool) -> bool {
        let before = self.absent.len();
        let gone = self.members.iter().enumerate().filter(|(_, member)| is_gone(member));
        self.absent.extend(gone.map(|(index, _)| index).filter(|&index| index != self.me));
        self.absent.len() > before
    }
}

/// FNV-1a, 64 bit: tells lists of honest members apart, which is all it is for.
fn digest(members: &[Participant], parts: u32) -> u64 {
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

    fn members(count: u8) -> Vec<Participant> {
        let member = |index| Participant { peer: PeerId([index; 32]), incarnation: Incarnation(1) };
        (0..count).map(member).collect()
    }

    #[test]
    fn every_member_owns_as_many_parts_and_none_is_too_large() {
        for (count, parts_min, parts) in [(2, 1, 2), (3, 4, 6), (3, 6, 6), (5, 0, 5)] {
            let gathering = Gathering::new(Round(1), members(count), 0, parts_min);
            assert_eq!(gathering.parts(), parts);
        }
    }

    #[test]
    fn a_part_goes_to_the_next_member_who_is_there() {
        let mut gathering = Gathering::new(Round(1), members(4), 0, 1);
        let part = PartIndex(3);
        assert_eq!(gathering.owner(part, Attempt(0)), 3);
        assert_eq!(gathering.owner(part, Attempt(1)), 0);
        assert!(gathering.mark_absent(|member| member.peer == PeerId([3; 32])));
        assert_eq!(gathering.attempt_from(part, Attempt(0)), Some(Attempt(1)));
        assert_eq!(gathering.attempt_from(part, Attempt(2)), Some(Attempt(2)));
        assert_eq!(gathering.attempt_from(part, Attempt(3)), None);
        assert!(!gathering.mark_absent(|member| member.peer == PeerId([3; 32])));
    }

    #[test]
    fn two_of_two_and_two_of_three_are_a_majority() {
        let mut pair = Gathering::new(Round(1), members(2), 0, 1);
        assert!(pair.can_settle());
        pair.mark_absent(|member| member.peer == PeerId([1; 32]));
        assert!(!pair.can_settle());
        let mut three = Gathering::new(Round(1), members(3), 0, 1);
        three.mark_absent(|member| member.peer == PeerId([1; 32]));
        assert!(three.can_settle());
    }

    #[test]
    fn the_digest_tells_starts_and_cuts_apart() {
        let mut later = members(3);
        later[1].incarnation = Incarnation(2);
        let id = |members, parts_min| Gathering::new(Round(1), members, 0, parts_min).id;
        assert_eq!(id(members(3), 1), id(members(3), 3));
        assert_ne!(id(members(3), 1), id(members(3), 4));
        assert_ne!(id(members(3), 1), id(later, 1));
    }

    #[test]
    fn rounds_take_the_sets_in_turn() {
        assert_eq!(Round(45).set(20), SetIndex(5));
    }
}
