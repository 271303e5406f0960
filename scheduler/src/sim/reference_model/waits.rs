//! Waits, memory and time: a replica waits for members only, keeps no microbatch whose outcome was announced, and its clock
//! of the run does not run ahead.

use crate::{Duration, Hop, Instance, MicrobatchId, PeerId, PeerTable, Replica, Time};

use super::super::payload::Payload;
use super::ReferenceModel;

/// An announcement may be overtaken by another that was sent so much later.
const OVERTAKEN_WITHIN: Duration = Duration::from_secs(5);

impl ReferenceModel {
    /// Checks that a status is requested of a member.
    pub(super) fn asks(&mut self, awaited: Option<Hop>, microbatch: MicrobatchId, table: &PeerTable) {
        let is_member = awaited.is_none_or(|hop| table.placed(&hop));
        self.require(is_member, || format!("{microbatch} is awaited of {awaited:?}, which is gone"));
    }

    /// A replica that was last suspended until `resumed_at` has handled an announcement of the feeder `by`; `before` are
    /// the microbatches that it held before. Checks that it has released exactly those that have an outcome and belong to
    /// that feeder by its table, or that no feeder injected.
    pub(in crate::sim) fn released(
        &mut self,
        (by, feeder): (usize, PeerId),
        resumed_at: Option<Time>,
        before: &[MicrobatchId],
        replica: &Replica<Payload>,
    ) {
        let (me, stage) = (replica.config().stage.me, replica.stage());
        for &id in before.iter().filter(|&&id| stage.is_announced(id)) {
            let over = id.is_evaluation()
                || !self.injected.contains_key(&id)
                || self.is_deceitful(id)
                || self.outcomes.contains_key(&id)
                || self.unknown(id);
            self.require(over, || format!("{id} is released at {me:?} before its outcome"));
        }
        if let Some(newest) = stage.open().filter(|id| !id.is_evaluation()).max() {
            self.check_clock(replica, newest);
        }
        // Announcements of the time of a suspension are read late.
        if resumed_at.is_none_or(|at| at + OVERTAKEN_WITHIN <= self.now) {
            let own = stage.open().filter(|&id| replica.table().lessee(id) == Some(feeder));
            own.for_each(|id| self.check_kept(by, id, me));
        }
    }

    /// Checks that the clock of the run at a microbatch counts of other blocks at least what the table states, and only
    /// microbatches that have an outcome, or never will. Of its own microbatches a feeder that lies tells replicas what it
    /// likes.
    fn check_clock(&mut self, replica: &Replica<Payload>, id: MicrobatchId) {
        let Some(clock) = replica.stage().clock_at(id).filter(|_| self.lying_feeder.is_none()) else {
            return;
        };
        let (me, others) = (replica.config().stage.me, clock - id.index());
        let tallies = replica.table().leases().iter().map(|leased| leased.tally);
        let stated: u64 = tallies.filter(|tally| tally.block != id.block()).map(|tally| tally.settled).sum();
        self.require(others >= stated, || {
            format!("the clock of {id} at {me:?} counts {others} of {stated} others")
        });
        let of_others = |other: &&MicrobatchId| other.block() != id.block();
        let never_ends = |other: &&MicrobatchId| !self.outcomes.contains_key(other) && self.unknown(**other);
        let ended = || self.outcomes.keys().filter(of_others).count();
        let lost = || self.injected.keys().filter(of_others).filter(never_ends).count();
        let sound = others == 0 || others <= (ended() + lost()) as u64;
        self.require(sound, || {
            format!("the clock of {id} at {me:?} counts {others} of others, and fewer have ended")
        });
    }

    fn check_kept(&mut self, by: usize, id: MicrobatchId, me: Instance) {
        let honest = self.lying_feeder != Some(by);
        let Some(&decided_at) = self.decided.get(&(id, by)).filter(|_| honest) else { return };
        let overtaken = self.now < decided_at + OVERTAKEN_WITHIN;
        self.require(overtaken, || format!("{me:?} keeps {id}, whose outcome was announced"));
    }
}
