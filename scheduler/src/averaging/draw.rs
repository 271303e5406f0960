//! The draw of groups: a stage with more replicas than a group holds averages in groups, and each round draws others.
//!
//! A hash of the round and of the peer gives each replica 64 bits. The stage is halved by the first bit, each half that
//! is too large by the next bit, and so on. So every replica draws the same groups from the same list without a message,
//! and lists that differ by one member differ in the group of that member only, as far as chance allows: a group that
//! is about to become too large or too small has a neighbour that changes as well.
//!
//! In a round the differences within a group vanish, and the differences between groups stay. Of the variance between
//! `n` replicas in `g` groups about `(g - 1) / (n - 1)` is left, so the stage converges at a rate that does not depend
//! on its size (gossip in random groups, as in Moshpit SGD, arXiv 2103.03239).

use crate::rng::spread;
use crate::{Instance, PeerId};

use super::group::Round;

/// Members of a group at most; bounds the memory and the traffic of a round. A stage of as many replicas is one group.
pub const GROUP_MAX: usize = 16;

/// Members that a drawn group has at least: fewer mix little, and a majority of them dies easily.
pub const GROUP_MIN: usize = 4;

/// The group of `me` in this round: some of the sorted `members`, in their order.
pub(super) fn group_of(round: Round, members: &[Instance], me: PeerId) -> Vec<Instance> {
    let (mut group, mine) = (drawn(round, members), bits(round, me));
    for bit in 0..u64::BITS {
        group = match halves(group, bit) {
            Ok([one, other]) => {
                if mine >> bit & 1 == 0 {
                    one
                } else {
                    other
                }
            }
            Err(whole) => whole,
        };
    }
    instances(group)
}

/// The groups of members that agree in the first `bit` bits, each in their order.
pub(super) fn split(members: Vec<Drawn>, bit: u32) -> Vec<Vec<Instance>> {
    if bit == u64::BITS || members.len() <= GROUP_MAX {
        return if members.is_empty() { Vec::new() } else { vec![instances(members)] };
    }
    match halves(members, bit) {
        Ok(halves) => halves.into_iter().flat_map(|half| split(half, bit + 1)).collect(),
        Err(whole) => split(whole, bit + 1),
    }
}

/// A member and its bits.
pub(super) type Drawn = (u64, Instance);

fn drawn(round: Round, members: &[Instance]) -> Vec<Drawn> {
    members.iter().map(|member| (bits(round, member.peer), *member)).collect()
}

/// The members whose bit is 0 and those whose bit is 1, if the group is too large and neither half is too small.
fn halves(group: Vec<Drawn>, bit: u32) -> Result<[Vec<Drawn>; 2], Vec<Drawn>> {
    let ones = group.iter().filter(|(bits, _)| bits >> bit & 1 == 1).count();
    if group.len() <= GROUP_MAX || ones < GROUP_MIN || group.len() - ones < GROUP_MIN {
        return Err(group);
    }
    let (ones, zeros) = group.into_iter().partition(|(bits, _)| bits >> bit & 1 == 1);
    Ok([zeros, ones])
}

/// Only peers that chose their keys by their bits are more than a group.
fn instances(group: Vec<Drawn>) -> Vec<Instance> {
    group.into_iter().take(GROUP_MAX).map(|(_, member)| member).collect()
}

/// The bits of a peer in a round.
pub(super) fn bits(round: Round, peer: PeerId) -> u64 {
    spread(round.0, peer)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Incarnation, Rng};

    fn members(count: u64) -> Vec<Instance> {
        let key = |index: u64| {
            let mut rng = Rng::new(index);
            std::array::from_fn(|_| rng.next_u64().to_le_bytes()[0])
        };
        let mut members: Vec<_> =
            (0..count).map(|index| Instance::new(PeerId(key(index)), Incarnation(1))).collect();
        members.sort_unstable();
        members
    }

    /// The groups of a round, of which each member knows its own.
    fn groups(round: u64, members: &[Instance]) -> BTreeSet<Vec<Instance>> {
        let known = members.iter().map(|member| group_of(Round(round), members, member.peer)).collect();
        assert_eq!(split(drawn(Round(round), members), 0).into_iter().collect::<BTreeSet<_>>(), known);
        known
    }

    #[test]
    fn a_stage_that_fits_is_one_group() {
        for count in 1..=GROUP_MAX as u64 {
            assert_eq!(groups(3, &members(count)), BTreeSet::from([members(count)]));
        }
    }

    #[test]
    fn every_replica_of_a_stage_is_in_one_group_of_4_to_16() {
        for (round, count) in [17, 20, 64, 65, 200, 1_000].into_iter().enumerate() {
            let members = members(count);
            let groups = groups(round as u64, &members);
            assert!(groups.iter().all(|group| (GROUP_MIN..=GROUP_MAX).contains(&group.len())));
            let mut all: Vec<_> = groups.into_iter().flatten().collect();
            all.sort_unstable();
            assert_eq!(all, members);
        }
    }

    #[test]
    fn each_round_draws_other_groups() {
        let members = members(200);
        let pairs = |round| {
            let of = |group: &Vec<Instance>| {
                group.iter().flat_map(|one| group.iter().map(|other| (*one, *other))).collect::<Vec<_>>()
            };
            groups(round, &members).iter().flat_map(of).filter(|(one, other)| one < other).collect()
        };
        let (first, second): (BTreeSet<_>, BTreeSet<_>) = (pairs(1), pairs(2));
        assert!(first.intersection(&second).count() < first.len() / 5, "most meet others");
    }

    #[test]
    fn lists_that_differ_by_one_member_differ_in_its_group_only() {
        let (members, mut most) = (members(200), 0);
        for round in 0..50 {
            for left in [0, 57, 199] {
                let mut fewer = members.clone();
                fewer.remove(left);
                let (before, after) = (groups(round, &members), groups(round, &fewer));
                most = most.max(before.difference(&after).count());
            }
        }
        assert!(most <= 2, "the group of the member, and a neighbour that merges with it: {most}");
    }
}
