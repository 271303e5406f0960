//! The members of a round, and the owner of each part.

use std::collections::{BTreeMap, BTreeSet};

use super::adaptive_timeout::TIMEOUT_MAX;
use super::draw::GROUP_MAX;
use super::weights::{WEIGHT_MAX, Weights};
use crate::{Attempt, Duration, Instance, Time};

/// Owners of a part within one round at most, one after the other. More silent members in a row mean a broken network,
/// and the next round follows soon.
pub const ATTEMPTS_MAX: u32 = 3;

/// Parts that are on their way at once, by their size: enough that no link waits for another, few enough that a member
/// holds few contributions. A group of more than 4 has two for each member, so that not all send to the same owner.
const PARTS_IN_FLIGHT_MIN: usize = 8;
pub(super) const PARTS_IN_FLIGHT: usize = 16;
const PARTS_OF_A_MEMBER: usize = 2;

/// Parts that are on their way at once at most: those of the largest group.
pub const PARTS_IN_FLIGHT_MAX: usize = PARTS_OF_A_MEMBER * GROUP_MAX;

/// Bytes of the parts on their way at once, if there are more than the fewest.
const BYTES_IN_FLIGHT: u64 = 8 << 20;

/// The slowest link that is waited for without measurement, bytes a second: 10 Mbit/s.
const SLOW_LINK: u64 = 1_250_000;

/// How often later parts wait for a member again that was overdue in this round and is heard again.
const OVERDUE_MAX: u32 = 3;

/// A part waits for a member that goes on sending this many times as long as a slow link takes for all parts on their
/// way, and [`TIMEOUT_MAX`] on top: then the member is as good as silent.
const SENDING_MAX: u32 = 4;

/// The size of a fragment of a stage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentSize {
    /// Bytes of the largest fragment: weights and moments.
    pub bytes: u64,
    /// Parts that a fragment must at least be cut into so that each fits a frame. A round has as many or more: a
    /// multiple of the members.
    pub parts_min: u32,
}

/// Number of an averaging round, counted from 0 over the rounds of its stage.
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

/// Members of a group, by their position in its list: bit `i` stands for member `i`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberSet(pub u64);

impl MemberSet {
    /// The set of these positions; those from [`GROUP_MAX`] on are left out.
    pub(super) fn of(members: impl IntoIterator<Item = usize>) -> Self {
        let bits = members.into_iter().filter(|&member| member < GROUP_MAX).map(|member| 1 << member);
        Self(bits.fold(0, |set, bit: u64| set | bit))
    }

    pub(super) fn contains(self, member: usize) -> bool {
        member < GROUP_MAX && self.0 >> member & 1 == 1
    }
}

/// The members of a round, as this replica saw them when it began. The list stays as it is until the round ends; a
/// member that is lost meanwhile is marked.
#[derive(Clone, Debug)]
pub(super) struct Group {
    pub(super) id: GroupId,
    members: Vec<Instance>,
    me: usize,
    parts: u32,
    part_bytes: u64,
    /// The largest weight of each member.
    weights_max: Vec<u64>,
    absent: BTreeSet<usize>,
    /// Members whose copies are under way.
    copying: BTreeSet<usize>,
    /// Members that have said so or were heard: the news may come late, and each is believed once.
    announced: BTreeSet<usize>,
    /// The time at which the last of these copies became ready.
    copied_at: Time,
    /// The time until which copies are waited for.
    copies_due: Time,
    /// Members that a part went on without, and that were not heard since.
    overdue: BTreeSet<usize>,
    /// How often parts went on without each member.
    overdue_times: BTreeMap<usize, u32>,
    /// The time at which numbers of each member arrived last.
    heard_at: BTreeMap<usize, Time>,
}

impl Group {
    /// A group of sorted `members`, in which `me` is the index of this replica. Each member owns as many parts of the
    /// fragment as the others.
    pub(super) fn new(round: Round, members: Vec<Instance>, me: usize, size: FragmentSize) -> Self {
        let each = u32::try_from(members.len()).unwrap_or(u32::MAX).max(1);
        let parts = size.parts_min.max(1).div_ceil(each).saturating_mul(each);
        let id = GroupId { round, members: digest(&members, parts) };
        Self {
            id,
            members,
            me,
            parts,
            part_bytes: size.bytes.div_ceil(u64::from(parts)),
            weights_max: Vec::new(),
            absent: BTreeSet::new(),
            copying: BTreeSet::new(),
            announced: BTreeSet::new(),
            copied_at: Time::default(),
            copies_due: Time::default(),
            overdue: BTreeSet::new(),
            overdue_times: BTreeMap::new(),
            heard_at: BTreeMap::new(),
        }
    }

    pub(super) fn parts(&self) -> u32 {
        self.parts
    }

    /// From now on members weigh no more than the feeders have confirmed.
    pub(super) fn bound_weights(&mut self, weights: &Weights) {
        self.weights_max = self.members.iter().map(|member| weights.of(member.peer)).collect();
    }

    /// The weight of a member that says it has this weight.
    pub(super) fn weight(&self, member: usize, said: u64) -> u64 {
        said.min(self.weights_max.get(member).copied().unwrap_or(WEIGHT_MAX))
    }

    /// Parts that are on their way at once.
    pub(super) fn parts_in_flight(&self) -> usize {
        let by_size = usize::try_from(BYTES_IN_FLIGHT / self.part_bytes.max(1)).unwrap_or(usize::MAX);
        by_size.clamp(PARTS_IN_FLIGHT_MIN, PARTS_IN_FLIGHT).max(PARTS_OF_A_MEMBER * self.members.len())
    }

    /// The time that a slow link takes to send a part to all other members, and its mean.
    pub(super) fn transfer(&self) -> Duration {
        let others = self.members.len().saturating_sub(1) as u64;
        let bytes = self.part_bytes.saturating_mul(2 * others);
        Duration::from_millis(bytes.saturating_mul(1_000) / SLOW_LINK)
    }

    /// How long a part waits at most for a member whose numbers go on arriving.
    fn sending_max(&self) -> Duration {
        let parts_of_each = self.parts_in_flight().div_ceil(self.members.len().max(1));
        let parts_of_each = u32::try_from(parts_of_each).unwrap_or(u32::MAX);
        TIMEOUT_MAX + self.transfer() * parts_of_each * SENDING_MAX
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

    /// The first attempt from `attempt` on whose owner is not known to be gone, and not overdue for good.
    pub(super) fn attempt_from(&self, part: PartIndex, attempt: Attempt) -> Option<Attempt> {
        let mut tried = (attempt.0..self.attempts()).map(Attempt);
        let may_own = |owner| self.is_present(owner) && !self.is_overdue_for_good(owner);
        tried.find(|&attempt| may_own(self.owner(part, attempt)))
    }

    /// Number of attempts; each has an owner of its own.
    pub(super) fn attempts(&self) -> u32 {
        u32::try_from(self.members.len()).unwrap_or(u32::MAX).min(ATTEMPTS_MAX)
    }

    /// Members of a majority. Any two majorities share a member.
    pub(super) fn majority(&self) -> usize {
        self.members.len() / 2 + 1
    }

    /// Members of a quorum: any two share two members, so one that tells the truth even if one lies. Of two or three
    /// members it is all.
    pub(super) fn quorum(&self) -> usize {
        self.members.len().div_ceil(2) + 1
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

    // --- Members that are late ------------------------------------------------------------------------------

    /// This replica's copy is ready: the others have [`TIMEOUT_MAX`] more for theirs.
    pub(super) fn copied(&mut self, now: Time) {
        self.copies_due = now + TIMEOUT_MAX;
    }

    /// A member says that its copy is under way.
    pub(super) fn copy_begins(&mut self, member: usize) {
        if member != self.me && self.announced.insert(member) {
            self.copying.insert(member);
        }
    }

    /// Numbers of a member arrived that were not here before, so its copy is ready.
    pub(super) fn heard(&mut self, now: Time, member: usize) {
        if !self.is_overdue_for_good(member) {
            self.overdue.remove(&member);
        }
        self.heard_at.insert(member, now);
        self.announced.insert(member);
        if self.copying.remove(&member) {
            self.copied_at = now;
        }
    }

    /// A part goes on without a member: later parts of the round do not wait for it again, unless it is heard.
    pub(super) fn go_on_without(&mut self, member: usize) {
        if self.overdue.insert(member) {
            *self.overdue_times.entry(member).or_default() += 1;
        }
        self.copying.remove(&member);
    }

    pub(super) fn is_copying(&self, member: usize) -> bool {
        self.copying.contains(&member) && self.is_present(member)
    }

    /// Whether the votes of a member are waited for: it is neither late nor gone.
    pub(super) fn is_awaited(&self, member: usize) -> bool {
        self.is_present(member) && !self.copying.contains(&member) && !self.overdue.contains(&member)
    }

    pub(super) fn is_overdue(&self, member: usize) -> bool {
        self.overdue.contains(&member)
    }

    /// Whether the member was overdue so often that the rest of the round goes on without it.
    fn is_overdue_for_good(&self, member: usize) -> bool {
        self.overdue_times.get(&member).is_some_and(|&times| times >= OVERDUE_MAX)
    }

    /// The time from which the silence of a member counts for a part that waits for it since then: the last sign of it,
    /// or the time when the copies are ready that are waited for. `waits`: one of them is under way. Signs put it off for
    /// [`Group::sending_max`] only: a member must not hold up a round by what it sends.
    pub(super) fn silent_since(&self, member: usize, since: Time, waits: bool) -> Time {
        let copied = if waits { self.copies_due } else { self.copied_at.min(self.copies_due) };
        let heard = self.heard_at.get(&member).copied().unwrap_or_default();
        let begins = since.max(copied);
        begins.max(heard.min(begins + self.sending_max()))
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

    fn size(parts_min: u32) -> FragmentSize {
        FragmentSize { bytes: 0, parts_min }
    }

    fn members(count: u8) -> Vec<Instance> {
        let member = |index| Instance::new(PeerId([index; 32]), Incarnation(1));
        (0..count).map(member).collect()
    }

    #[test]
    fn every_member_owns_as_many_parts_and_none_is_too_large() {
        for (count, parts_min, parts) in [(2, 1, 2), (3, 4, 6), (3, 6, 6), (5, 0, 5)] {
            let group = Group::new(Round(1), members(count), 0, size(parts_min));
            assert_eq!(group.parts(), parts);
        }
    }

    #[test]
    fn more_parts_are_on_their_way_if_they_are_small_or_the_group_is_large() {
        let in_flight = |count, bytes, parts_min| {
            Group::new(Round(1), members(count), 0, FragmentSize { bytes, parts_min }).parts_in_flight()
        };
        assert_eq!(in_flight(2, 100, 1), 16);
        assert_eq!(in_flight(2, 600 << 20, 600), 8);
        assert_eq!(in_flight(16, 600 << 20, 600), PARTS_IN_FLIGHT_MAX);
    }

    #[test]
    fn a_member_that_is_overdue_again_and_again_is_waited_for_no_more() {
        let mut group = Group::new(Round(1), members(4), 0, size(1));
        for _ in 0..OVERDUE_MAX {
            assert!(!group.is_overdue(1));
            group.go_on_without(1);
            assert!(group.is_overdue(1));
            group.heard(Time(1), 1);
        }
        assert!(group.is_overdue(1));
    }

    #[test]
    fn a_part_goes_to_the_next_member_that_is_there() {
        let mut group = Group::new(Round(1), members(4), 0, size(1));
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
        let mut pair = Group::new(Round(1), members(2), 0, size(1));
        assert!(pair.can_choose());
        pair.mark_absent(|member| member.peer == PeerId([1; 32]));
        assert!(!pair.can_choose());
        let mut three = Group::new(Round(1), members(3), 0, size(1));
        three.mark_absent(|member| member.peer == PeerId([1; 32]));
        assert!(three.can_choose());
    }

    #[test]
    fn the_digest_tells_starts_and_cuts_apart() {
        let mut later = members(3);
        later[1].incarnation = Incarnation(2);
        let id = |members, parts_min| Group::new(Round(1), members, 0, size(parts_min)).id;
        assert_eq!(id(members(3), 1), id(members(3), 3));
        assert_ne!(id(members(3), 1), id(members(3), 4));
        assert_ne!(id(members(3), 1), id(later, 1));
    }

    #[test]
    fn rounds_take_the_fragments_in_turn() {
        assert_eq!(Round(45).fragment(20), FragmentIndex(5));
    }
}
