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
//!
//! A launch that begins at a checkpoint has the blocks of the launch before, and no feeder: they are **vacant**. The next
//! feeders get them, and go on behind as many ids as had their outcome.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::lease::{
    BlockTally, LEASE_COUNT_MAX, LEASES_MAX, Lease, LeaseRefusal, LeasedRange, NO_FEEDER, RunTally,
};
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
    /// Blocks of which something else is known.
    unlogged: BTreeSet<Block>,
}

/// A block and its feeder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    holder: Instance,
    /// The start that asked for ids last; `None` if none has since the coordinator was started.
    leased_to: Option<Instance>,
    epoch: u64,
    /// Ids that had their outcome when the launch began: feeders go on behind them.
    #[serde(default)]
    first: u64,
    /// `tally.leased` before the latest lease.
    latest: u64,
    /// Ids that are given out at most before the next table.
    reserve: u64,
    /// The end of the range that the table names, as a number of ids of the block.
    range: u64,
    tally: BlockTally,
    /// The holder injects no more ids, and each that it injected has its outcome.
    closed: bool,
}

impl LeaseBook {
    /// The book of a run of `total` microbatches.
    #[must_use]
    pub(super) fn new(total: u64) -> Self {
        Self { total, entries: Vec::new(), next_block: 0, changed: false, unlogged: BTreeSet::new() }
    }

    /// The book of a run that goes on at a checkpoint.
    #[must_use]
    pub(super) fn at(total: u64, cursor: &[BlockTally]) -> Self {
        let mut book = Self::new(total);
        for tally in cursor.iter().take(LEASES_MAX) {
            book.recall(Entry::vacant(tally));
            book.unlogged.insert(tally.block);
        }
        book.next_block = book.end();
        book
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
    /// the same lease. A feeder cannot have more ids than it was given, so a greater `next` is cut down.
    ///
    /// A feeder whose ids are not of its own block, since they have another feeder or are those of another run, learns so
    /// from a lease in another block than its own, and ends. That block is opened once for each feeder: from then on
    /// the lease has no ids.
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
        let place = self.block_of(holder, next);
        if place.is_none()
            && let Some(own) = next.and_then(|_| self.kept_by(holder))
        {
            return Ok(own.no_ids());
        }
        let (place, next) = match place {
            Some(place) => (place, next),
            None => (self.open(holder, next.is_none())?, None),
        };
        let next = next.map_or(self.entries[place].first, MicrobatchId::index);
        let next = next.min(self.entries[place].given_at_most(self.free()));
        self.changed |= self.entries[place].resume(holder, next);
        let share = self.free().div_ceil(feeders.max(1) as u64);
        let lease = self.entries[place].extend(next, count.min(share));
        self.changed |= self.entries[place].raise_reserve();
        self.unlogged.insert(lease.first.block());
        Ok(lease)
    }

    /// Takes the report of a feeder about the blocks that it holds. It cannot have more ids than it was given.
    pub(super) fn report(&mut self, holder: Instance, tallies: &[BlockTally]) {
        for tally in tallies.iter().take(LEASES_MAX) {
            let free = self.free();
            let place = self.place_of(tally.block);
            let entry = place.ok().and_then(|place| self.entries.get_mut(place));
            if let Some(entry) = entry.filter(|entry| entry.holder.peer == holder.peer) {
                // A feeder that was started again with its journal knows its blocks.
                let known = (entry.holder, entry.tally);
                entry.holder = holder;
                entry.note(tally, free);
                if known != (entry.holder, entry.tally) {
                    self.unlogged.insert(tally.block);
                }
            }
        }
    }

    /// Gives every block whose holder is `gone` to a successor, one epoch up. Returns whether there was such a block.
    pub(super) fn succeed(&mut self, to: Instance, gone: impl Fn(Instance) -> bool) -> bool {
        let total = self.total;
        let orphans = self.entries.iter_mut().filter(|entry| !entry.closed && gone(entry.holder));
        let pass = |orphan: &mut Entry| {
            orphan.pass_to(to, total);
            orphan.block()
        };
        let passed: Vec<_> = orphans.map(pass).collect();
        self.changed |= !passed.is_empty();
        self.unlogged.extend(&passed);
        !passed.is_empty()
    }

    /// The feeder injects no more ids: its blocks without an open id are closed.
    pub(super) fn close_settled(&mut self, holder: Instance) {
        let open = |entry: &&mut Entry| !entry.closed && entry.holder == holder;
        for entry in self.entries.iter_mut().filter(open).filter(|entry| entry.is_settled()) {
            entry.close();
            self.changed = true;
            self.unlogged.insert(entry.block());
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
            self.unlogged.insert(restored.block());
            match self.place_of(restored.block()) {
                Ok(place) => self.entries[place].follow(restored),
                Err(place) if self.entries.len() < LEASES_MAX => self.entries.insert(place, restored),
                Err(_) => {}
            }
        }
        self.next_block = self.next_block.max(self.end().saturating_add(BLOCKS_SKIPPED));
        self.changed = true;
    }

    /// The number after that of the last block.
    fn end(&self) -> u32 {
        self.entries.last().map_or(0, |entry| entry.block().0.saturating_add(1))
    }

    /// The progress of every block, by block.
    #[must_use]
    pub(super) fn tallies(&self) -> Vec<BlockTally> {
        self.entries.iter().map(|entry| entry.tally).collect()
    }

    /// Takes over a block as an earlier start knew it.
    pub(super) fn recall(&mut self, entry: Entry) {
        match self.place_of(entry.block()) {
            Ok(place) => self.entries[place] = entry,
            Err(place) => self.entries.insert(place, entry),
        }
    }

    /// The number of the next block that is opened.
    pub(super) fn next_block(&self) -> u32 {
        self.next_block
    }

    /// Opens no block below `next` from now on.
    pub(super) fn skip_to(&mut self, next: u32) {
        self.next_block = self.next_block.max(next);
    }

    /// The blocks of which something else is known since the last call.
    pub(super) fn take_unlogged(&mut self) -> Vec<Entry> {
        let unlogged = std::mem::take(&mut self.unlogged);
        unlogged
            .into_iter()
            .filter_map(|block| Some(self.entries[self.place_of(block).ok()?].clone()))
            .collect()
    }

    /// The progress of the run.
    #[must_use]
    pub(super) fn progress(&self) -> RunTally {
        self.sum(|_| true)
    }

    /// The progress in all blocks but those that this start of a feeder has or reports. A start without a journal does not
    /// know the blocks of the starts before it.
    #[must_use]
    pub(super) fn others(&self, holder: Instance, own: &[BlockTally]) -> RunTally {
        let reported: BTreeSet<Block> = own.iter().map(|tally| tally.block).collect();
        self.sum(|entry| entry.holder != holder && !reported.contains(&entry.tally.block))
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

    /// Whether every id of the run is given out.
    #[must_use]
    pub(super) fn is_given_out(&self) -> bool {
        self.free() == 0
    }

    /// Where the block stands, or would.
    fn place_of(&self, block: Block) -> Result<usize, usize> {
        self.entries.binary_search_by_key(&block, Entry::block)
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

    /// The latest block of a feeder that no other has taken over, open or closed.
    fn kept_by(&self, holder: Instance) -> Option<&Entry> {
        self.entries.iter().rfind(|entry| entry.epoch == 0 && entry.holder.peer == holder.peer)
    }

    /// Opens a block for a feeder that has none: a vacant one if there is any, and if it `fits` a feeder without ids. Blocks
    /// of its former starts are taken over: it knows nothing of them.
    fn open(&mut self, holder: Instance, fits: bool) -> Result<usize, LeaseRefusal> {
        let block = Block(self.next_block);
        let vacant = self.entries.iter().position(|entry| fits && entry.is_vacant());
        if vacant.is_none() && (self.entries.len() >= LEASES_MAX || block.0 >= Block::COUNT) {
            return Err(LeaseRefusal::Exhausted);
        }
        self.succeed(holder, |former| former.peer == holder.peer && former != holder);
        if let Some(vacant) = vacant {
            self.entries[vacant].holder = holder;
            return Ok(vacant);
        }
        self.entries.push(Entry::new(block, holder));
        self.unlogged.insert(block);
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
    /// The number of the block.
    pub(super) fn block(&self) -> Block {
        self.tally.block
    }

    /// Microbatches of the block that have their outcome.
    pub(super) fn settled(&self) -> u64 {
        self.tally.settled
    }

    fn new(block: Block, holder: Instance) -> Self {
        Self {
            holder,
            leased_to: Some(holder),
            epoch: 0,
            first: 0,
            latest: 0,
            reserve: 0,
            range: Block::IDS,
            tally: BlockTally::new(block),
            closed: false,
        }
    }

    /// A block of a checkpoint. What had its outcome counts, and nothing else: ids that were on their way then are injected
    /// again, and none twice in this launch.
    fn vacant(tally: &BlockTally) -> Self {
        let first = tally.settled.min(Block::IDS);
        Self {
            leased_to: None,
            first,
            latest: first,
            reserve: first,
            tally: BlockTally::settled(tally.block, first),
            closed: true,
            ..Self::new(tally.block, Instance::new(NO_FEEDER, Incarnation::default()))
        }
    }

    fn is_vacant(&self) -> bool {
        self.holder.peer == NO_FEEDER
    }

    fn restored(leased: &LeasedRange, table: &Membership) -> Self {
        let LeasedRange { lease, feeder, tally } = *leased;
        let holder = table.instance(feeder).unwrap_or(Instance::new(feeder, Incarnation::default()));
        let reopens = !leased.is_open() && lease.epoch == 0;
        Self {
            holder,
            leased_to: None,
            epoch: lease.epoch,
            first: lease.first.index(),
            latest: tally.leased,
            reserve: tally.leased,
            range: if reopens { Block::IDS } else { lease.first.index() + lease.count },
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

    /// Gives out `count` ids more. Of the latest lease the holder gets the ids again that it does not have, since its reply
    /// was lost; an older request gets nothing.
    fn extend(&mut self, next: u64, count: u64) -> Lease {
        let leased = self.tally.leased;
        if next < leased {
            return self.lease_at(next, if next < self.latest { 0 } else { leased - next });
        }
        let first = next.min(Block::IDS);
        let count = count.min(LEASE_COUNT_MAX).min(Block::IDS - first);
        if count > 0 {
            (self.latest, self.tally.leased) = (first, first + count);
        }
        self.lease_at(first, count)
    }

    /// A lease of no ids in this block.
    fn no_ids(&self) -> Lease {
        self.lease_at(self.tally.leased, 0)
    }

    fn lease_at(&self, first: u64, count: u64) -> Lease {
        let first = MicrobatchId(self.tally.block.first().0.saturating_add(first));
        Lease { first, count, epoch: 0 }
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

    /// The ids that the holder can have. A coordinator that was started again may have given out more than it knows, of
    /// what is `free`.
    fn given_at_most(&self, free: u64) -> u64 {
        match self.leased_to {
            Some(_) if self.epoch == 0 => self.tally.leased,
            _ => self.tally.leased.saturating_add(free).min(self.range),
        }
    }

    fn note(&mut self, tally: &BlockTally, free: u64) {
        let leased = tally.leased.min(self.given_at_most(free));
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
        if self.range <= self.first {
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
        let count = if self.closed { 0 } else { self.range.saturating_sub(self.first) };
        let lease = Lease { epoch: self.epoch, ..self.lease_at(self.first, count) };
        let gives_out = self.epoch == 0 && !self.closed;
        let leased = if gives_out { self.reserve.max(self.tally.leased) } else { self.tally.leased };
        LeasedRange { lease, feeder: self.holder.peer, tally: BlockTally { leased, ..self.tally } }
    }
}
