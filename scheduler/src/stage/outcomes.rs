//! The microbatches that have their outcome, as the feeders announce them.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::{ACK_OPEN_MAX, ACK_RANGES_MAX, AckRange, Block, IdSet, Lease, LeasedRange, MicrobatchId, PeerId};

/// Feeders whose announcements are remembered, at most; the feeder with the lowest key gives way.
const FEEDERS_MAX: usize = 64;

/// Runs of ids remembered of a feeder, at most: as many as one announcement can name. The lowest are forgotten first.
const RUNS_MAX: usize = ACK_RANGES_MAX + ACK_OPEN_MAX;

/// The ids that each feeder has announced. A message about such an id is late.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes {
    by_feeder: BTreeMap<PeerId, IdSet>,
    /// Microbatches of each block that have an outcome, as far as they are known here.
    settled: BTreeMap<Block, u64>,
    /// Their sum.
    settled_of_all: u64,
}

impl Outcomes {
    /// Adds an announcement about the feeder's own ids, whose ranges ascend; it says nothing about others. Announcements
    /// overtake each other, so an older announcement takes nothing back. More ranges than [`ACK_RANGES_MAX`] are cut off:
    /// their ids are announced again later.
    pub(super) fn announce(&mut self, feeder: PeerId, ranges: &[AckRange], own: &[Range<u64>]) {
        if self.by_feeder.len() >= FEEDERS_MAX && !self.by_feeder.contains_key(&feeder) {
            self.by_feeder.pop_first();
        }
        let ended = self.by_feeder.entry(feeder).or_default();
        for run in ranges.iter().take(ACK_RANGES_MAX).flat_map(AckRange::runs) {
            clip(run, own).for_each(|part| ended.insert_run(part));
        }
        ended.keep_last_runs(RUNS_MAX);
    }

    /// Counts what the feeders of these leases have announced, or the progress that the table states, whichever is later. A
    /// successor that has announced nothing yet takes nothing back. The ids of a block before its range had their outcome
    /// before this launch.
    pub(super) fn settle(&mut self, leases: &[LeasedRange]) {
        for leased in leases {
            let announced = self.by_feeder.get(&leased.feeder).map_or(0, |ended| {
                leased.lease.first.index().saturating_add(ended.len_within(leased.lease.ids()))
            });
            let settled = self.settled.entry(leased.tally.block).or_default();
            let more = announced.max(leased.tally.settled).saturating_sub(*settled);
            *settled += more;
            self.settled_of_all = self.settled_of_all.saturating_add(more);
        }
    }

    /// The clock of the run when a microbatch was injected: the microbatches before it in its block, and those of other
    /// blocks that have an outcome.
    pub(super) fn clock_at(&self, microbatch: MicrobatchId) -> u64 {
        let settled = self.settled.get(&microbatch.block()).copied().unwrap_or(0);
        self.settled_of_all.saturating_sub(settled).saturating_add(microbatch.index())
    }

    /// The outcomes in the range of a lease; `None` if there are none.
    pub(super) fn within(&self, lease: &Lease) -> Option<AckRange> {
        let ids = lease.ids();
        let mut ended = IdSet::default();
        for run in self.by_feeder.values().flat_map(|set| set.runs(ids.clone())) {
            ended.insert_run(run);
        }
        Some(AckRange::of(ids, &ended)).filter(|_| !ended.is_empty())
    }

    pub(super) fn contain(&self, microbatch: MicrobatchId) -> bool {
        self.by_feeder.values().any(|ended| ended.contains(microbatch))
    }
}

/// The parts of `run` within the ranges of `own`, which ascend and do not overlap. An announcement names many runs, and a
/// feeder may have many ranges, so only those are looked at that the run touches.
fn clip(run: Range<u64>, own: &[Range<u64>]) -> impl Iterator<Item = Range<u64>> {
    let first = own.partition_point(|leased| leased.end <= run.start);
    let touched = own[first..].iter().take_while(move |leased| leased.start < run.end);
    touched.map(move |leased| run.start.max(leased.start)..run.end.min(leased.end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Duration, LEASES_MAX};

    #[test]
    fn an_announcement_that_was_overtaken_takes_nothing_back() {
        let mut outcomes = Outcomes::default();
        let feeder = PeerId([1; 32]);
        for (end, open) in [(11, &[8, 9][..]), (17, &[8, 11, 12, 13, 14, 15]), (6, &[]), (5, &[4])] {
            outcomes.announce(
                feeder,
                &[AckRange { first: 4, end, open: open.to_vec() }],
                std::slice::from_ref(&(0..u64::MAX)),
            );
        }
        let ended: Vec<_> = (0..40).filter(|&id| outcomes.contain(MicrobatchId(id))).collect();
        assert_eq!(ended, [4, 5, 6, 7, 9, 10, 16]);
        let lease = Lease { first: MicrobatchId(6), count: 5, epoch: 1 };
        assert_eq!(outcomes.within(&lease), Some(AckRange { first: 6, end: 11, open: vec![8] }));
        assert_eq!(outcomes.within(&Lease { first: MicrobatchId(17), count: 5, epoch: 1 }), None);
    }

    #[test]
    fn a_feeder_ends_no_ids_of_another() {
        let mut outcomes = Outcomes::default();
        outcomes.announce(
            PeerId([1; 32]),
            &[AckRange { first: 0, end: 99, open: vec![12] }],
            &[10..20, 30..31],
        );
        let ended: Vec<_> = (0..99).filter(|&id| outcomes.contain(MicrobatchId(id))).collect();
        assert_eq!(ended, [10, 11, 13, 14, 15, 16, 17, 18, 19, 30]);
    }

    #[test]
    #[allow(clippy::disallowed_types, clippy::disallowed_methods)]
    fn a_long_announcement_of_a_feeder_with_many_ranges_is_read_in_a_moment() {
        let own: Vec<_> = (0..LEASES_MAX as u32).map(|block| Block(2 * block).ids()).collect();
        let first = Block(8).first().0 - 10;
        let open: Vec<u64> = (first..).step_by(2).take(ACK_OPEN_MAX).collect();
        let range = AckRange { first, end: first + 2 * ACK_OPEN_MAX as u64, open };
        let mut outcomes = Outcomes::default();
        let began = std::time::Instant::now();
        for _ in 0..2 {
            outcomes.announce(PeerId([1; 32]), &vec![range.clone(); ACK_RANGES_MAX], &own);
        }
        let taken = began.elapsed();
        assert!(taken < Duration::from_secs(3), "{taken:?}");
        let ended = outcomes.by_feeder.values().map(IdSet::len).sum::<u64>();
        assert_eq!(ended, ACK_OPEN_MAX as u64 - 5, "those of its own block");
    }

    #[test]
    fn the_clock_counts_a_feeders_own_microbatches_by_their_ids_and_those_of_others_by_their_outcomes() {
        let mut outcomes = Outcomes::default();
        let (a, b, heir) = (PeerId([1; 32]), PeerId([2; 32]), PeerId([3; 32]));
        let id = |block: u32, index| MicrobatchId(Block(block).first().0 + index);
        let announcement = |end, open| AckRange { first: id(1, 0).0, end: id(1, end).0, open };
        let mut leases = [(0, a), (1, b)].map(|(block, feeder)| {
            LeasedRange::new(Lease { first: id(block, 0), count: 100, epoch: 0 }, feeder)
        });
        let own = leases[1].lease.ids();
        let clocks = |outcomes: &Outcomes| [outcomes.clock_at(id(0, 7)), outcomes.clock_at(id(1, 30))];
        assert_eq!(clocks(&outcomes), [7, 30]);

        outcomes.announce(b, &[announcement(11, vec![id(1, 8).0, id(1, 9).0])], std::slice::from_ref(&own));
        outcomes.settle(&leases);
        assert_eq!(clocks(&outcomes), [7 + 9, 30]);
        leases[1].feeder = heir;
        outcomes.settle(&leases);
        assert_eq!(clocks(&outcomes), [7 + 9, 30], "the successor has announced nothing yet");
        leases[1].tally.settled = 20;
        outcomes.settle(&leases);
        assert_eq!(clocks(&outcomes), [7 + 20, 30], "the table knows of later outcomes");
        assert_eq!(outcomes.clock_at(id(2, 0)), 20, "a block that no table has named yet");
        leases[1].lease = Lease { first: id(1, 15), count: 85, epoch: 0 };
        (leases[1].feeder, leases[1].tally.settled) = (b, 15);
        outcomes.announce(
            b,
            &[AckRange { first: id(1, 15).0, end: id(1, 25).0, open: vec![] }],
            std::slice::from_ref(&own),
        );
        outcomes.settle(&leases);
        assert_eq!(
            clocks(&outcomes),
            [7 + 25, 30],
            "the ids before the range had their outcome before this launch"
        );
    }

    #[test]
    fn a_feeder_that_announces_absurd_ranges_fills_no_memory() {
        let mut outcomes = Outcomes::default();
        for first in (0..10).map(|index| index * 1_000_000) {
            let open: Vec<u64> = (first..).step_by(2).take(ACK_OPEN_MAX).collect();
            let range = AckRange { first, end: first + 1_000_000, open };
            outcomes.announce(PeerId([1; 32]), &vec![range; 2], std::slice::from_ref(&(0..u64::MAX)));
        }
        let runs = outcomes.by_feeder.values().flat_map(|ended| ended.runs(0..u64::MAX)).count();
        assert!(runs <= RUNS_MAX, "{runs}");
    }
}
