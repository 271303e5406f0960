//! The ids that have their outcome, as ranges for the replicas.

use std::ops::Range;

use crate::{ACK_RANGES_MAX, AckRange, IdSet, Lease, MicrobatchId};

/// Consecutive leased ids.
#[derive(Clone, Debug)]
struct Leased {
    first: u64,
    /// The end of the ids that may be injected.
    end: u64,
    /// The end of the lease. No id from `end` to here is known to have been injected, and none will be.
    unused: u64,
}

/// The outcomes of every lease.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcement {
    /// In the order leased; ranges that touch are one.
    leased: Vec<Leased>,
    ended: IdSet,
    /// Outcomes since the last announcement.
    news: u64,
}

impl Announcement {
    /// Adds the ids of a lease; ids that were leased before change nothing. Leases overtake each other, so the range
    /// absorbs every range that it touches.
    pub(super) fn lease(&mut self, lease: &Lease) {
        let ids = lease.ids();
        let mut whole = Leased { first: ids.start, end: ids.end, unused: ids.end };
        self.leased.retain(|other| {
            let touches = other.first <= whole.end && whole.first <= other.end;
            if touches {
                whole.first = whole.first.min(other.first);
                whole.end = whole.end.max(other.end);
                whole.unused = whole.end;
            }
            !touches
        });
        self.leased.push(whole);
    }

    /// Takes over the range of a former feeder, of which the ids below `end` were injected.
    pub(super) fn take_over(&mut self, lease: &Lease, end: MicrobatchId) {
        let ids = lease.ids();
        let end = end.0.clamp(ids.start, ids.end);
        self.leased.push(Leased { first: ids.start, end, unused: ids.end });
        self.news += 1;
    }

    /// Whether the id belongs to this feeder, by a lease or a takeover.
    pub(super) fn covers(&self, microbatch: MicrobatchId) -> bool {
        self.leased.iter().any(|leased| (leased.first..leased.unused).contains(&microbatch.0))
    }

    /// The leased ids around `microbatch`, from the first up to it: those of its range that were injected before it.
    pub(super) fn before(&self, microbatch: MicrobatchId) -> Range<MicrobatchId> {
        let leased = self.leased.iter().find(|leased| (leased.first..leased.end).contains(&microbatch.0));
        leased.map_or(microbatch, |leased| MicrobatchId(leased.first))..microbatch
    }

    /// Adds the outcome of an id. Ids that are not leased are ignored.
    pub(super) fn end(&mut self, microbatch: MicrobatchId) {
        if self.leased.iter().any(|leased| (leased.first..leased.end).contains(&microbatch.0)) {
            self.ended.insert(microbatch);
            self.news += 1;
        }
    }

    /// Adds the outcomes of ids before a restart or a takeover.
    pub(super) fn end_run(&mut self, run: Range<u64>) {
        self.news += 1;
        self.ended.insert_run(run);
    }

    /// Outcomes that are not announced yet.
    pub(super) fn news(&self) -> u64 {
        self.news
    }

    /// The latest ranges, at most [`ACK_RANGES_MAX`], for every replica. All outcomes count as announced.
    pub(super) fn announce(&mut self) -> Vec<AckRange> {
        self.news = 0;
        let skipped = self.leased.len().saturating_sub(ACK_RANGES_MAX);
        let ranges = self.leased[skipped..].iter();
        ranges.map(|leased| AckRange::of(leased.first..leased.end, &self.ended)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(first: u64, count: u64) -> Lease {
        Lease { first: MicrobatchId(first), count, epoch: 0 }
    }

    fn announced(announcement: &mut Announcement) -> Vec<u64> {
        let ranges = announcement.announce();
        (0..600).filter(|&id| ranges.iter().any(|range| range.contains(MicrobatchId(id)))).collect()
    }

    #[test]
    fn leases_that_overtake_each_other_are_one_range() {
        let mut announcement = Announcement::default();
        for first in [20, 0, 10, 40, 30] {
            announcement.lease(&lease(first, 10));
        }
        announcement.end(MicrobatchId(3));
        assert_eq!(announcement.announce().len(), 1);
    }

    #[test]
    fn announces_exactly_the_ended_ids() {
        let mut announcement = Announcement::default();
        announcement.lease(&lease(10, 20));
        announcement.lease(&lease(30, 10));
        announcement.lease(&lease(90, 10));
        let ended = [10, 11, 13, 20, 29, 30, 38, 90, 99];
        for id in ended.into_iter().chain([500]) {
            announcement.end(MicrobatchId(id));
        }
        assert_eq!(announcement.news(), ended.len() as u64);
        assert_eq!(announcement.announce().iter().map(|range| range.end).collect::<Vec<_>>(), [39, 100]);
        assert_eq!((announced(&mut announcement), announcement.news()), (ended.to_vec(), 0));
    }

    #[test]
    fn of_a_range_taken_over_no_id_that_was_not_injected_is_announced() {
        let mut announcement = Announcement::default();
        announcement.take_over(&lease(10, 20), MicrobatchId(16));
        [10..12, 13..14, 15..16].into_iter().for_each(|run| announcement.end_run(run));
        announcement.end(MicrobatchId(12));
        announcement.end(MicrobatchId(20));
        assert_eq!(announced(&mut announcement), [10, 11, 12, 13, 15], "20 was never injected");
        assert!(announcement.covers(MicrobatchId(29)) && !announcement.covers(MicrobatchId(30)));
    }
}
