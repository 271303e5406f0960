//! A whole membership table with lookups, and the change from one table to the next.
//!
//! A table keeps what decisions look at by stage. So no decision looks at all members, and a change costs the members that
//! changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::places::Places;
use crate::{Instance, Member, Membership, PeerId};

/// A membership table.
#[derive(Clone, Debug, Default)]
pub struct Table {
    members: BTreeMap<PeerId, Member>,
    places: Places,
    /// The table without its members.
    rest: Membership,
}

/// The difference between two tables. Its size depends on the members that changed, not on all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TableChange {
    /// Version of the table that it applies to.
    pub base: u64,
    /// The peers that are members no more, ascending.
    pub removed: Vec<PeerId>,
    /// The table after the change, with those members only that are new or have another entry than before.
    pub now: Membership,
}

/// News of the table for a process.
#[derive(Clone, Debug)]
pub enum TableUpdate {
    /// A whole table.
    Whole(Arc<Table>),
    /// The change of a table that the process may have.
    Change(Arc<TableChange>),
    /// The same, with the table that it makes, which many machines of one process share.
    Shared(Arc<TableChange>, Arc<Table>),
}

impl Table {
    /// The members, by peer id.
    #[must_use]
    pub fn members(&self) -> &BTreeMap<PeerId, Member> {
        &self.members
    }

    /// The member that is this start of this peer; `None` if another start is a member, or none.
    #[must_use]
    pub fn get(&self, instance: Instance) -> Option<&Member> {
        self.members.get(&instance.peer).filter(|member| member.instance == instance)
    }

    /// Version, and whatever else a table says besides its members: the list of members is empty.
    #[must_use]
    pub fn rest(&self) -> &Membership {
        &self.rest
    }

    /// The table as the coordinator publishes it.
    #[must_use]
    pub fn membership(&self) -> Membership {
        Membership { members: self.members.values().cloned().collect(), ..self.rest.clone() }
    }

    pub(crate) fn places(&self) -> &Places {
        &self.places
    }

    /// Takes over a change; `false` and no change if it is one of another table.
    pub fn apply(&mut self, change: &TableChange) -> bool {
        if !change.applies_to(self.rest.version) {
            return false;
        }
        for peer in &change.removed {
            if let Some(gone) = self.members.remove(peer) {
                self.places.remove(&gone);
            }
        }
        for member in &change.now.members {
            self.put(member.clone());
        }
        self.rest = Membership { members: Vec::new(), ..change.now.clone() };
        true
    }

    fn put(&mut self, member: Member) {
        if let Some(before) = self.members.get(&member.instance.peer) {
            self.places.remove(before);
        }
        self.places.add(&member);
        self.members.insert(member.instance.peer, member);
    }

    /// The change that makes `now` of this table.
    #[must_use]
    pub fn change_to(&self, now: &Self) -> TableChange {
        let removed = self.members.keys().filter(|peer| !now.members.contains_key(peer)).copied().collect();
        let is_new = |member: &&Member| self.members.get(&member.instance.peer) != Some(*member);
        let members = now.members.values().filter(is_new).cloned().collect();
        TableChange { base: self.rest.version, removed, now: Membership { members, ..now.rest.clone() } }
    }
}

impl From<Membership> for Table {
    fn from(mut membership: Membership) -> Self {
        let mut table = Self::default();
        std::mem::take(&mut membership.members).into_iter().for_each(|member| table.put(member));
        table.rest = membership;
        table
    }
}

impl TableChange {
    /// Whether this is the change of the table with this version.
    #[must_use]
    pub fn applies_to(&self, version: u64) -> bool {
        self.base == version && self.now.version > version
    }
}

impl TableUpdate {
    /// Whether it makes a newer table of the one with this version.
    #[must_use]
    pub fn is_news(&self, version: u64) -> bool {
        match self {
            Self::Whole(table) | Self::Shared(_, table) => table.rest.version > version,
            Self::Change(change) => change.applies_to(version),
        }
    }
}

impl From<Membership> for TableUpdate {
    fn from(membership: Membership) -> Self {
        Self::Whole(Arc::new(membership.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b, member};
    use crate::{Hop, Incarnation, Rng, StageIndex};

    fn table(version: u64, hops: &[Hop]) -> Table {
        let members = hops.iter().copied().map(member).collect();
        Membership { version, members, ..Membership::default() }.into()
    }

    #[test]
    fn a_change_makes_the_later_table_of_the_earlier_one_only() {
        let (before, now) = (table(3, &[a(0), b(0)]), table(5, &[a(1), b(0)]));
        let change = before.change_to(&now);
        assert_eq!((change.base, change.now.members.len(), change.removed.len()), (3, 1, 1));
        let mut other = table(4, &[a(0)]);
        assert!(!other.apply(&change));
        let mut changed = before;
        assert!(changed.apply(&change) && !changed.apply(&change));
        assert_eq!(changed.membership(), now.membership());
        assert!(changed.places().serving(StageIndex(0)).contains(&b(0)));
        assert!(!changed.places().serving(StageIndex(0)).contains(&a(0)));
    }

    #[test]
    fn a_table_that_follows_changes_is_the_whole_table() {
        let mut rng = Rng::new(1);
        let mut draw = |version| {
            let hop = |key: u8, rng: &mut Rng| {
                let stage = StageIndex(u16::try_from(rng.below(3)).unwrap());
                Hop::replica(stage, Instance::new(PeerId([key; 32]), Incarnation(rng.below(2))))
            };
            let keys: Vec<u8> = (0..30).filter(|_| rng.chance(2, 3)).collect();
            let hops: Vec<Hop> = keys.into_iter().map(|key| hop(key, &mut rng)).collect();
            table(version, &hops)
        };
        let mut following = draw(1);
        for version in 2..60 {
            let next = draw(version);
            assert!(following.apply(&following.change_to(&next)));
            assert_eq!(following.membership(), next.membership());
            for stage in (0..3).map(StageIndex) {
                assert_eq!(following.places().serving(stage), next.places().serving(stage));
                assert!(following.places().placed_on(stage).eq(next.places().placed_on(stage)));
            }
        }
    }
}
