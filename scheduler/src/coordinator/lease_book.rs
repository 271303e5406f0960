//! The book of leases: the block of each feeder, and how far the run has come.
//!
//! A feeder gets ids of its block a few at a time, and all feeders together no more than the run has microbatches. Their
//! reports say how many ids they have injected and settled. Ids that were given out and will not be injected go back to
//! the run: a feeder that has left injects none, a successor injects none of the block that it takes over, and a feeder
//! that resumes says which it does not have.
//!
//! The table names every block, and a reserve of its ids: no more are given out before a table with a greater reserve. A
//! coordinator that was started again restores the book from it: the blocks and their feeders as they were, each with
//! its whole reserve until the feeder says how many ids it has, and the progress that was known when the table was made.

use crate::lease::{BlockTally, LEASE_COUNT_MAX, LEASES_MAX, Lease, LeaseRefusal, LeasedRange, RunTally};
use crate::{Block, Incarnation, Instance, Membership, MicrobatchId, Rng};

/// Blocks that are left out after a restart: a table that was not returned may have named them.
const BLOCKS_SKIPPED: u32 = 64;

/// The blocks of a run.
#[derive(Clone, Debug)]
pub(super) struct LeaseBook {
    total: u64,
    /// By block, at most [`LEASES_MAX`].
    entries: Vec<Entry>,
    next_block: u32,
    /// The table names other ranges than before.
    changed: bool,
}

/// A block and its feeder.
#[derive(Clone, Debug)]
struct Entry {
    holder: Instance,
    /// The start that asked for ids last; `None` if none has since the coordinator was started.
    leased_to: Option<Instance>,
    epoch: u64,
    /// `tally.leased` before the latest lease.
    latest: u64,
    /// Ids that are given out at most before the next table.
    reserve: u64,
    /// Ids of the range that the table names.
    range: u64,
    tally: BlockTally,
    /// The holder injects no more ids, and each that it injected has its outcome.
    closed: bool,
}

impl LeaseBook {
    /// The book of a run of `total` microbatches.
    #[must_use]
    pub(super) fn new(total: u64) -> Self {
        Self { total, entries: Vec::new(), next_block: 0, changed: false }
    }

    /// The book of a coordinator that was started again and knows no block yet. It draws the first block from the number of
    /// its `launch`: if no member returns the table of the run before, its ids are others.
    #[must_use]
    pub(super) fn of_later_start(total: u64, launch: u64) -> Self {
        let drawn = Rng::new(launch).below(u64::from(Block::COUNT / 2));
        Self { next_block: u32::try_from(drawn).unwrap_or(0), ..Self::new(total) }
    }

    /// Leases up to `count` ids, and no more than the `feeders`-th part of what is left of the run; none if nothing is
    /// left. `next` is the first id that the feeder does not have, `None` if it has no block. A repeated request gets
    /// the same lease.
    ///
    /// # Errors
    /// If `count` is 0, or no blocks are left.
    pub(super) fn lease(
        &mut self,
        holder: Instance,
        next: Option<MicrobatchId>,
        count: u64,
        feeders: usize,
    ) -> Result<Lease, LeaseRefusal> {
        if count == 0 {
            return Err(LeaseRefusal::Empty);
        }
        let (place, next) = match self.block_of(holder, next) {
            Some(place) => (place, next.map_or(0, MicrobatchId::index)),
            None => (self.open(holder)?, 0),
        };
        self.changed |= self.entries[place].resume(holder, next);
        let share = self.free().div_ceil(feeders.max(1) as u64);
        let lease = self.entries[place].extend(next, count.min(share));
        self.changed |= self.entries[place].raise_reserve();
        Ok(lease)
    }

    /// Takes the report of a feeder about the blocks that it holds. It cannot have more ids than it was given.
    pub(super) fn report(&mut self, holder: Instance, tallies: &[BlockTally]) {
        for tally in tallies.iter().take(LEASES_MAX) {
            let free = self.free();
            let place = self.entries.binary_search_by_key(&tally.block, |entry| entry.tally.block);
            let entry = place.ok().and_then(|place| self.entries.get_mut(place));
            if let Some(entry) = entry.filter(|entry| entry.holder.peer == holder.peer) {
                // A feeder that was started again with its journal knows its blocks.
                entry.holder = holder;
                entry.note(tally, free);
            }
        }
    }

    /// Gives every block whose holder is `gone` to a successor, one epoch up. Returns whether there was such a block.
    pub(super) fn succeed(&mut self, to: Instance, gone: impl Fn(Instance) -> bool) -> bool {
        let total = self.total;
        let orphans = self.entries.iter_mut().filter(|entry| !entry.closed && gone(entry.holder));
        let passed = orphans.map(|orphan| orphan.pass_to(to, total)).count();
        self.changed |= passed > 0;
        passed > 0
    }

    /// The feeder injects no more ids: its blocks without an open id are closed.
    pub(super) fn close_settled(&mut self, holder: Instance) {
        let open = |entry: &&mut Entry| !entry.closed && entry.holder == holder;
        for entry in self.entries.iter_mut().filter(open).filter(|entry| entry.is_settled()) {
            entry.close();
            self.changed = true;
        }
    }

    /// The holder of a block that is not closed, for which `wanted` holds.
    #[must_use]
    pub(super) fn find_holder(&self, wanted: impl Fn(Instance) -> bool) -> Option<Instance> {
        self.entries
            .iter()
            .filter(|entry| !entry.closed)
            .map(|entry| entry.holder)
            .find(|&holder| wanted(holder))
    }

    /// The ranges by first id, at most [`LEASES_MAX`]. A closed one has no ids.
    #[must_use]
    pub(super) fn ranges(&self) -> Vec<LeasedRange> {
        self.entries.iter().map(Entry::leased_range).collect()
    }

    /// Takes over the ranges that a table names. What is known of a range already, and newer, stays.
    pub(super) fn restore(&mut self, table: &Membership) {
        for leased in &table.leases {
            let restored = Entry::restored(leased, table);
            match self.entries.binary_search_by_key(&restored.tally.block, |entry| entry.tally.block) {
                Ok(place) => self.entries[place].follow(restored),
                Err(place) if self.entries.len() < LEASES_MAX => self.entries.insert(place, restored),
                Err(_) => {}
            }
        }
        let end = self.entries.last().map_or(0, |entry| entry.tally.block.0.saturating_add(1));
        self.next_block = self.next_block.max(end.saturating_add(BLOCKS_SKIPPED));
        self.changed = true;
    }

    /// The progress of the run.
    #[must_use]
    pub(super) fn progress(&self) -> RunTally {
        self.sum(|_| true)
    }

    /// The progress in the blocks of other feeders.
    #[must_use]
    pub(super) fn others(&self, holder: Instance) -> RunTally {
        self.sum(|entry| entry.holder.peer != holder.peer)
    }

    /// Whether every microbatch of the run has its outcome.
    #[must_use]
    pub(super) fn is_over(&self) -> bool {
        self.progress().settled >= self.total
    }

    /// Whether [`LeaseBook::ranges`] has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    /// Ids that may still be given out.
    fn free(&self) -> u64 {
        self.entries.iter().fold(self.total, |free, entry| free.saturating_sub(entry.tally.leased))
    }

    /// The block that a request is about.
    fn block_of(&self, holder: Instance, next: Option<MicrobatchId>) -> Option<usize> {
        let is_meant = |entry: &Entry| match next {
            Some(next) => entry.tally.block == next.block() && entry.holder.peer == holder.peer,
            // The reply to its first request was lost.
            None => entry.leased_to.unwrap_or(entry.holder) == holder,
        };
        self.entries.iter().rposition(|entry| entry.epoch == 0 && is_meant(entry))
    }

    /// Opens a block for a feeder that has none. Blocks of its former starts are taken over: it knows nothing of them.
    fn open(&mut self, holder: Instance) -> Result<usize, LeaseRefusal> {
        let block = Block(self.next_block);
        if self.entries.len() >= LEASES_MAX || block.0 >= Block::COUNT {
            return Err(LeaseRefusal::Exhausted);
        }
        self.succeed(holder, |former| former.peer == holder.peer && former != holder);
        self.entries.push(Entry::new(block, holder));
        self.next_block += 1;
        self.changed = true;
        Ok(self.entries.len() - 1)
    }

    fn sum(&self, which: impl Fn(&Entry) -> bool) -> RunTally {
        let add = |sum: RunTally, entry: &Entry| RunTally {
            injected: sum.injected.saturating_add(entry.tally.injected),
            settled: sum.settled.saturating_add(entry.tally.settled),
        };
        self.entries.iter().filter(|entry| which(entry)).fold(RunTally::default(), add)
    }
}

impl Entry {
    fn new(block: Block, holder: Instance) -> Self {
        Self {
            holder,
            leased_to: Some(holder),
            epoch: 0,
            latest: 0,
            reserve: 0,
            range: Block::IDS,
            tally: BlockTally::new(block),
            closed: false,
        }
    }

    fn restored(leased: &LeasedRange, table: &Membership) -> Self {
        let LeasedRange { lease, feeder, tally } = *leased;
        let holder = table.instance(feeder).unwrap_or(Instance::new(feeder, Incarnation::default()));
        let reopens = !leased.is_open() && lease.epoch == 0;
        Self {
            holder,
            leased_to: None,
            epoch: lease.epoch,
            latest: tally.leased,
            reserve: tally.leased,
            range: if reopens { Block::IDS } else { lease.count },
            tally,
            closed: !leased.is_open(),
        }
    }

    /// Another table was returned, which may be newer.
    fn follow(&mut self, restored: Self) {
        if restored.epoch > self.epoch {
            *self = restored;
        } else if restored.epoch == self.epoch {
            self.tally.rise_to(&restored.tally);
            self.closed &= restored.closed;
        }
    }

    /// The request of a start that was not heard before: it has the ids up to `next`, and no others. Returns whether the
    /// table names the block again.
    fn resume(&mut self, holder: Instance, next: u64) -> bool {
        let reopened = std::mem::take(&mut self.closed);
        if self.leased_to != Some(holder) || reopened {
            (self.holder, self.leased_to) = (holder, Some(holder));
            (self.tally.leased, self.latest) = (next, next);
        }
        reopened
    }

    /// Gives out `count` ids more. If the holder does not have the ids of the latest lease, its reply was lost and the
    /// lease is repeated; an older request gets nothing.
    fn extend(&mut self, next: u64, count: u64) -> Lease {
        let lease = |first: u64, count| Lease {
            first: MicrobatchId(self.tally.block.first().0.saturating_add(first)),
            count,
            epoch: 0,
        };
        let leased = self.tally.leased;
        if next < leased {
            let repeated = if next == self.latest { leased - next } else { 0 };
            return lease(next, repeated);
        }
        let first = next.min(Block::IDS);
        let count = count.min(LEASE_COUNT_MAX).min(Block::IDS - first);
        let given = lease(first, count);
        if count > 0 {
            (self.latest, self.tally.leased) = (first, first + count);
        }
        given
    }

    /// Makes room for the ids given out, and for as many more: a long run needs few tables. Returns whether the table
    /// names a greater reserve.
    fn raise_reserve(&mut self) -> bool {
        let raises = self.reserve < self.tally.leased;
        if raises {
            self.reserve = self.tally.leased.saturating_mul(2).min(Block::IDS);
        }
        raises
    }

    /// A coordinator that was started again may have given out more than it knows, of what is `free`.
    fn note(&mut self, tally: &BlockTally, free: u64) {
        let given = match self.leased_to {
            Some(_) if self.epoch == 0 => self.tally.leased,
            _ => self.tally.leased.saturating_add(free).min(self.range),
        };
        let leased = tally.leased.min(given);
        let injected = tally.injected.min(leased);
        let reported = BlockTally { leased, injected, settled: tally.settled.min(injected), ..self.tally };
        if self.epoch > 0 {
            // The successor has decided how many were injected; it injects no others.
            self.tally = reported;
        } else {
            self.tally.rise_to(&reported);
        }
    }

    /// The successor gets the ids that were given out. A coordinator that was started again knows only the least of them,
    /// unless the holder has asked since; they are no more than the run has in all.
    fn pass_to(&mut self, successor: Instance, total: u64) {
        if self.epoch == 0 {
            self.range = if self.leased_to.is_some() { self.tally.leased } else { total.min(Block::IDS) };
        }
        self.holder = successor;
        self.epoch += 1;
        if self.range == 0 {
            self.close();
        }
    }

    fn is_settled(&self) -> bool {
        self.tally.settled == self.tally.injected
    }

    fn close(&mut self) {
        self.closed = true;
        self.tally.leased = self.tally.injected;
    }

    fn leased_range(&self) -> LeasedRange {
        let count = if self.closed { 0 } else { self.range };
        let lease = Lease { first: self.tally.block.first(), count, epoch: self.epoch };
        let gives_out = self.epoch == 0 && !self.closed;
        let leased = if gives_out { self.reserve.max(self.tally.leased) } else { self.tally.leased };
        LeasedRange { lease, feeder: self.holder.peer, tally: BlockTally { leased, ..self.tally } }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Member, MemberState, PeerId};

    fn feeder(key: u8) -> Instance {
        start(key, 1)
    }

    fn start(key: u8, incarnation: u64) -> Instance {
        Instance::new(PeerId([key; 32]), Incarnation(incarnation))
    }

    fn id(block: u32, index: u64) -> MicrobatchId {
        MicrobatchId(Block(block).first().0 + index)
    }

    fn leased(block: u32, index: u64, count: u64) -> Result<Lease, LeaseRefusal> {
        Ok(Lease { first: id(block, index), count, epoch: 0 })
    }

    fn tally(block: u32, injected: u64, settled: u64) -> BlockTally {
        BlockTally { block: Block(block), leased: injected, injected, settled }
    }

    fn open(book: &LeaseBook) -> usize {
        book.ranges().iter().filter(|range| range.is_open()).count()
    }

    fn table(book: &LeaseBook, members: &[Instance]) -> Membership {
        let member =
            |&instance| Member { instance, state: MemberState::Feeding, address: ([127, 0, 0, 1], 1).into() };
        Membership {
            members: members.iter().map(member).collect(),
            leases: book.ranges(),
            ..Membership::default()
        }
    }

    #[test]
    fn each_feeder_gets_ids_of_its_own_block_and_all_together_the_whole_run() {
        let mut book = LeaseBook::new(40);
        let (a, b) = (feeder(1), feeder(2));
        assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 10));
        assert_eq!(book.lease(b, None, 10, 2), leased(1, 0, 10));
        assert_eq!(book.lease(a, Some(id(0, 10)), 100, 2), leased(0, 10, 10), "half of what is left");
        assert_eq!(book.lease(b, Some(id(1, 10)), 100, 1), leased(1, 10, 10));
        assert_eq!(book.lease(b, Some(id(1, 20)), 100, 1), leased(1, 20, 0));
        assert_eq!(book.lease(a, Some(id(0, 20)), 0, 1), Err(LeaseRefusal::Empty));
        assert_eq!(book.ranges().iter().map(|range| range.feeder).collect::<Vec<_>>(), [a.peer, b.peer]);
        book.report(a, &[tally(0, 20, 20), tally(1, 20, 20)]);
        assert_eq!((book.is_over(), book.others(b)), (false, RunTally { injected: 20, settled: 20 }));
        book.report(b, &[tally(1, 20, 20)]);
        assert!(book.is_over());
    }

    #[test]
    fn a_long_run_of_two_feeders_takes_no_more_room_than_a_short_one() {
        let mut book = LeaseBook::new(u64::MAX);
        let mut next = [None, None];
        for turn in 0..200_000 {
            let (index, holder) = (turn % 2, feeder((turn % 2) as u8));
            let lease = book.lease(holder, next[index], 1_024, 2).unwrap();
            assert_eq!(lease.count, 1_024);
            next[index] = Some(MicrobatchId(lease.ids().end));
        }
        assert_eq!(book.entries.len(), 2);
    }

    #[test]
    fn a_repeated_request_gets_the_same_ids_and_an_old_one_none() {
        let mut book = LeaseBook::new(100);
        let a = feeder(1);
        assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 10));
        assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 10));
        assert_eq!(book.lease(a, Some(id(0, 10)), 10, 1), leased(0, 10, 10));
        assert_eq!(book.lease(a, Some(id(0, 10)), 10, 1), leased(0, 10, 10));
        assert_eq!(book.lease(a, None, 10, 1), leased(0, 0, 0));
        assert_eq!(book.lease(a, Some(id(0, 20)), 100, 1), leased(0, 20, 80));
    }

    #[test]
    fn a_feeder_settles_no_more_than_it_was_given() {
        let mut book = LeaseBook::new(100);
        let (liar, b) = (feeder(1), feeder(2));
        book.lease(liar, None, 10, 1).unwrap();
        book.lease(b, None, 10, 2).unwrap();
        book.report(liar, &[tally(0, u64::MAX, u64::MAX), tally(1, u64::MAX, u64::MAX)]);
        assert_eq!(book.progress(), RunTally { injected: 10, settled: 10 });
        assert_eq!(book.lease(b, Some(id(1, 10)), 100, 1), leased(1, 10, 80), "the rest of the run is left");

        let mut restarted = LeaseBook::new(100);
        restarted.restore(&table(&book, &[liar, b]));
        restarted.report(liar, &[tally(0, u64::MAX, u64::MAX)]);
        assert!(restarted.progress().settled <= 100);
    }

    #[test]
    fn a_feeder_that_resumes_gives_back_what_it_does_not_have() {
        let mut book = LeaseBook::new(30);
        book.lease(feeder(1), None, 20, 1).unwrap();
        book.report(start(1, 2), &[tally(0, 8, 3)]);
        assert_eq!(book.others(start(1, 2)), RunTally::default());
        assert_eq!(book.lease(start(1, 2), Some(id(0, 8)), 100, 1), leased(0, 8, 22));
    }

    #[test]
    fn a_feeder_that_resumes_and_needs_no_ids_ends_the_run() {
        let mut book = LeaseBook::new(10);
        book.lease(feeder(1), None, 10, 1).unwrap();
        book.report(start(1, 2), &[tally(0, 10, 10)]);
        assert!(book.is_over());
        book.close_settled(start(1, 2));
        assert_eq!(open(&book), 0);
    }

    #[test]
    fn a_feeder_that_has_left_keeps_no_ids_from_the_run() {
        let mut book = LeaseBook::new(30);
        let (a, b) = (feeder(1), feeder(2));
        book.lease(a, None, 20, 1).unwrap();
        book.report(a, &[tally(0, 6, 5)]);
        book.close_settled(a);
        assert_eq!(open(&book), 1, "an id is open");
        book.report(a, &[tally(0, 6, 6)]);
        book.close_settled(a);
        assert_eq!(open(&book), 0);
        assert_eq!(book.lease(b, None, 100, 1), leased(1, 0, 24));
        book.report(b, &[tally(1, 24, 24)]);
        assert!(book.is_over());
        assert_eq!(book.lease(start(1, 2), Some(id(0, 6)), 5, 1), leased(0, 6, 0), "it may come back");
        assert_eq!(open(&book), 2);
    }

    #[test]
    fn a_successor_gets_the_blocks_of_the_gone_and_says_how_many_ids_were_injected() {
        let mut book = LeaseBook::new(40);
        let [dead, alive, successor] = [1, 2, 3].map(feeder);
        book.lease(dead, None, 10, 1).unwrap();
        book.lease(alive, None, 10, 1).unwrap();
        book.report(dead, &[tally(0, 9, 6)]);
        assert!(book.succeed(successor, |holder| holder != alive));
        assert!(!book.succeed(successor, |holder| holder == dead));
        let lease = Lease { first: MicrobatchId(0), count: 10, epoch: 1 };
        let tally_then = BlockTally { leased: 10, ..tally(0, 9, 6) };
        assert_eq!(book.ranges()[0], LeasedRange { lease, feeder: successor.peer, tally: tally_then });
        assert_eq!(book.others(alive), RunTally { injected: 9, settled: 6 });
        book.report(dead, &[tally(0, 10, 10)]);
        book.report(successor, &[tally(0, 8, 7)]);
        assert_eq!(book.others(alive), RunTally { injected: 8, settled: 7 });
        assert_eq!(book.lease(successor, None, 100, 1), leased(2, 0, 22), "two ids were never injected");
        assert!(book.succeed(dead, |holder| holder == successor), "a successor can die too");
        assert_eq!(book.ranges().iter().map(|range| range.lease.epoch).collect::<Vec<_>>(), [2, 0, 1]);
    }

    #[test]
    fn a_start_without_a_journal_takes_over_what_its_former_start_left() {
        let mut book = LeaseBook::new(40);
        book.lease(feeder(1), None, 10, 1).unwrap();
        assert_eq!(book.lease(start(1, 2), None, 10, 1), leased(1, 0, 10));
        let epochs: Vec<_> = book.ranges().iter().map(|range| range.lease.epoch).collect();
        assert_eq!(epochs, [1, 0]);
    }

    #[test]
    fn a_book_that_is_restored_gives_out_no_id_twice_and_knows_how_far_the_run_has_come() {
        let mut before = LeaseBook::new(100);
        let [gone, dead, alive, mute] = [1, 2, 3, 4].map(feeder);
        for holder in [gone, dead, alive, mute] {
            before.lease(holder, None, 10, 1).unwrap();
        }
        before.report(gone, &[tally(0, 8, 8)]);
        before.close_settled(gone);
        before.report(dead, &[tally(1, 7, 5)]);
        let old = table(&before, &[dead, alive, mute]);
        before.lease(alive, Some(id(2, 10)), 10, 1).unwrap();

        let mut book = LeaseBook::new(100);
        book.restore(&old);
        assert_eq!(book.ranges(), old.leases);
        assert_eq!(book.progress(), RunTally { injected: 15, settled: 13 });
        assert_eq!(book.lease(alive, Some(id(2, 20)), 10, 1), leased(2, 20, 10));
        assert_eq!(book.lease(mute, None, 10, 1), leased(3, 0, 10), "it had no reply");
        assert_eq!(book.lease(feeder(5), None, 10, 1), leased(4 + BLOCKS_SKIPPED, 0, 10));
        book.report(alive, &[BlockTally { leased: 30, ..tally(2, 25, 20) }]);
        let reserve_of_dead = 20;
        let left = 100 - 8 - reserve_of_dead - 30 - 10 - 10;
        assert_eq!(book.lease(feeder(5), Some(id(4 + BLOCKS_SKIPPED, 10)), 99, 1).unwrap().count, left);
        assert!(book.succeed(alive, |holder| holder.peer == dead.peer));
        assert_eq!(
            book.ranges()[1].lease.count,
            100,
            "it may have had more than the table knew, but not than the run has"
        );
        assert_eq!(book.lease(start(1, 2), Some(id(0, 8)), 5, 1), leased(0, 8, 0), "it may come back");
    }

    #[test]
    fn ids_given_out_since_the_table_are_given_out_to_no_other_feeder() {
        let mut before = LeaseBook::new(40);
        let [a, b] = [1, 2].map(feeder);
        before.lease(a, None, 10, 1).unwrap();
        let old = table(&before, &[a, b]);
        assert!(before.take_changed());
        before.lease(a, Some(id(0, 10)), 10, 1).unwrap();
        assert!(!before.take_changed(), "the reserve suffices");

        let mut book = LeaseBook::new(40);
        book.restore(&old);
        let given = book.lease(b, None, 100, 1).unwrap();
        assert_eq!(given.count, 20, "whether or not the other feeder has reported");
        let first = given.first.0 + 20;
        assert_eq!(book.lease(a, Some(id(0, 20)), 100, 1), leased(0, 20, 0));
        book.report(a, &[tally(0, 20, 20)]);
        assert_eq!(book.lease(b, Some(MicrobatchId(first)), 100, 1).unwrap().count, 0);

        before.lease(a, Some(id(0, 20)), 1, 1).unwrap();
        assert!(before.take_changed(), "a greater reserve comes with a table");
    }

    #[test]
    fn of_two_tables_the_newer_counts_whichever_comes_first() {
        let mut before = LeaseBook::new(100);
        let (a, b) = (feeder(1), feeder(2));
        before.lease(a, None, 10, 1).unwrap();
        let old = table(&before, &[a]);
        before.report(a, &[tally(0, 6, 5)]);
        before.succeed(b, |holder| holder == a);
        let new = table(&before, &[b]);
        for tables in [[&old, &new], [&new, &old]] {
            let mut book = LeaseBook::new(100);
            tables.into_iter().for_each(|table| book.restore(table));
            assert_eq!(book.ranges(), new.leases);
            assert!(book.find_holder(|holder| holder == b).is_some());
        }
    }

    #[test]
    fn absurd_reports_overflow_nothing() {
        let mut book = LeaseBook::new(u64::MAX);
        let a = feeder(1);
        book.lease(a, None, 1, 1).unwrap();
        book.report(a, &[tally(0, u64::MAX, u64::MAX), tally(9, 1, 1)]);
        assert_eq!(book.progress().settled, 1);
        assert_eq!(book.lease(a, Some(MicrobatchId(u64::MAX)), 5, 1).unwrap().count, 5, "as a new block");
    }
}
