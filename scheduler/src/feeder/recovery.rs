//! What becomes of a microbatch when the replica of stage 0 that had it is lost: it is sent again, and whoever is known to
//! hold it further downstream is asked before anything is computed twice. Every wait that becomes long asks.

use std::collections::BTreeSet;
use std::fmt::Debug;

use super::open::{Open, Phase};
use super::{Action, Feeder};
use crate::handoff::attempts::Neighbour;
use crate::router::Settled;
use crate::{
    Holding, Hop, Incarnation, Membership, Message, MicrobatchId, PeerId, Purpose, StageIndex, Time, Verdict,
};

impl<P: Clone + Default + Debug> Feeder<P> {
    /// Acts on what has become of the replicas of stage 0.
    pub(super) fn judge_neighbours(&mut self, now: Time) {
        for (peer, incarnation, verdict) in self.neighbours.judge(now) {
            match verdict {
                Verdict::Healthy => self.table.heard(peer, incarnation),
                Verdict::Suspect => {}
                Verdict::Wedged | Verdict::Dead => {
                    self.table.quarantine(now, peer, incarnation);
                    self.lose(now, |hop| hop.peer == peer && hop.incarnation == incarnation);
                }
            }
        }
    }

    pub(super) fn on_membership(&mut self, now: Time, membership: Membership) {
        if self.table.update(membership) {
            self.paused_until = None;
            let table = std::mem::take(&mut self.table);
            self.neighbours.watch(now, table.hops(StageIndex(0)));
            let gone: Vec<Hop> =
                self.contributions.hops().filter(|hop| !table.placed(hop)).copied().collect();
            for hop in gone {
                self.counts.contributions_lost += self.contributions.lose(&hop);
            }
            self.lose(now, |hop| !table.placed(hop));
            self.table = table;
            self.follow_successions(now);
        }
    }

    /// What lies with a replica that is `gone` is sent to another.
    pub(super) fn lose(&mut self, now: Time, gone: impl Fn(&Hop) -> bool) {
        let mut orphaned = BTreeSet::new();
        for (&id, open) in &mut self.open {
            open.beyond = open.beyond.filter(|holder| !gone(holder));
            if open.awaited().is_some_and(|awaited| gone(&awaited.hop)) {
                orphaned.insert(id);
            }
        }
        for id in orphaned {
            self.send_anew(now, id, Settled::Lost);
        }
    }

    pub(super) fn send_anew(&mut self, now: Time, id: MicrobatchId, how: Settled) {
        self.settle_sending(now, id, how);
        if let Some(open) = self.open.get_mut(&id) {
            open.lost |= how == Settled::Lost;
            open.phase = Phase::Drawn;
        }
    }

    pub(super) fn on_holds(&mut self, now: Time, sender: Neighbour, id: MicrobatchId, holding: Holding) {
        let placed = self.table.placed(&sender.hop);
        let Some(open) = self.open.get_mut(&id).filter(|open| placed && open.awaited() == Some(sender))
        else {
            return self.counts.foreign += 1;
        };
        match holding {
            Holding::Held => {
                if let (Phase::Sent { asking }, Purpose::Train) = (&mut open.phase, open.purpose) {
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

    /// Somebody missed its upstream: whoever is sent the microbatch anew is told of it.
    pub(super) fn on_held(&mut self, from: PeerId, incarnation: Incarnation, id: MicrobatchId, holder: Hop) {
        let known = self.table.get(from, incarnation).is_some() && self.table.placed(&holder);
        let Some(open) = self.open.get_mut(&id).filter(|_| known && holder.stage.is_some()) else { return };
        let awaited = open.awaited();
        if awaited.is_some_and(|awaited| awaited.hop == holder) {
            return;
        }
        if open.beyond.is_none_or(|beyond| beyond.stage >= holder.stage) {
            open.beyond = Some(holder);
        }
        if let Some(awaited) = awaited.filter(|awaited| awaited.hop.stage < holder.stage) {
            let message = Message::Held { microbatch: id, holder };
            self.actions.push_back(Action::Send { to: awaited.hop.peer, message });
        }
    }

    /// Asks replicas that owe an answer; sends evaluations again, which nobody can be asked for.
    pub(super) fn ask_overdue(&mut self, now: Time) {
        if self.check_at.is_none_or(|at| at > now) {
            return;
        }
        let overdue: Vec<_> = (self.open.iter())
            .filter(|(_, open)| self.due(open).is_some_and(|due| due <= now))
            .filter_map(|(&id, open)| Some((id, open.trains(), open.awaited()?)))
            .collect();
        for (id, trains, awaited) in overdue {
            if trains {
                self.ask(id, awaited);
            } else {
                self.evaluate_again(now, id);
            }
            if let Some(Open { phase: Phase::Sent { asking }, .. }) = self.open.get_mut(&id) {
                asking.asked(now);
            }
        }
        self.check_at = self.open.values().filter_map(|open| self.due(open)).min();
    }

    /// When an answer about `open` is overdue.
    pub(super) fn due(&self, open: &Open<P>) -> Option<Time> {
        open.due(self.config.patience(open.purpose))
    }

    pub(super) fn ask(&mut self, microbatch: MicrobatchId, whom: Neighbour) {
        let message = Message::Ask { microbatch, attempt: whom.attempt, route: vec![self.config.hop()] };
        self.actions.push_back(Action::Send { to: whom.hop.peer, message });
    }

    /// Asks the replica that had a microbatch before this process was restarted; `false` if none is known to live.
    pub(super) fn ask_before(&mut self, now: Time, microbatch: MicrobatchId) -> bool {
        let Some(open) = self.open.get_mut(&microbatch) else { return false };
        let latest = open.sendings.latest().filter(|_| std::mem::take(&mut open.recalled));
        let Some(Neighbour { hop, .. }) = latest.filter(|latest| self.table.placed(&latest.hop)) else {
            return false;
        };
        let attempt = open.sendings.add(hop);
        self.sent(now, microbatch, hop);
        self.ask(microbatch, Neighbour { hop, attempt });
        true
    }
}
