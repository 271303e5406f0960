//! When a checkpoint is due.

use crate::{Duration, Time};

/// The time between two checkpoints.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Interval {
    /// So many finished microbatches of the run.
    Microbatches(u64),
    /// So much time, if microbatches have finished in it.
    Time(Duration),
}

/// The checkpoint before, and when the next is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Schedule {
    interval: Interval,
    /// Watermark of the newest checkpoint.
    newest: u64,
    /// With an interval of time, when the next is due; `None` before the first look at the run.
    due_at: Option<Time>,
    /// None is due before, since an attempt has failed.
    not_before: Time,
}

impl Schedule {
    pub(super) fn new(now: Time, interval: Interval, newest: u64) -> Self {
        Self { interval, newest, due_at: None, not_before: now }
    }

    /// Whether a checkpoint is due at a run that has come so far. At a run that is further than the newest checkpoint one is
    /// due at the first look: that checkpoint may be old, and a keeper that starts again must not make it older.
    pub(super) fn is_due(&mut self, now: Time, microbatches: u64) -> bool {
        let is_further = microbatches > self.newest;
        let is_due = match self.interval {
            Interval::Microbatches(count) => microbatches >= self.newest.saturating_add(count.max(1)),
            Interval::Time(time) => {
                let first = if is_further { now } else { now + time };
                let due_at = *self.due_at.get_or_insert(first);
                is_further && now >= due_at
            }
        };
        is_due && now >= self.not_before
    }

    /// A checkpoint is complete.
    pub(super) fn kept(&mut self, now: Time, microbatches: u64) {
        self.newest = microbatches;
        if let Interval::Time(time) = self.interval {
            self.due_at = Some(now + time);
        }
    }

    /// No further attempt before this time.
    pub(super) fn put_off(&mut self, until: Time) {
        self.not_before = until;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_checkpoint_is_due_after_so_many_microbatches_or_so_much_time_in_which_some_have_finished() {
        let start = Time(0) + MINUTE;
        let mut by_count = Schedule::new(start, Interval::Microbatches(100), 40);
        assert!(!by_count.is_due(start, 139) && by_count.is_due(start, 140));
        by_count.kept(start, 150);
        assert!(!by_count.is_due(start, 249) && by_count.is_due(start, 250));
        by_count.put_off(start + MINUTE);
        assert!(!by_count.is_due(start, 250) && by_count.is_due(start + MINUTE, 250));

        let mut by_time = Schedule::new(start, Interval::Time(MINUTE), 40);
        assert!(!by_time.is_due(start, 40), "nothing has been learned since");
        assert!(!by_time.is_due(start + MINUTE / 2, 50) && by_time.is_due(start + MINUTE, 50));
        assert!(!by_time.is_due(start + MINUTE, 40));
        by_time.kept(start + MINUTE, 50);
        assert!(!by_time.is_due(start + MINUTE * 3 / 2, 60) && by_time.is_due(start + 2 * MINUTE, 60));
    }

    #[test]
    fn a_keeper_that_starts_at_a_run_that_is_further_than_its_newest_checkpoint_takes_one_at_once() {
        let start = Time(0) + MINUTE;
        let mut schedule = Schedule::new(start, Interval::Time(MINUTE), 40);
        assert!(schedule.is_due(start, 41));
        schedule.kept(start, 41);
        assert!(!schedule.is_due(start + MINUTE / 2, 50) && schedule.is_due(start + MINUTE, 50));
        let mut waits_for_replicas = Schedule::new(start, Interval::Time(MINUTE), 0);
        assert!(waits_for_replicas.is_due(start + MINUTE / 2, 7), "of a run without a checkpoint too");
    }
}
