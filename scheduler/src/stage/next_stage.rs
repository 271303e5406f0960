//! The link to the next stage. If no replica that the coordinator lists there is heard and gives credit, other replicas
//! of the own stage may still reach some: this replica gives back what it has computed and takes no more.

use std::fmt::Debug;

use super::Stage;
use crate::{Duration, Time};

/// A next stage whose replicas are all silent, or give no credit, for so long cannot be reached from here.
pub const NEXT_STAGE_LOST_AFTER: Duration = Duration::from_secs(20);

impl<P: Clone + Default + Debug> Stage<P> {
    /// Notes, at every heartbeat, whether any replica of the next stage takes microbatches from this one.
    pub(super) fn watch_next_stage(&mut self, now: Time) {
        let neighbours = &self.handoff.neighbours;
        let lost = self.table.serves(self.config.next_stage()) && !neighbours.next_stage_takes(now);
        self.next_stage_lost = self.next_stage_lost.or(Some(neighbours.clock(now))).filter(|_| lost);
    }

    pub(super) fn is_next_stage_lost(&self, now: Time) -> bool {
        let clock = self.handoff.neighbours.clock(now);
        self.next_stage_lost.is_some_and(|since| since + NEXT_STAGE_LOST_AFTER <= clock)
    }

    /// Gives every computed activation back while the next stage cannot be reached.
    pub(super) fn give_back_unroutable(&mut self, now: Time) {
        if self.is_next_stage_lost(now) {
            for id in std::mem::take(&mut self.unrouted) {
                self.give_back(now, id);
            }
        }
    }
}
