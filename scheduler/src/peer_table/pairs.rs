//! The peers that the routing pairs with the owner of a table, kept from table to table.

use std::collections::BTreeSet;

use crate::Hop;
use crate::router::Pairing;

/// The peers of one neighbouring stage that the owner works with.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairs {
    pairing: Pairing,
    hops: BTreeSet<Hop>,
    /// The peers that a wider pairing draws: the pairs are among them, and the next ones if the stage shrinks a little.
    near: Near,
    /// The pairs of the table before that are none now.
    left: Vec<Hop>,
    /// The pairs that were none in the table before.
    entered: Vec<Hop>,
}

/// The peers that a pairing draws; none are kept where it draws all.
#[derive(Clone, Debug, Default)]
struct Near {
    pairing: Pairing,
    hops: BTreeSet<Hop>,
}

impl Pairs {
    /// Follows a change of the stage: it consists of `all` now, and only `changed` may differ. `pairs` tells whether a
    /// peer is paired with the owner. Another pairing is looked for among the peers that are near, and in the whole stage
    /// only where that has doubled or halved.
    pub(super) fn follow(
        &mut self,
        pairing: Pairing,
        all: &BTreeSet<Hop>,
        changed: &[Hop],
        pairs: impl Fn(&Pairing, &Hop) -> bool,
    ) {
        self.near.follow(pairing, all, changed, &pairs);
        let belongs = |hop: &Hop| all.contains(hop) && pairs(&pairing, hop);
        let is_new = |hop: &&Hop| !self.hops.contains(*hop) && belongs(hop);
        if self.pairing == pairing {
            let is_gone = |hop: &&Hop| self.hops.contains(*hop) && !belongs(hop);
            self.left = changed.iter().filter(is_gone).copied().collect();
            self.entered = changed.iter().filter(is_new).copied().collect();
        } else {
            self.pairing = pairing;
            self.left = self.hops.iter().filter(|hop| !belongs(hop)).copied().collect();
            self.entered = self.near.of(all).iter().filter(is_new).copied().collect();
        }
        for hop in &self.left {
            self.hops.remove(hop);
        }
        self.hops.extend(&self.entered);
    }

    pub(super) fn hops(&self) -> &BTreeSet<Hop> {
        &self.hops
    }

    pub(super) fn left(&self) -> &[Hop] {
        &self.left
    }

    pub(super) fn entered(&self) -> &[Hop] {
        &self.entered
    }
}

impl Near {
    /// Follows a change of the stage: it has the pairs of `pairing`, and more.
    fn follow(
        &mut self,
        pairing: Pairing,
        all: &BTreeSet<Hop>,
        changed: &[Hop],
        pairs: impl Fn(&Pairing, &Hop) -> bool,
    ) {
        let is_near = |near: &Pairing, hop: &Hop| !near.draws_all() && all.contains(hop) && pairs(near, hop);
        if !self.pairing.is_just_wider_than(pairing) {
            self.pairing = pairing.wider();
            self.hops = all.iter().filter(|hop| is_near(&self.pairing, hop)).copied().collect();
            return;
        }
        for hop in changed {
            if is_near(&self.pairing, hop) {
                self.hops.insert(*hop);
            } else {
                self.hops.remove(hop);
            }
        }
    }

    fn of<'a>(&'a self, all: &'a BTreeSet<Hop>) -> &'a BTreeSet<Hop> {
        if self.pairing.draws_all() { all } else { &self.hops }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Incarnation, Instance, PeerId, StageIndex};

    fn hop(index: u16) -> Hop {
        let mut key = [0; 32];
        key[..2].copy_from_slice(&index.to_be_bytes());
        Hop::replica(StageIndex(1), Instance::new(PeerId(key), Incarnation(1)))
    }

    #[test]
    fn pairs_that_follow_changes_are_those_of_the_whole_stage() {
        let owner = hop(60_000).peer();
        let pairs = |pairing: &Pairing, hop: &Hop| pairing.pairs(owner, hop.peer());
        let (mut stage, mut following) = (BTreeSet::new(), Pairs::default());
        let mut near_max = 0;
        // It grows to 1,100, hangs around a size where the pairing changes, and shrinks to nothing.
        let sizes = (0..=1_100).chain([1_020, 1_030, 1_020, 1_030]).chain((0..1_030).rev());
        for size in sizes {
            let before = std::mem::replace(&mut stage, (0..size).map(hop).collect());
            let changed: Vec<Hop> = before.symmetric_difference(&stage).copied().collect();
            let pairing = Pairing::new(1_000, stage.len());
            following.follow(pairing, &stage, &changed, pairs);
            let whole: BTreeSet<Hop> = stage.iter().filter(|hop| pairs(&pairing, hop)).copied().collect();
            assert_eq!(following.hops(), &whole, "{size}");
            near_max = near_max.max(following.near.hops.len());
        }
        assert!((150..450).contains(&near_max), "{near_max}");
    }
}
