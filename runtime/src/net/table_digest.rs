//! The digest of a membership table that the coordinator signs, kept from change to change.
//!
//! The members are leaves of a binary tree of BLAKE3 digests. A change hashes the way from the changed leaves to the root.
//! So a member checks the signature on a table of ten thousand members at the cost of a few hashes, and can show the whole
//! table with that signature although it was sent changes only.

use std::collections::BTreeMap;

use prost::Message as _;
use swarmline_scheduler::{Member, Membership, PeerId};

use super::wire;

/// The binary logarithm of the number of leaves. With ten thousand members a leaf has two or three.
const DEPTH: u32 = 12;
/// Number of leaves.
const LEAVES: usize = 1 << DEPTH;

/// A BLAKE3 digest; zero for a part of the tree without members.
type Digest = [u8; 32];

/// The members of a table by key.
pub(super) type Members = BTreeMap<PeerId, Member>;

/// The tree of digests over the members.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MembersDigest {
    /// The root at 1, the children of `n` at `2 n` and `2 n + 1`, the leaves at the end.
    nodes: Vec<Digest>,
}

impl MembersDigest {
    /// The digest of these members.
    #[must_use]
    pub(super) fn of(members: &Members) -> Self {
        let mut digest = Self { nodes: vec![[0; 32]; 2 * LEAVES] };
        let mut leaves: Vec<usize> = members.keys().map(leaf_of).collect();
        leaves.dedup();
        digest.renew(members, leaves);
        digest
    }

    /// Follows a change of the members `changed`; the others are as before.
    pub(super) fn follow<'a>(&mut self, members: &Members, changed: impl Iterator<Item = &'a PeerId>) {
        let mut leaves: Vec<usize> = changed.map(leaf_of).collect();
        leaves.sort_unstable();
        leaves.dedup();
        self.renew(members, leaves);
    }

    /// Digest of all members.
    #[must_use]
    pub(super) fn root(&self) -> Digest {
        self.nodes[1]
    }

    /// Hashes these leaves, ascending, and the nodes above them, level by level.
    fn renew(&mut self, members: &Members, leaves: Vec<usize>) {
        for &leaf in &leaves {
            self.nodes[LEAVES + leaf] = hash_leaf(members, leaf);
        }
        let mut level: Vec<usize> = leaves.into_iter().map(|leaf| LEAVES + leaf).collect();
        for _ in 0..DEPTH {
            level.iter_mut().for_each(|node| *node /= 2);
            level.dedup();
            for &node in &level {
                self.nodes[node] = hash_pair(self.nodes[2 * node], self.nodes[2 * node + 1]);
            }
        }
    }
}

/// The digest that the coordinator signs: of the members, and of the rest of the table.
#[must_use]
pub(super) fn table_digest(members: &MembersDigest, rest: &Membership) -> Digest {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&members.root());
    hasher.update(&wire::encode_membership(rest).encode_to_vec());
    *hasher.finalize().as_bytes()
}

/// The first bits of the key.
fn leaf_of(peer: &PeerId) -> usize {
    usize::from(u16::from_be_bytes([peer.0[0], peer.0[1]]) >> (u16::BITS - DEPTH))
}

fn first_of(leaf: usize) -> PeerId {
    let mut key = [0; 32];
    let bits = u16::try_from(leaf).unwrap_or(u16::MAX) << (u16::BITS - DEPTH);
    key[..2].copy_from_slice(&bits.to_be_bytes());
    PeerId(key)
}

fn hash_leaf(members: &Members, leaf: usize) -> Digest {
    let mut of_leaf = members
        .range(first_of(leaf)..)
        .map(|(_, member)| member)
        .take_while(|member| leaf_of(&member.instance.peer) == leaf)
        .peekable();
    if of_leaf.peek().is_none() {
        return [0; 32];
    }
    let mut hasher = blake3::Hasher::new();
    of_leaf.for_each(|member| {
        hasher.update(&wire::encode_member(member).encode_length_delimited_to_vec());
    });
    *hasher.finalize().as_bytes()
}

fn hash_pair(left: Digest, right: Digest) -> Digest {
    if left == [0; 32] && right == [0; 32] {
        return [0; 32];
    }
    *blake3::hash([left, right].as_flattened()).as_bytes()
}

#[cfg(test)]
mod tests {
    use swarmline_scheduler::{Incarnation, Instance, MemberState, Rng, StageIndex};

    use super::*;

    fn member(peer: PeerId, incarnation: u64) -> Member {
        let instance = Instance::new(peer, Incarnation(incarnation));
        Member {
            instance,
            state: MemberState::Serving(StageIndex(1)),
            address: "[::1]:7000".parse().unwrap(),
        }
    }

    fn key(rng: &mut Rng) -> PeerId {
        let mut key = [0; 32];
        // Few first bytes, so that leaves have several members.
        key[0] = u8::try_from(rng.below(4)).unwrap();
        key[31] = u8::try_from(rng.below(40)).unwrap();
        PeerId(key)
    }

    #[test]
    fn a_digest_that_follows_changes_is_that_of_the_whole_table() {
        let mut rng = Rng::new(1);
        let mut members = Members::new();
        let mut digest = MembersDigest::of(&members);
        for step in 0..400 {
            let before = digest.root();
            let changed: Vec<PeerId> = (0..1 + rng.below(5)).map(|_| key(&mut rng)).collect();
            for &peer in &changed {
                if members.remove(&peer).is_none() || rng.chance(1, 2) {
                    members.insert(peer, member(peer, step));
                }
            }
            digest.follow(&members, changed.iter());
            assert_eq!(digest, MembersDigest::of(&members));
            assert!(digest.root() != before || members.is_empty());
        }
    }

    #[test]
    fn the_digest_covers_every_member_and_the_rest() {
        let members: Members = [1, 2].map(|byte| (PeerId([byte; 32]), member(PeerId([byte; 32]), 1))).into();
        let digest = MembersDigest::of(&members);
        let mut other = members.clone();
        other.insert(PeerId([2; 32]), member(PeerId([2; 32]), 2));
        assert_ne!(MembersDigest::of(&other).root(), digest.root());
        let rest = |version| Membership { version, ..Membership::default() };
        assert_ne!(table_digest(&digest, &rest(1)), table_digest(&digest, &rest(2)));
    }
}
