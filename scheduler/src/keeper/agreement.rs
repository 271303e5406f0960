//! The agreement on the clock of the run at which all stages copy their states.
//!
//! Copies that are made when the keeper comes to a stage are of as many moments as there are stages. So the keeper names a
//! clock of the run some seconds ahead to donors of every stage at once, and takes their copies one after the other. A
//! donor that has gone past the clock, or makes a copy for another keeper, declines; a stage whose donors all decline has
//! a later clock named.

use std::collections::BTreeMap;

use crate::transfer::COMPARED_MAX;
use crate::{BlockTally, Duration, Instance, PeerTable, StageIndex, Time};

use super::Watermark;

/// The clock is named as far ahead as the run comes in this time: a progress report is a second old at most, and the name
/// of the clock travels.
pub const AHEAD: Duration = Duration::from_secs(2);
/// A clock that the run has not reached after this time is given up: the run stands still, or nearly.
pub const REACHED_WITHIN: Duration = Duration::from_secs(30);
/// Clocks that are named for one checkpoint. If none suits the donors, each copies its state when it is asked for.
pub const CLOCKS_MAX: u32 = 8;
/// Doublings of [`AHEAD`] at most, one for each clock that came too late for a donor.
const DOUBLINGS_MAX: u32 = 2;
/// Pause before another clock is named: a donor may be busy with the copy for another keeper.
pub const NAMED_AGAIN_AFTER: Duration = Duration::from_secs(5);
/// Pause between two messages that have a donor keep its copy.
pub const KEPT_FOR: Duration = Duration::from_secs(30);

/// The pace of the run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    before: Option<(Time, u64)>,
    last: Option<(Time, u64)>,
}

impl Pace {
    /// Notes how far the run has come; reports that follow each other within half a second count as one.
    pub(super) fn note(&mut self, now: Time, microbatches: u64) {
        if self.last.is_none_or(|(at, _)| at + Duration::from_millis(500) <= now) {
            (self.before, self.last) = (self.last, Some((now, microbatches)));
        }
    }

    /// Microbatches that the run finishes in this time; `None` before the second report.
    pub(super) fn within(&self, time: Duration) -> Option<u64> {
        let (since, before) = self.before?;
        let (until, last) = self.last?;
        let finished = u128::from(last.saturating_sub(before));
        let microbatches = finished * time.as_nanos() / until.since(since).as_nanos().max(1);
        Some(u64::try_from(microbatches).unwrap_or(u64::MAX))
    }
}

/// A clock that was named.
#[derive(Clone, Debug)]
pub(super) struct Agreement {
    pub(super) clock: u64,
    /// Time of the first message about it.
    pub(super) since: Time,
    /// The donors that were told, and have not declined.
    donors: BTreeMap<StageIndex, Vec<Instance>>,
    /// Progress of the blocks then.
    blocks: Vec<BlockTally>,
    /// The donors are told once more then.
    repeat_at: Time,
}

impl Agreement {
    /// Names a clock that a run of this pace reaches after [`AHEAD`], or later if others have come too late. It is a
    /// multiple of the contributions to one step, so that a donor which alone serves its stage has none waiting; and of such
    /// a power of two times these that keepers which name one in the same second mostly name the same, and share the copies.
    pub(super) fn new(
        now: Time,
        blocks: &[BlockTally],
        (pace, too_late, contributions_per_step): (u64, u32, u64),
        donors: BTreeMap<StageIndex, Vec<Instance>>,
    ) -> Self {
        let injected = blocks.iter().fold(0_u64, |sum, block| sum.saturating_add(block.injected));
        let ahead = pace.saturating_add(1).saturating_mul(1 << too_late.min(DOUBLINGS_MAX));
        let (contributions, steps) = (contributions_per_step.max(1), ahead / contributions_per_step.max(1));
        let grid = contributions.saturating_mul(1 << steps.max(1).ilog2());
        let clock = injected.saturating_add(ahead).next_multiple_of(grid);
        let blocks = blocks.to_vec();
        Self { clock, since: now, donors, blocks, repeat_at: now + KEPT_FOR }
    }

    /// Whether the run has come so far.
    pub(super) fn is_reached(&self, watermark: &Watermark) -> bool {
        watermark.microbatches >= self.clock
    }

    /// The donors of a stage that were told.
    pub(super) fn donors_of(&self, stage: StageIndex) -> &[Instance] {
        self.donors.get(&stage).map_or(&[], Vec::as_slice)
    }

    /// All donors that were told.
    pub(super) fn donors(&self) -> impl Iterator<Item = Instance> + '_ {
        self.donors.values().flatten().copied()
    }

    /// A donor declines, or is lost; returns whether a stage is left without a donor that was told.
    pub(super) fn drop_donor(&mut self, donor: Instance) -> bool {
        let told = self.donors.values_mut().find(|donors| donors.contains(&donor));
        told.is_some_and(|donors| {
            donors.retain(|told| *told != donor);
            donors.is_empty()
        })
    }

    /// The stage is taken: its donors need not keep their copies.
    pub(super) fn drop_stage(&mut self, stage: StageIndex) {
        self.donors.remove(&stage);
    }

    /// When the donors are to be told once more.
    pub(super) fn repeat_at(&self) -> Option<Time> {
        (!self.donors.is_empty()).then_some(self.repeat_at)
    }

    pub(super) fn repeated(&mut self, now: Time) {
        self.repeat_at = now + KEPT_FOR;
    }

    /// The progress of the run at the clock: of the only feeder, since only its block has grown; `None` if others have.
    pub(super) fn watermark(&self, progress: &Watermark) -> Option<Watermark> {
        let settled_before = |now: &BlockTally| {
            let before = self.blocks.iter().find(|before| before.block == now.block);
            before.map_or(0, |before| before.settled)
        };
        let mut blocks = progress.blocks.clone();
        let mut grown = blocks.iter_mut().filter(|block| block.settled > settled_before(block));
        let block = grown.next().filter(|_| grown.next().is_none())?;
        block.settled -= progress.microbatches.checked_sub(self.clock)?.min(block.settled);
        block.injected = block.settled;
        let watermark = Watermark::new(blocks, false);
        (watermark.microbatches == self.clock).then_some(Watermark { is_agreed: true, ..watermark })
    }
}

/// The donors of each stage that a keeper tells, in the order in which it asks them.
pub(super) fn donors_to_tell(
    table: &PeerTable,
    stages: impl Iterator<Item = StageIndex>,
    rotation: u64,
) -> BTreeMap<StageIndex, Vec<Instance>> {
    let of = |stage| rotated(table, stage, rotation).into_iter().take(COMPARED_MAX).collect();
    stages.map(|stage| (stage, of(stage))).collect()
}

/// The replicas that serve a stage, each time from another on, so that all of them share the work.
pub(super) fn rotated(table: &PeerTable, stage: StageIndex, rotation: u64) -> Vec<Instance> {
    let mut donors: Vec<_> = table.serving(stage).map(|member| member.instance).collect();
    let first = rotation as usize % donors.len().max(1);
    donors.rotate_left(first);
    donors
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Block;

    const SECOND: Duration = Duration::from_secs(1);

    fn tally(block: u32, injected: u64, settled: u64) -> BlockTally {
        BlockTally { leased: 1_000, injected, settled, ..BlockTally::new(Block(block)) }
    }

    fn agreed(blocks: &[BlockTally], pace: u64, in_vain: u32, steps: u64) -> Agreement {
        Agreement::new(Time(0), blocks, (pace, in_vain, steps), BTreeMap::new())
    }

    #[test]
    fn the_pace_is_known_from_the_second_report_on_and_reports_at_once_count_as_one() {
        let mut pace = Pace::default();
        pace.note(Time(0), 10);
        pace.note(Time(1), 50);
        assert_eq!(pace.within(SECOND), None);
        pace.note(Time(0) + 2 * SECOND, 16);
        assert_eq!(pace.within(3 * SECOND), Some(9));
        pace.note(Time(0) + 4 * SECOND, 16);
        assert_eq!(pace.within(3 * SECOND), Some(0), "the run stands still");
    }

    #[test]
    fn the_clock_lies_beyond_all_that_was_injected_and_a_second_one_further_ahead() {
        let blocks = [tally(0, 100, 100), tally(1, 24, 20)];
        assert_eq!(agreed(&blocks, 9, 0, 1).clock, 136);
        assert_eq!(agreed(&blocks, 12, 0, 1).clock, 144, "at least thirteen more");
        assert_eq!(agreed(&blocks, 9, 1, 1).clock, 144, "at least twenty more");
        assert_eq!(agreed(&blocks, 9, 0, 5).clock, 140, "whole steps");
        assert_eq!(agreed(&blocks, 0, 0, 1).clock, 125, "a slow run");
        let later = [tally(0, 100, 100), tally(1, 26, 25)];
        assert_eq!(agreed(&later, 10, 0, 1).clock, agreed(&blocks, 9, 0, 1).clock + 8, "next to a border");
        assert_eq!(agreed(&later, 9, 0, 1).clock, 136, "another keeper names the same");
    }

    #[test]
    fn the_watermark_names_the_ids_before_the_clock_though_the_run_has_gone_further() {
        let agreement = agreed(&[tally(0, 100, 100), tally(1, 24, 20)], 9, 0, 1);
        let later = Watermark::new(vec![tally(0, 100, 100), tally(1, 45, 40)], false);
        let watermark = agreement.watermark(&later).unwrap();
        assert_eq!((watermark.microbatches, watermark.is_agreed), (136, true));
        assert_eq!(watermark.blocks[1], tally(1, 36, 36));

        let two = Watermark::new(vec![tally(0, 110, 105), tally(1, 45, 40)], false);
        assert!(agreement.watermark(&two).is_none(), "a second feeder has begun");
    }
}
