//! The replicas that entries name, so that the loss of a replica costs its own microbatches and not all of them.

use std::collections::BTreeSet;
use std::ops::Bound::{Excluded, Unbounded};

use crate::{Hop, MicrobatchId};

/// The replicas that one entry names: the one whose reply is awaited, and the holder further downstream.
pub(super) type Names = [Option<Hop>; 2];

/// For each replica, the microbatches whose entries name it.
#[derive(Clone, Debug, Default)]
pub(super) struct Named(BTreeSet<(Hop, MicrobatchId)>);

impl Named {
    /// The entry of a microbatch names `now` where it named `before`.
    pub(super) fn change(&mut self, id: MicrobatchId, before: Names, now: Names) {
        if before == now {
            return;
        }
        for hop in before.into_iter().flatten() {
            self.0.remove(&(hop, id));
        }
        self.0.extend(now.into_iter().flatten().map(|hop| (hop, id)));
    }

    /// The microbatches whose entries name `hop`, by id.
    pub(super) fn by(&self, hop: Hop) -> impl Iterator<Item = MicrobatchId> {
        self.0.range((hop, MicrobatchId(0))..=(hop, MicrobatchId(u64::MAX))).map(|&(_, id)| id)
    }

    /// Every replica that is named, once.
    pub(super) fn hops(&self) -> impl Iterator<Item = &Hop> {
        let after = |(hop, _): &(Hop, MicrobatchId)| {
            self.0.range((Excluded((*hop, MicrobatchId(u64::MAX))), Unbounded)).next()
        };
        std::iter::successors(self.0.first(), move |entry| after(entry)).map(|(hop, _)| hop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::{a, b};

    #[test]
    fn a_replica_is_named_as_long_as_an_entry_names_it() {
        let mut named = Named::default();
        let by = |named: &Named, hop| named.by(hop).map(|id| id.0).collect::<Vec<_>>();
        named.change(MicrobatchId(7), [None, None], [Some(a(0)), Some(a(1))]);
        named.change(MicrobatchId(3), [None, None], [Some(a(0)), None]);
        assert_eq!((by(&named, a(0)), by(&named, a(1)), by(&named, b(0))), (vec![3, 7], vec![7], vec![]));
        assert_eq!(named.hops().count(), 2);
        named.change(MicrobatchId(7), [Some(a(0)), Some(a(1))], [Some(b(0)), Some(a(1))]);
        assert_eq!((by(&named, a(0)), by(&named, a(1)), by(&named, b(0))), (vec![3], vec![7], vec![7]));
        named.change(MicrobatchId(3), [Some(a(0)), None], [None, None]);
        named.change(MicrobatchId(7), [Some(b(0)), Some(a(1))], [None, None]);
        assert_eq!(named.hops().count(), 0);
    }
}
