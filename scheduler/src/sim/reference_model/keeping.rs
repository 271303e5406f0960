//! What a run keeps, whatever dies: ids are leased to one feeder, and no stage begins with initial weights while a living
//! process holds trained ones.

use crate::feeder::Outcome;
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

    /// A replica is gone, with contributions that no other has.
    pub(in crate::sim) fn loses(&mut self, hop: Hop, own: Vec<MicrobatchId>) {
        self.lost.entry(hop).or_default().extend(own);
    }

    /// Checks that a feeder counts at least the contributions that were lost with replicas of which it knows that they are
    /// `gone`. It may count more: of a replica that is silent it knows no better.
    pub(in crate::sim) fn check_lost(&mut self, counted: u64, gone: impl Fn(&Hop) -> bool) {
        let finished = |id: &&MicrobatchId| matches!(self.outcomes.get(id), Some(Outcome::Finished { .. }));
        let of_gone = self.lost.iter().filter(|(hop, _)| gone(hop)).flat_map(|(_, ids)| ids);
        let lost = of_gone.filter(finished).count() as u64;
        if lost > 0 {
            self.path("contributions died with their replica");
        }
        self.require(counted >= lost, || format!("{lost} contributions are lost, and {counted} are counted"));
    }

    /// The coordinator lets a replica begin with initial weights. Checks that no process has trained ones.
    pub(in crate::sim) fn begins(&mut self, replica: Hop, holders: &[Instance]) {
        self.require(holders.is_empty(), || {
            format!("{replica:?} begins with initial weights, and {holders:?} have trained ones")
        });
    }
}
