//! Which ids have their outcome, in the form replicas hear of it.

use std::collections::BTreeSet;

use crate::message::{SPAN_BYTES_MAX, SPANS_MAX};
use crate::{Lease, MicrobatchId, Span};

/// One run of leased ids that follow each other.
#[derive(Clone, Debug)]
struct Leased {
    first: u64,
    end: u64,
    /// Nothing from `end` to here was ever injected as far as anybody knows, and nothing ever will be.
    unused: u64,
    below: u64,
    beyond: BTreeSet<u64>,
}

/// The outcomes of everything leased.
#[derive(Clone, Debug, Default)]
pub(super) struct Announcement {
    /// By first id; ranges that touch are one.
    leased: Vec<Leased>,
    /// Outcomes since the last announcement.
    news: u64,
}

impl Announcement {
    /// Ids are this feeder's; those it had before change nothing.
    pub(super) fn lease(&mut self, lease: &Lease) {
        let (first, end) = (lease.first.0, lease.first.0.saturating_add(lease.count));
        match self.leased.last_mut() {
            Some(last) if first <= last.end && first >= last.first => {
                last.end = last.end.max(end);
                last.unused = last.end;
            }
            Some(_) | None => {
                let beyond = BTreeSet::new();
                self.leased.push(Leased { first, end, unused: end, below: first, beyond });
            }
        }
    }

    /// A range of another feeder is this one's: all below `end` has its outcome but for what is `open`.
    pub(super) fn take_over(
        &mut self,
        lease: &Lease,
        end: MicrobatchId,
        open: impl Iterator<Item = MicrobatchId>,
    ) {
        let (first, unused) = (lease.first.0, lease.first.0.saturating_add(lease.count));
        let open: BTreeSet<u64> = open.map(|id| id.0).collect();
        let end = end.0.clamp(first, unused);
        let below = open.first().copied().unwrap_or(end);
        let beyond = (below..end).filter(|id| !open.contains(id)).collect();
        let mut leased = Leased { first, end, unused, below, beyond };
        leased.settle();
        self.leased.push(leased);
        self.news += 1;
    }

    /// Whether this id was leased here.
    pub(super) fn covers(&self, microbatch: MicrobatchId) -> bool {
        self.leased.iter().any(|leased| (leased.first..leased.unused).contains(&microbatch.0))
    }

    /// An id has its outcome.
    pub(super) fn end(&mut self, microbatch: MicrobatchId) {
        let id = microbatch.0;
        let Some(leased) = self.leased.iter_mut().find(|leased| (leased.first..leased.end).contains(&id))
        else {
            return;
        };
        leased.beyond.insert(id);
        leased.settle();
        self.news += 1;
    }

    /// Outcomes nobody was told yet.
    pub(super) fn news(&self) -> u64 {
        self.news
    }

    /// The latest spans, to be told to everyone.
    pub(super) fn tell(&mut self) -> Vec<Span> {
        self.news = 0;
        let skipped = self.leased.len().saturating_sub(SPANS_MAX);
        self.leased[skipped..].iter().map(Leased::span).collect()
    }
}

impl Leased {
    fn settle(&mut self) {
        while self.beyond.remove(&self.below) {
            self.below += 1;
        }
    }

    fn span(&self) -> Span {
        let offsets = self.beyond.iter().map(|id| id - self.below);
        let mut beyond = Vec::new();
        for offset in offsets {
            let Ok(byte) = usize::try_from(offset / 8) else { break };
            if byte >= SPAN_BYTES_MAX {
                break;
            }
            beyond.resize(byte + 1, 0_u8);
            beyond[byte] |= 1 << (offset % 8);
        }
        Span { first: self.first, below: self.below, beyond }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lease(first: u64, count: u64) -> Lease {
        Lease { first: MicrobatchId(first), count, epoch: 0 }
    }

    #[test]
    fn tells_exactly_what_has_ended() {
        let mut announcement = Announcement::default();
        announcement.lease(&lease(10, 20));
        announcement.lease(&lease(30, 10));
        announcement.lease(&lease(90, 10));
        let ended = [10, 11, 13, 20, 29, 30, 38, 90, 99];
        for id in ended.into_iter().chain([500]) {
            announcement.end(MicrobatchId(id));
        }
        assert_eq!(announcement.news(), ended.len() as u64);
        let spans = announcement.tell();
        assert_eq!(spans.len(), 2);
        let told: Vec<u64> =
            (0..600).filter(|&id| spans.iter().any(|span| span.contains(MicrobatchId(id)))).collect();
        assert_eq!(told, ended);
        assert_eq!((spans[0].below, announcement.news()), (12, 0));
    }
}
