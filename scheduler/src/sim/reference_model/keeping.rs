//! What a run keeps, whatever dies: ids are leased to one feeder, and no stage begins with initial weights while a living
//! process holds trained ones.

use crate::{Hop, Instance, Lease, MicrobatchId};

use super::ReferenceModel;

impl ReferenceModel {
    /// Checks that the ids of a lease were leased to no other feeder. A feeder without its journal is another one.
    pub(in crate::sim) fn leases(&mut self, feeder: usize, lease: &Lease) {
        let (first, end) = (lease.first, MicrobatchId(lease.ids().end));
        let mut before = self.leased.range(..end).map(|(&first, &(end, by))| (first, end, by));
        let twice = before.rfind(|&(_, before, by)| first < before && by != feeder);
        self.require(twice.is_none(), || {
            format!("{first}..{end} are leased to feeder {feeder}, and overlap {twice:?}")
        });
        if lease.count > 0 {
            let known = self.leased.entry(first).or_insert((end, feeder));
            known.0 = known.0.max(end);
        }
    }

    /// The coordinator lets a replica begin with initial weights. Checks that no process has trained ones.
    pub(in crate::sim) fn begins(&mut self, replica: Hop, holders: &[Instance]) {
        self.require(holders.is_empty(), || {
            format!("{replica:?} begins with initial weights, and {holders:?} have trained ones")
        });
    }
}
