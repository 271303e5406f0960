//! What becomes of a microbatch when a peer that had it is lost.
//!
//! Whoever handed it to the lost peer still has what it sent, and hands it to another replica; that one computes the
//! forward again, for its backward. If a receipt, or a holder that missed its upstream, told who has the microbatch
//! further downstream, that one is asked first, and forwards anew only if it denies or is lost: what was computed
//! there is not computed twice. A holder whose upstream is lost says so to the nearest live hop of the route. Every
//! wait that becomes long asks, so a lost message costs time and nothing else.

use std::fmt::Debug;

use super::microbatch::{Claim, Phase, Visit};
use super::{Note, Stage, submit};
use crate::handoff::attempts::Neighbour;
use crate::mutation::Mutation;
use crate::router::Settled;
use crate::{Holding, Hop, Incarnation, Membership, Message, MicrobatchId, PeerId, Time, Verdict};

impl<P: Clone + Default + Debug> Stage<P> {
    // --- Somebody is lost -----------------------------------------------------------------------------------

    /// A connection is gone. Of a neighbour that is evidence, to be judged with the rest; others are gone with it.
    pub(super) fn on_peer_lost(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) {
        if self.neighbours.watches(peer, incarnation) {
            self.neighbours.lost(now, peer, incarnation);
        } else {
            self.lose(now, |hop| hop.peer == peer && hop.incarnation == incarnation);
        }
    }

    /// Acts on what has become of the neighbours: the dead and the wedged are lost with all they have.
    pub(super) fn judge_neighbours(&mut self, now: Time) {
        for (peer, incarnation, verdict) in self.neighbours.judge(now) {
            if self.finished {
                continue;
            }
            match verdict {
                Verdict::Healthy => self.table.heard(peer, incarnation),
                Verdict::Suspect => {}
                Verdict::Wedged | Verdict::Dead => {
                    self.table.quarantine(now, peer, incarnation);
                    let gone = |hop: &Hop| hop.peer == peer && hop.incarnation == incarnation;
                    let lies_with = |visit: &&Visit<P>| {
                        gone(&visit.upstream.hop) || visit.awaited().is_some_and(|next| gone(&next.hop))
                    };
                    let with_it = self.visits.values().filter(lies_with).count();
                    self.count(Note::Lost { peer, incarnation, with_it });
                    self.lose(now, gone);
                }
            }
        }
    }

    /// The coordinator still knows this start: what was withheld is said now.
    pub(super) fn on_confirmed(&mut self) {
        self.suspension.confirmed();
        self.actions.extend(std::mem::take(&mut self.withheld));
    }

    /// A newer table: whoever is no longer where it was is lost.
    pub(super) fn on_membership(&mut self, now: Time, membership: Membership) {
        let before = self.table.replicas();
        if self.table.update(membership) {
            let table = std::mem::take(&mut self.table);
            let ignores_starts = self.config.breaks(Mutation::IgnoreIncarnation);
            let known =
                |hop: &Hop| table.placed(hop) || (ignores_starts && table.address(hop.peer).is_some());
            // Newcomers wait for their credit.
            self.beat_at = now;
            let neighbours = table.hops(self.config.next_stage()).into_iter();
            let upstream = table.senders_to(self.config.stage).into_iter().filter(|hop| hop.stage.is_some());
            self.neighbours.watch(now, neighbours.chain(upstream));
            self.departures.note(now, &before, &table);
            self.lose(now, |hop| !known(hop));
            self.table = table;
            self.follow_successors(now);
            for (sender, arrival) in self.early.take_placed(|hop| self.table.placed(hop)) {
                self.on_forward(now, sender, arrival);
            }
        }
    }

    /// Finds another way for everything that lies with somebody who is `gone`.
    fn lose(&mut self, now: Time, gone: impl Fn(&Hop) -> bool) {
        let ids: Vec<_> = self.visits.keys().copied().collect();
        for id in ids {
            let Some(visit) = self.visits.get_mut(&id) else { continue };
            visit.beyond = visit.beyond.filter(|holder| !gone(holder));
            let downstream = visit.awaited().is_some_and(|awaited| gone(&awaited.hop));
            let upstream = gone(&visit.upstream.hop);
            if downstream {
                self.send_anew(now, id, Settled::Lost);
            }
            if upstream {
                self.tell_held(id, &gone);
            }
        }
    }

    /// The replica it was handed to does not answer for it: it waits for another.
    fn send_anew(&mut self, now: Time, id: MicrobatchId, how: Settled) {
        self.settle_sending(now, id, how);
        if let Some(visit) = self.visits.get_mut(&id) {
            visit.lost |= how == Settled::Lost;
            visit.phase = Phase::Unrouted { since: now };
            self.unrouted.push_back(id);
        }
    }

    /// The upstream is lost: the nearest hop of the route that lives hears who holds the microbatch.
    fn tell_held(&mut self, id: MicrobatchId, gone: &impl Fn(&Hop) -> bool) {
        let Some(visit) = self.visits.get(&id).filter(|visit| visit.trains()) else { return };
        let nearest = visit.route.iter().rev().find(|hop| !gone(hop)).copied();
        if let Some(hop) = nearest {
            self.send(hop, Message::Held { microbatch: id, holder: self.config.hop() });
        }
    }

    // --- Finding things again -------------------------------------------------------------------------------

    /// The neighbour downstream handed it on to `next`: should that neighbour be lost, `next` is asked.
    pub(super) fn on_passed(&mut self, sender: Neighbour, id: MicrobatchId, next: Hop) {
        if let Some(visit) = self.visits.get_mut(&id).filter(|visit| visit.awaited() == Some(sender))
            && self.table.placed(&next)
            && next.stage > Some(self.config.next_stage())
        {
            visit.beyond = Some(next);
        }
    }

    /// Somebody downstream missed its upstream. Remembered for the next sending, or told to who was sent it anew.
    pub(super) fn on_held(&mut self, from: PeerId, incarnation: Incarnation, id: MicrobatchId, holder: Hop) {
        let member = self.table.get(from, incarnation).is_some();
        let further = holder.stage > Some(self.config.stage) && self.table.placed(&holder);
        let Some(visit) = self.visits.get_mut(&id).filter(|_| member && further) else {
            return self.count(Note::Unknown(id));
        };
        if visit.sendings.latest().map(|latest| latest.hop) == Some(holder) {
            return;
        }
        if visit.beyond.is_none_or(|known| known.stage >= holder.stage) {
            visit.beyond = Some(holder);
        }
        if let Some(awaited) = visit.awaited().filter(|awaited| awaited.hop.stage < holder.stage) {
            self.send(awaited.hop, Message::Held { microbatch: id, holder });
        }
    }

    /// Before anything is sent anew, the replica of the next stage that is known to have it is asked for it.
    pub(super) fn ask_holder(&mut self, now: Time, id: MicrobatchId) -> bool {
        let next = self.config.next_stage();
        let Some(visit) = self.visits.get_mut(&id) else { return false };
        let Some(holder) = visit.beyond.filter(|holder| holder.stage == Some(next)) else { return false };
        visit.beyond = None;
        if self.config.breaks(Mutation::ForwardUnasked) {
            return false;
        }
        let attempt = visit.sendings.add(holder);
        self.passed(now, id, holder);
        self.ask(id, Neighbour { hop: holder, attempt });
        self.count(Note::Found(id));
        true
    }

    /// Somebody wants to know whether a microbatch is here, and to be its upstream.
    pub(super) fn on_ask(&mut self, now: Time, sender: Neighbour, id: MicrobatchId, mut route: Vec<Hop>) {
        if !self.table.placed(&sender.hop) || !submit(&self.table, sender.hop, id, &mut route) {
            return self.count(Note::Foreign(id));
        }
        if self.visits.contains_key(&id) {
            self.adopt(now, sender, id, route);
        } else if !self.outcomes.contain(id) {
            let message =
                Message::Holds { microbatch: id, attempt: sender.attempt, holding: Holding::Missing };
            self.send(sender.hop, message);
        }
    }

    /// `upstream` gets the gradient from now on, or at once if it is there.
    pub(super) fn adopt(&mut self, now: Time, upstream: Neighbour, id: MicrobatchId, route: Vec<Hop>) {
        if !self.config.accepts_route(&route) || route.last() != Some(&upstream.hop) {
            return self.count(Note::Malformed(id));
        }
        let Some(visit) = self.visits.get_mut(&id) else { return };
        (visit.upstream, visit.route) = (upstream, route);
        let (attempt, next) = (upstream.attempt, visit.awaited());
        match &mut visit.phase {
            Phase::Answered(_) => return self.send_answer(id),
            Phase::Refused { told, .. } => {
                *told = now;
                self.tell_again(id);
            }
            _ => {}
        }
        self.send(upstream.hop, Message::Holds { microbatch: id, attempt, holding: Holding::Held });
        if let Some(next) = next {
            self.send(upstream.hop, Message::Passed { microbatch: id, attempt, next: next.hop });
        }
    }

    /// The neighbour downstream says what it knows of a microbatch it was sent or asked for.
    pub(super) fn on_holds(&mut self, now: Time, sender: Neighbour, id: MicrobatchId, holding: Holding) {
        let placed = self.table.placed(&sender.hop);
        let Some(visit) = self.visits.get_mut(&id).filter(|_| placed) else {
            return self.count(Note::Unknown(id));
        };
        if visit.awaited() != Some(sender) {
            return self.count(Note::Duplicate(id));
        }
        match holding {
            Holding::Held => {
                if let Phase::Passed { asking } = &mut visit.phase {
                    asking.held(now);
                }
            }
            Holding::Missing => self.send_anew(now, id, Settled::Lost),
            Holding::Busy => {
                self.neighbours.busy(sender.hop);
                self.send_anew(now, id, Settled::Refused);
            }
        }
    }

    // --- Waits that become long -----------------------------------------------------------------------------

    /// Asks everybody who owes an answer for too long: [`super::Config::ask_after`] or, of a neighbour that said it holds
    /// the microbatch, longer.
    pub(super) fn ask_overdue(&mut self, now: Time) {
        if self.check_at.is_none_or(|at| at > now) {
            return;
        }
        let after = self.config.ask_after;
        let ids: Vec<_> = self.visits.keys().copied().collect();
        for id in ids {
            let Some(visit) = self.visits.get_mut(&id) else { continue };
            let claim_overdue = matches!(visit.claim, Claim::Asked { at } if at + after <= now);
            let awaited = visit.awaited();
            match &mut visit.phase {
                Phase::Passed { asking } if asking.due(after) <= now => {
                    asking.asked(now);
                    if let Some(awaited) = awaited {
                        self.ask(id, awaited);
                    }
                }
                Phase::Refused { told, .. } if *told + after <= now => {
                    *told = now;
                    self.tell_again(id);
                }
                _ => {}
            }
            if claim_overdue {
                self.claim(now, id);
            }
        }
        self.check_at = self.visits.values().filter_map(|visit| visit.due(after)).min();
    }

    fn ask(&mut self, id: MicrobatchId, whom: Neighbour) {
        if let Some(visit) = self.visits.get(&id) {
            let route = visit.route.iter().copied().chain([self.config.hop()]).collect();
            self.send(whom.hop, Message::Ask { microbatch: id, attempt: whom.attempt, route });
        }
    }

    fn tell_again(&mut self, id: MicrobatchId) {
        let told = self.visits.get(&id).and_then(|visit| match &visit.phase {
            Phase::Refused { reason, .. } => Some((visit.arbiter(), reason.clone())),
            _ => None,
        });
        if let Some((arbiter, reason)) = told {
            self.tell_refused(arbiter, id, reason);
        }
    }
}
