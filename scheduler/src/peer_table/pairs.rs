//! The peers that the routing pairs with the owner of a table, kept from table to table.

use std::collections::BTreeSet;

use crate::Hop;
use crate::router::Pairing;

/// The peers of one neighbouring stage that the owner works with.
#[derive(Clone, Debug, Default)]
pub(super) struct Pairs {
    pairing: Pairing,
    hops: BTreeSet<Hop>,
    /// The pairs of the table before that are none now.
    left: Vec<Hop>,
    /// The pairs that were none in the table before.
    entered: Vec<Hop>,
}

impl Pairs {
    /// Follows a change of the stage: it consists of `all` now, and only `changed` may differ. `pairs` tells whether a
    /// peer is paired with the owner. Where the stage crosses a size, every peer of it is drawn again.
    pub(super) fn follow(
        &mut self,
        pairing: Pairing,
        all: &BTreeSet<Hop>,
        changed: &[Hop],
        pairs: impl Fn(&Pairing, &Hop) -> bool,
    ) {
        let belongs = |hop: &Hop| all.contains(hop) && pairs(&pairing, hop);
        if self.pairing == pairing {
            self.left =
                changed.iter().filter(|hop| self.hops.contains(hop) && !belongs(hop)).copied().collect();
            let is_new = |hop: &&Hop| !self.hops.contains(*hop) && belongs(hop);
            self.entered = changed.iter().filter(is_new).copied().collect();
        } else {
            self.pairing = pairing;
            self.left = self.hops.iter().filter(|hop| !belongs(hop)).copied().collect();
            self.entered =
                all.iter().filter(|hop| !self.hops.contains(hop) && belongs(hop)).copied().collect();
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
