//! Recovery of a microbatch when the replica of stage 0 that had it is lost: the feeder retries it and names the
//! replica that is known to hold it further downstream, so that the holder computes nothing twice. Every wait that
//! becomes long sends a request.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::{Action, Feeder};
use crate::handoff::{Leg, Overdue};
use crate::{
    Envelope, Hop, Instance, Message, MicrobatchId, PeerId, Purpose, RouteKey, StageIndex, Status,
    TableUpdate, Time,
};

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Acts on the verdicts about replicas of stage 0.
    pub(super) fn judge_neighbours(&mut self, now: Time) {
        for instance in self.handoff.judge(now, &mut self.table) {
            self.lose(now, &[Hop::replica(StageIndex(0), instance)].into());
        }
    }

    pub(super) fn on_membership(&mut self, now: Time, update: TableUpdate) {
        let is_first = self.table.version() == 0;
        if !self.table.update(update) {
            return;
        }
        self.paused_until = None;
        self.window.served_by(self.table.width(self.config.stages));
        self.handoff.follow(now, &self.table);
        self.rounds.follow(&self.table);
        let departed: BTreeSet<Hop> =
            if is_first { self.left_before() } else { self.table.departed().iter().copied().collect() };
        if !departed.is_empty() {
            self.departure = Some(now);
        }
        for hop in &departed {
            self.lose_contributions(*hop);
            self.confirmed.forget(hop);
            // A liar that starts again is the same liar.
            if self.table.instance(hop.peer()).is_none() {
                self.suspicion.forget(hop.peer());
            }
        }
        self.lose(now, &departed);
        self.follow_successions(now);
    }

    /// The replicas with contributions that left while this feeder was away.
    fn left_before(&self) -> BTreeSet<Hop> {
        self.contributions.hops().filter(|hop| !self.table.placed(hop)).copied().collect()
    }

    /// Retries every microbatch that was sent to a replica that is `gone`.
    fn lose(&mut self, now: Time, gone: &BTreeSet<Hop>) {
        for id in self.handoff.lose(now, gone) {
            self.wait_for_replica(id);
        }
    }

    pub(super) fn on_status_reply(&mut self, now: Time, sender: Leg, id: MicrobatchId, status: Status) {
        let placed = self.table.placed(&sender.hop);
        let Some(open) = self.open.get(&id).filter(|_| placed && self.handoff.awaited(id) == Some(sender))
        else {
            return self.counts.foreign += 1;
        };
        // An evaluation has its own wait, even if a replica holds it.
        if status == Status::Held && open.purpose != Purpose::Train {
            return;
        }
        if self.handoff.on_status(now, sender, id, status) {
            self.wait_for_replica(id);
        }
    }

    /// The own queue for a replica is full. A microbatch waits as if the replica were busy; any other message is
    /// repeated, or asked for.
    pub(super) fn on_send_queue_full(&mut self, now: Time, to: PeerId, message: &Message) {
        if let Some(id) = self.handoff.on_send_queue_full(now, to, message) {
            self.wait_for_replica(id);
        }
    }

    /// A replica downstream has lost its upstream: the replica that got the retry meanwhile is told.
    pub(super) fn on_orphan(&mut self, from: Instance, id: MicrobatchId, holder: Hop) {
        let known = self.table.get(from).is_some() && self.table.placed(&holder);
        if !known || holder.stage.is_none() || !self.open.contains_key(&id) {
            return;
        }
        if let Some(hop) = self.handoff.on_orphan(id, holder) {
            self.send(hop, Message::OrphanNotice { microbatch: id, holder });
        }
    }

    /// Requests the status of training microbatches whose reply is overdue, and sends evaluations again whose result
    /// is overdue.
    pub(super) fn request_overdue(&mut self, now: Time) {
        let Overdue { requests, hopeless } = self.handoff.take_overdue(now);
        hopeless.into_iter().for_each(|id| self.wait_for_replica(id));
        for (id, leg) in requests {
            let Some(open) = self.open.get(&id) else { continue };
            if open.trains() {
                self.request_status(id, leg);
            } else {
                self.await_evaluated(now, id);
            }
        }
    }

    fn request_status(&mut self, microbatch: MicrobatchId, of: Leg) {
        let Leg { hop, attempt } = of;
        let (route, key) = (vec![self.config.hop()], RouteKey::first(&self.config.secret, microbatch, hop));
        self.send(hop, Message::StatusRequest { microbatch, attempt, route, key });
    }

    /// Asks the replica that had a microbatch before this process was restarted; `false` if it is not in the table.
    pub(super) fn ask_former_holder(&mut self, now: Time, microbatch: MicrobatchId) -> bool {
        let Some(open) = self.open.get_mut(&microbatch) else { return false };
        if !std::mem::take(&mut open.recalled) {
            return false;
        }
        let latest = self.handoff.latest(microbatch).map(|latest| latest.hop);
        let Some(hop) = latest.filter(|hop| self.table.placed(hop)) else { return false };
        let attempt = self.hand_on(now, microbatch, hop);
        self.request_status(microbatch, Leg { hop, attempt });
        true
    }

    pub(super) fn send(&mut self, to: Hop, envelope: impl Into<Envelope<P>>) {
        self.actions.push_back(Action::Send { to: to.peer(), envelope: envelope.into() });
    }

    /// The replica of stage 0 whose reply about a microbatch is awaited.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn awaited(&self, id: MicrobatchId) -> Option<Hop> {
        self.handoff.awaited(id).map(|leg| leg.hop)
    }
}
