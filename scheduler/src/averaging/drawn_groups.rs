//! All groups of a stage in one round, kept while replicas come and go.
//!
//! The draw halves a large stage by the first bits of each member's hash, whichever members it has. So the members that
//! agree in these bits are a part of their own: a replica that comes or goes changes the groups of its part only.

use crate::Instance;

use super::draw::{Drawn, bits, split};
use super::group::Round;

/// Members of a part on average when a round is drawn; half as many and four times as many are as good. Far more than two
/// groups, so that chance halves no smaller part otherwise than the whole stage.
const PART: usize = 64;

/// The groups of one round.
#[derive(Clone, Debug)]
pub(crate) struct DrawnGroups {
    round: Round,
    members: usize,
    /// The binary logarithm of the number of parts: so many bits of a member name its part.
    depth: u32,
    parts: Vec<Part>,
}

#[derive(Clone, Debug, Default)]
struct Part {
    /// By instance.
    members: Vec<Drawn>,
    groups: Vec<Vec<Instance>>,
}

impl DrawnGroups {
    /// The groups of these members, each member once.
    pub(crate) fn new(round: Round, members: impl ExactSizeIterator<Item = Instance>) -> Self {
        let count = members.len();
        let depth = (count / PART).checked_ilog2().unwrap_or(0);
        let mut drawn = Self { round, members: count, depth, parts: vec![Part::default(); 1 << depth] };
        for member in members {
            let bits = bits(round, member.peer);
            drawn.part(bits).members.push((bits, member));
        }
        for part in &mut drawn.parts {
            part.members.sort_unstable_by_key(|&(_, member)| member);
            part.draw(depth);
        }
        drawn
    }

    /// The group of a member, sorted; empty if it is no member.
    pub(crate) fn of(&self, member: Instance) -> &[Instance] {
        let part = self.parts.get(part_of(bits(self.round, member.peer), self.depth));
        let mut groups = part.into_iter().flat_map(|part| &part.groups);
        groups.find(|group| group.binary_search(&member).is_ok()).map_or(&[], Vec::as_slice)
    }

    /// One member more.
    pub(crate) fn enter(&mut self, member: Instance) {
        let (depth, drawn) = (self.depth, (bits(self.round, member.peer), member));
        if let Err(place) = self.part(drawn.0).place_of(member) {
            self.part(drawn.0).members.insert(place, drawn);
            self.part(drawn.0).draw(depth);
            self.members += 1;
        }
        self.keep_parts();
    }

    /// One member less.
    pub(crate) fn leave(&mut self, member: Instance) {
        let (depth, bits) = (self.depth, bits(self.round, member.peer));
        if let Ok(place) = self.part(bits).place_of(member) {
            self.part(bits).members.remove(place);
            self.part(bits).draw(depth);
            self.members -= 1;
        }
        self.keep_parts();
    }

    /// Draws all groups where the parts have become too large or too small.
    fn keep_parts(&mut self) {
        let (least, most) = ((PART / 2) << self.depth, (4 * PART) << self.depth);
        if self.members > most || (self.depth > 0 && self.members < least) {
            let all: Vec<Instance> =
                self.parts.iter().flat_map(|part| &part.members).map(|&(_, one)| one).collect();
            *self = Self::new(self.round, all.into_iter());
        }
    }

    fn part(&mut self, bits: u64) -> &mut Part {
        &mut self.parts[part_of(bits, self.depth)]
    }
}

impl Part {
    fn place_of(&self, member: Instance) -> Result<usize, usize> {
        self.members.binary_search_by_key(&member, |&(_, member)| member)
    }

    fn draw(&mut self, depth: u32) {
        self.groups = split(self.members.clone(), depth);
    }
}

fn part_of(bits: u64, depth: u32) -> usize {
    usize::try_from(bits & ((1 << depth) - 1)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::{Incarnation, PeerId, Rng};

    fn member(index: u64) -> Instance {
        let mut rng = Rng::new(index);
        let key = std::array::from_fn(|_| rng.next_u64().to_le_bytes()[0]);
        Instance::new(PeerId(key), Incarnation(1))
    }

    #[test]
    fn groups_that_follow_changes_are_those_of_the_whole_stage() {
        let mut drawn = DrawnGroups::new(Round(5), std::iter::empty());
        let sizes: Vec<u64> = (0..2_000).step_by(97).collect();
        let mut size = 0;
        for &target in sizes.iter().chain(sizes.iter().rev()) {
            for index in size..target {
                drawn.enter(member(index));
                drawn.enter(member(index));
            }
            for index in target..size {
                drawn.leave(member(index));
                drawn.leave(member(index));
            }
            size = target;
            let stage: BTreeSet<Instance> = (0..size).map(member).collect();
            let whole = split(stage.iter().map(|one| (bits(Round(5), one.peer), *one)).collect(), 0);
            for group in &whole {
                assert!(group.iter().all(|member| drawn.of(*member) == group), "{size}");
            }
            let again = DrawnGroups::new(Round(5), stage.iter().copied());
            assert!(stage.iter().all(|member| again.of(*member) == drawn.of(*member)));
            assert_eq!(drawn.of(member(size)), []);
        }
    }
}
