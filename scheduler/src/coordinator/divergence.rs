//! The end of a run that has diverged. A feeder that holds ids notices it, and every member hears of it with its next
//! heartbeat.
//!
//! Where any member may feed, a liar could end the run with that word: there every feeder must say so.

use super::Coordinator;
use crate::Instance;

impl Coordinator {
    /// Microbatches of the run that had their outcome when training diverged, if it did: the run is over then.
    #[must_use]
    pub fn diverged(&self) -> Option<u64> {
        self.diverged
    }

    /// A feeder says that training has diverged after `at` microbatches.
    pub(super) fn note_diverged(&mut self, from: Instance, at: u64) {
        let all_say_so = self.members.set_diverged(from.peer);
        let holds_ids = self.leases.find_holder(|holder| holder.peer == from.peer).is_some();
        if holds_ids && (self.config.feed.is_trusted() || all_say_so) {
            self.diverged.get_or_insert(at);
        }
    }
}
