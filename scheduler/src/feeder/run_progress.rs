//! How far the run has come: this feeder's own blocks, counted here, and those of other feeders, as the coordinator
//! tells.

use std::collections::BTreeMap;

use crate::{Block, BlockTally, Duration, MicrobatchId, RunTally, Time};

/// Replies of the coordinator that are older than this are lost with their connection.
const REPLY_AGE_MAX: Duration = Duration::from_secs(5);

/// The progress of the run as a feeder knows it.
#[derive(Clone, Debug, Default)]
pub(super) struct RunProgress {
    own: BTreeMap<Block, BlockTally>,
    others: RunTally,
    /// Until then the coordinator's word may be older than the latest takeover, and count its block as another's.
    stale_until: Time,
}

impl RunProgress {
    /// The ids of a block below `next` are leased.
    pub(super) fn lease_up_to(&mut self, next: MicrobatchId) {
        let tally = self.tally(next.block());
        tally.leased = tally.leased.max(next.index());
    }

    /// A training microbatch was sent for the first time.
    pub(super) fn inject(&mut self, id: MicrobatchId) {
        let tally = self.tally(id.block());
        tally.injected = tally.injected.max(id.index() + 1);
        tally.leased = tally.leased.max(tally.injected);
    }

    /// A training microbatch has its outcome.
    pub(super) fn settle(&mut self, id: MicrobatchId) {
        self.tally(id.block()).settled += 1;
    }

    /// The progress of a block as a takeover or a journal says.
    pub(super) fn restore(&mut self, tally: BlockTally) {
        self.own.insert(tally.block, tally);
    }

    /// A takeover begins: a block that belonged to another feeder is this feeder's from now on.
    pub(super) fn begin_takeover(&mut self, now: Time) {
        self.others = RunTally::default();
        self.stale_until = now + REPLY_AGE_MAX;
    }

    /// The coordinator told how far other feeders have come.
    pub(super) fn hear(&mut self, now: Time, others: RunTally) {
        if now >= self.stale_until {
            self.others = others;
        }
    }

    /// The blocks that this feeder decides about.
    pub(super) fn tallies(&self) -> Vec<BlockTally> {
        self.own.values().copied().collect()
    }

    /// The first of these blocks.
    pub(super) fn first_block(&self) -> Option<Block> {
        self.own.first_key_value().map(|(&block, _)| block)
    }

    /// Microbatches of other feeders that have their outcome.
    pub(super) fn settled_elsewhere(&self) -> u64 {
        self.others.settled
    }

    fn tally(&mut self, block: Block) -> &mut BlockTally {
        self.own.entry(block).or_insert(BlockTally::new(block))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_that_is_taken_over_does_not_count_twice() {
        let (mut progress, before) = (RunProgress::default(), RunTally { injected: 40, settled: 40 });
        progress.hear(Time(0), before);
        assert_eq!(progress.settled_elsewhere(), 40);
        progress.begin_takeover(Time(0));
        progress.hear(Time(1), before);
        assert_eq!(progress.settled_elsewhere(), 0, "the word may be of the time before");
        progress.hear(Time(0) + REPLY_AGE_MAX, RunTally { injected: 9, settled: 7 });
        assert_eq!(progress.settled_elsewhere(), 7);
    }
}
