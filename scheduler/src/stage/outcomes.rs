//! Which microbatches have their outcome, as the feeders announce it.

use std::collections::BTreeMap;

use crate::message::{SPAN_BYTES_MAX, SPANS_MAX};
use crate::{Lease, MicrobatchId, PeerId, Span};

/// Feeders whose announcements are remembered, at most; the one with the lowest key gives way.
const FEEDERS_MAX: usize = 64;

/// What each feeder has announced. A frame about an id in it is late.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcomes {
    by_feeder: BTreeMap<PeerId, BTreeMap<u64, Span>>,
}

impl Outcomes {
    /// Adds an announcement. Announcements overtake each other, so an older one takes nothing back. What is longer than
    /// allowed is cut off: those ids are announced again later.
    pub(super) fn announce(&mut self, feeder: PeerId, spans: Vec<Span>) {
        if self.by_feeder.len() >= FEEDERS_MAX && !self.by_feeder.contains_key(&feeder) {
            self.by_feeder.pop_first();
        }
        let known = self.by_feeder.entry(feeder).or_default();
        for mut span in spans.into_iter().take(SPANS_MAX) {
            span.beyond.truncate(SPAN_BYTES_MAX);
            match known.get_mut(&span.first) {
                Some(before) if before.below > span.below => {}
                Some(before) if before.below == span.below => unite(&mut before.beyond, &span.beyond),
                Some(_) | None => {
                    known.insert(span.first, span);
                }
            }
        }
        while known.len() > SPANS_MAX {
            known.pop_first();
        }
    }

    /// The latest spans that tell of this range.
    pub(super) fn within(&self, lease: &Lease) -> Vec<Span> {
        let end = lease.first.0.saturating_add(lease.count);
        let overlaps = |span: &&Span| {
            let last = span.below.saturating_add(8 * span.beyond.len() as u64);
            span.first < end && last > lease.first.0
        };
        let spans = self.by_feeder.values().flat_map(BTreeMap::values);
        let mut spans: Vec<_> = spans.filter(overlaps).cloned().collect();
        spans.sort_by_key(|span| span.below);
        spans.split_off(spans.len().saturating_sub(SPANS_MAX))
    }

    pub(super) fn contain(&self, microbatch: MicrobatchId) -> bool {
        self.by_feeder.values().flat_map(BTreeMap::values).any(|span| span.contains(microbatch))
    }
}

fn unite(known: &mut Vec<u8>, news: &[u8]) {
    known.resize(known.len().max(news.len()), 0);
    known.iter_mut().zip(news).for_each(|(known, news)| *known |= news);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(below: u64, beyond: &[u8]) -> Vec<Span> {
        vec![Span { first: 4, below, beyond: beyond.to_vec() }]
    }

    #[test]
    fn an_announcement_that_was_overtaken_takes_nothing_back() {
        let mut outcomes = Outcomes::default();
        let feeder = PeerId([1; 32]);
        for spans in [span(8, &[0b100]), span(8, &[0b10, 1]), span(6, &[]), span(4, &[0])] {
            outcomes.announce(feeder, spans);
        }
        let ended: Vec<_> = (0..40).filter(|&id| outcomes.contain(MicrobatchId(id))).collect();
        assert_eq!(ended, [4, 5, 6, 7, 9, 10, 16]);
    }
}
