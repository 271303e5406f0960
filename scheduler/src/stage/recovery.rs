//! Recovery of a microbatch when a peer that had it is lost.
//!
//! The replica that handed it to the lost peer still has the output, and hands it to another replica, which computes
//! the forward again for its backward. If a receipt or an orphan notice named a replica further downstream that holds
//! the microbatch, that holder is asked first, and the forward goes on only if the holder denies or is lost: a holder
//! computes nothing twice. A holder whose upstream is lost tells the nearest live hop of the route. Every wait that
//! becomes long sends a request, so a lost message costs time and nothing else.

use std::fmt::Debug;

use super::microbatch::Phase;
use super::parked::is_expected;
use super::{Note, Stage, replace_feeder};
use crate::handoff::{Leg, Overdue};
use crate::mutation::Mutation;
use crate::{Hop, Instance, Message, MicrobatchId, PeerId, RouteKey, Status, TableUpdate, Time};

impl<P: Clone + Default + Debug> Stage<P> {
    // --- A peer is lost -------------------------------------------------------------------------------------

    /// A connection is gone. For a neighbour this is evidence, to be judged with the rest; any other peer is lost at
    /// once.
    pub(super) fn on_peer_lost(&mut self, now: Time, instance: Instance) {
        if self.handoff.neighbours.watches(instance) {
            self.handoff.neighbours.lost(now, instance);
        } else {
            self.lose(now, |hop| hop.instance == instance);
        }
    }

    /// Acts on the verdicts about neighbours: a dead or stalled neighbour is lost with all its microbatches.
    pub(super) fn judge_neighbours(&mut self, now: Time) {
        let lost = self.handoff.judge(now, &mut self.table);
        for neighbour in lost {
            if self.finished {
                continue;
            }
            let gone = |hop: &Hop| hop.instance == neighbour;
            let affected = self.microbatches.iter().filter(|(id, held)| {
                gone(&held.upstream.hop) || self.handoff.awaited(**id).is_some_and(|next| gone(&next.hop))
            });
            let affected = affected.count();
            self.count(Note::Lost { neighbour, affected });
            self.lose(now, gone);
        }
    }

    /// A newer table: a replica that no longer has its place is lost.
    pub(super) fn on_membership(&mut self, now: Time, update: TableUpdate) {
        if !self.table.update(update) {
            return;
        }
        self.renew_contacts(now);
        let known = &self.table;
        self.distrust.keep(|peer| known.instance(peer).is_some());
        let table = std::mem::take(&mut self.table);
        let ignores_starts = self.config.breaks(Mutation::IgnoreIncarnation);
        let known = |hop: &Hop| table.placed(hop) || (ignores_starts && table.address(hop.peer()).is_some());
        self.departures.note(now, table.departed());
        self.lose(now, |hop| !known(hop));
        self.table = table;
        self.follow_successors(now);
        self.outcomes.settle(self.table.leases());
        self.release_ended(now);
        self.note_absent_feeders(now);
        let table = &self.table;
        for (sender, arrival) in self.parked.take_expected(|sender, id| is_expected(table, sender, id)) {
            self.on_forward(now, sender, arrival);
        }
    }

    /// The own queue for a neighbour is full. An activation waits as if the neighbour were busy, a gradient until the
    /// next heartbeat; any other message is repeated, or asked for.
    pub(super) fn on_send_queue_full(&mut self, now: Time, to: PeerId, message: &Message) {
        if let Some(id) = self.handoff.on_send_queue_full(now, to, message) {
            // The next stage takes what the queue holds.
            self.next_stage_lost = None;
            self.retry(now, id);
        }
        if let Message::Backward { microbatch, .. } = message {
            self.unsent_gradients.insert(*microbatch);
        }
    }

    /// Retries every microbatch that was handed to a peer that is `gone`, and sends an orphan notice for each that came
    /// from such a peer.
    fn lose(&mut self, now: Time, gone: impl Fn(&Hop) -> bool) {
        let lost = self.handoff.named().filter(|hop| gone(hop)).copied().collect();
        for id in self.handoff.lose(now, &lost) {
            self.retry(now, id);
        }
        self.promote_second_upstreams(&gone);
        let orphaned: Vec<_> = self
            .microbatches
            .iter()
            .filter(|(_, held)| held.trains() && gone(&held.upstream.hop))
            .filter_map(|(&id, held)| Some((id, *held.route.iter().rev().find(|hop| !gone(hop))?)))
            .collect();
        for (microbatch, nearest) in orphaned {
            self.send(nearest, Message::OrphanNotice { microbatch, holder: self.config.hop() });
        }
    }

    /// Of two receivers of a gradient, one is `gone`: the other is the only one.
    fn promote_second_upstreams(&mut self, gone: impl Fn(&Hop) -> bool) {
        for held in self.microbatches.values_mut() {
            held.second_upstream = held.second_upstream.filter(|second| !gone(&second.hop));
            if gone(&held.upstream.hop)
                && let Some(second) = held.second_upstream.take()
            {
                held.upstream = second;
            }
        }
    }

    /// The latest attempt failed: the microbatch waits for another replica.
    fn retry(&mut self, now: Time, id: MicrobatchId) {
        if let Some(held) = self.microbatches.get_mut(&id) {
            held.phase = Phase::Unrouted { since: now };
            self.unrouted.push_back(id);
        }
    }

    // --- Holders --------------------------------------------------------------------------------------------

    /// The neighbour downstream handed the microbatch on to `next`.
    pub(super) fn on_forwarded(&mut self, sender: Leg, id: MicrobatchId, next: Hop) {
        if self.table.placed(&next) {
            self.handoff.on_forwarded(sender, id, next);
        }
    }

    /// A replica downstream has lost its upstream.
    pub(super) fn on_orphan(&mut self, from: Instance, id: MicrobatchId, holder: Hop) {
        let member = self.table.get(from).is_some();
        let further = holder.stage > Some(self.config.stage) && self.table.placed(&holder);
        if !member || !further || !self.microbatches.contains_key(&id) {
            return self.count(Note::Unknown(id));
        }
        if let Some(hop) = self.handoff.on_orphan(id, holder) {
            self.send(hop, Message::OrphanNotice { microbatch: id, holder });
        }
    }

    /// Asks the replica of the next stage that is known to hold the microbatch, before a retry; `false` if there is
    /// none.
    pub(super) fn ask_next_holder(&mut self, now: Time, id: MicrobatchId) -> bool {
        let Some(holder) = self.handoff.take_next_holder(id) else { return false };
        if self.config.breaks(Mutation::ForwardUnasked) {
            return false;
        }
        let attempt = self.hand_on(now, id, holder);
        self.request_status(id, Leg { hop: holder, attempt });
        self.count(Note::Found(id));
        true
    }

    /// A peer wants to know whether a microbatch is here, and to be its upstream.
    pub(super) fn on_status_request(
        &mut self,
        now: Time,
        sender: Leg,
        id: MicrobatchId,
        (mut route, key): (Vec<Hop>, RouteKey),
    ) {
        let Leg { hop, attempt } = sender;
        if !self.table.placed(&hop) || !replace_feeder(&self.table, hop, id, &mut route) {
            return self.count(Note::Foreign(id));
        }
        let lessee = self.table.lessee(id);
        let trusted = !lessee.is_some_and(|feeder| self.distrust.holds(now, feeder, hop.peer()));
        if trusted && self.microbatches.contains_key(&id) {
            self.change_upstream(now, sender, id, (route, key));
        } else if !self.has_ended(id) {
            self.send(hop, Message::StatusReply { microbatch: id, attempt, status: Status::Missing });
        }
    }

    /// Makes `upstream` a receiver of the gradient, and sends the gradient at once if it is computed. While the former
    /// upstream is a member it gets the gradient too: a peer that asks for a gradient takes it from no other.
    pub(super) fn change_upstream(
        &mut self,
        now: Time,
        upstream: Leg,
        id: MicrobatchId,
        (route, key): (Vec<Hop>, RouteKey),
    ) {
        if !self.config.accepts_route(&route) || route.last() != Some(&upstream.hop) {
            return self.count(Note::Malformed(id));
        }
        let Some(held) = self.microbatches.get_mut(&id) else { return };
        if held.upstream.hop == upstream.hop || !self.table.placed(&held.upstream.hop) {
            (held.upstream, held.route, held.key) = (upstream, route, key);
            held.second_upstream = None;
        } else {
            held.second_upstream = Some(upstream);
        }
        if matches!(held.phase, Phase::Returned(_)) {
            return self.send_gradient_to(upstream, id);
        }
        self.tell_refused_again(now, id);
        let Leg { hop, attempt } = upstream;
        self.send(hop, Message::StatusReply { microbatch: id, attempt, status: Status::Held });
        if let Some(next) = self.handoff.awaited(id) {
            self.send(hop, Message::Forwarded { microbatch: id, attempt, next: next.hop });
        }
    }

    /// A neighbour downstream replied with the status of a microbatch that was sent to it or requested from it.
    pub(super) fn on_status_reply(&mut self, now: Time, sender: Leg, id: MicrobatchId, status: Status) {
        if !self.table.placed(&sender.hop) || !self.microbatches.contains_key(&id) {
            return self.count(Note::Unknown(id));
        }
        if self.handoff.awaited(id) != Some(sender) {
            return self.count(Note::Duplicate(id));
        }
        if self.handoff.on_status(now, sender, id, status) {
            self.retry(now, id);
        }
    }

    // --- Overdue replies ------------------------------------------------------------------------------------

    /// Asks every neighbour, and reminds every feeder, that has owed an answer for too long.
    pub(super) fn request_overdue(&mut self, now: Time) {
        let Overdue { requests, hopeless } = self.handoff.take_overdue(now);
        requests.into_iter().for_each(|(id, leg)| self.request_status(id, leg));
        hopeless.into_iter().for_each(|id| self.retry(now, id));
        self.remind_feeders(now);
    }

    fn request_status(&mut self, id: MicrobatchId, of: Leg) {
        if let Some(held) = self.microbatches.get(&id) {
            let route = held.route.iter().copied().chain([self.config.hop()]).collect();
            let Leg { hop, attempt } = of;
            let key = held.key.next(hop);
            self.send(hop, Message::StatusRequest { microbatch: id, attempt, route, key });
        }
    }
}
