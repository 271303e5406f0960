//! The links to the feeders. A feeder that leaves claims unanswered and sends nothing else is lost for this replica: the
//! link to it is missing, or the feeder is gone.
//!
//! Its microbatches wait for nothing then. Gradients without a grant are dropped, so that the executor goes on with the
//! microbatches of other feeders. While the coordinator still lists the feeder, another replica can reach it: the
//! microbatches go back to their upstream. When the coordinator has removed it, they are kept for a successor for a
//! while.

use std::collections::BTreeMap;
use std::fmt::Debug;

use super::microbatch::{ClaimState, Microbatch, Phase};
use super::{Note, Stage};
use crate::handoff::Leg;
use crate::router::Completion;
use crate::{Duration, Message, MicrobatchId, PeerId, Status, Time};

/// A feeder that owes an answer and sends nothing for so long is lost.
pub const FEEDER_LOST_AFTER: Duration = Duration::from_secs(20);

/// Microbatches of a feeder that is lost, or no member any more, are kept for its return or a successor for so long.
pub const KEPT_FOR_SUCCESSOR: Duration = Duration::from_secs(300);

/// The feeders that owe an answer or are lost; microbatches held bound their number. Times are on the clock of the own
/// link, so the silence of a process that stood still counts against no feeder.
#[derive(Clone, Debug, Default)]
pub(super) struct FeederLinks {
    by_feeder: BTreeMap<PeerId, Link>,
    /// Feeders of microbatches held that have left the table, and since when.
    absent: BTreeMap<PeerId, Time>,
}

/// The link to one feeder.
#[derive(Clone, Copy, Debug)]
enum Link {
    /// It owes an answer, and was not heard since.
    Owing(Time),
    /// It is lost since.
    Lost(Time),
}

impl FeederLinks {
    /// A feeder was told something that it answers.
    pub(super) fn asked(&mut self, now: Time, feeder: PeerId) {
        self.by_feeder.entry(feeder).or_insert(Link::Owing(now));
    }

    /// A message of a feeder arrived. Returns whether the feeder was lost.
    pub(super) fn heard(&mut self, feeder: PeerId) -> bool {
        matches!(self.by_feeder.remove(&feeder), Some(Link::Lost(_)))
    }

    pub(super) fn is_lost(&self, feeder: PeerId) -> bool {
        matches!(self.by_feeder.get(&feeder), Some(Link::Lost(_)))
    }

    pub(super) fn lost(&self) -> impl Iterator<Item = PeerId> {
        self.by_feeder.iter().filter(|(_, link)| matches!(link, Link::Lost(_))).map(|(&feeder, _)| feeder)
    }

    /// No microbatch of the feeder is held any more.
    fn forget(&mut self, feeder: PeerId) {
        self.by_feeder.remove(&feeder);
    }

    /// The feeders that are lost from now on.
    fn take_newly_lost(&mut self, now: Time) -> Vec<PeerId> {
        let mut lost = Vec::new();
        for (&feeder, link) in &mut self.by_feeder {
            if matches!(*link, Link::Owing(since) if since + FEEDER_LOST_AFTER <= now) {
                *link = Link::Lost(now);
                lost.push(feeder);
            }
        }
        lost
    }

    /// Notes which of the feeders of held microbatches are no members.
    fn note_absent(&mut self, now: Time, absent: impl Iterator<Item = PeerId>) {
        let before = std::mem::take(&mut self.absent);
        self.absent = absent.map(|feeder| (feeder, before.get(&feeder).copied().unwrap_or(now))).collect();
    }

    /// The feeders whose microbatches are kept no longer.
    fn take_given_up(&mut self, now: Time) -> Vec<PeerId> {
        let over = |since: Time| since + KEPT_FOR_SUCCESSOR <= now;
        let absent = self.absent.extract_if(.., |_, since| over(*since)).map(|(feeder, _)| feeder);
        let lost = |link: &Link| matches!(*link, Link::Lost(since) if over(since));
        let lost = self.by_feeder.extract_if(.., |_, link| lost(link)).map(|(feeder, _)| feeder);
        absent.chain(lost).collect()
    }
}

impl<P: Clone + Default + Debug> Stage<P> {
    /// Acts, at every heartbeat, on feeders that are lost, and on feeders that no successor has followed.
    pub(super) fn judge_feeders(&mut self, now: Time) {
        let clock = self.handoff.neighbours.clock(now);
        for feeder in self.feeders.take_newly_lost(clock) {
            self.lose_feeder(now, feeder);
        }
        for feeder in self.feeders.take_given_up(clock) {
            self.give_up_feeder(now, feeder);
        }
        self.give_up_unanswered(now);
    }

    /// Whether every feeder of the run is lost: more microbatches would only be given back.
    pub(super) fn is_cut_off(&self) -> bool {
        let mut feeders = self.table.feeders().peekable();
        feeders.peek().is_some() && feeders.all(|feeder| self.feeders.is_lost(feeder.instance.peer))
    }

    /// Any message shows that the link works.
    pub(super) fn hear_feeder(&mut self, feeder: PeerId) {
        if self.feeders.heard(feeder) {
            for id in self.microbatches_of(feeder) {
                self.queue_again(id);
            }
        }
    }

    /// A microbatch that was set aside waits for the executor again.
    pub(super) fn queue_again(&mut self, id: MicrobatchId) {
        if let Some(held) = self.microbatches.get(&id).filter(|held| held.queued_since().is_some()) {
            let recovers = held.trains() && !held.takes_slot;
            self.queue.remove(id);
            self.queue.push(id, recovers);
        }
    }

    fn lose_feeder(&mut self, now: Time, feeder: PeerId) {
        let gives_back = self.others_reach(feeder);
        let ids = self.microbatches_of(feeder);
        self.count(Note::FeederLost { feeder, affected: ids.len() });
        for id in ids {
            self.settle_update(id);
            if gives_back {
                self.give_back_ungranted(now, id);
            } else {
                self.set_aside(id);
            }
        }
    }

    /// The executor was at work on it when its feeder was lost.
    pub(super) fn give_back_if_lost(&mut self, now: Time, id: MicrobatchId) {
        let feeder = self.microbatches.get(&id).and_then(Microbatch::feeder).map(|feeder| feeder.peer());
        if feeder.is_some_and(|feeder| self.feeders.is_lost(feeder) && self.others_reach(feeder)) {
            self.give_back_ungranted(now, id);
        }
    }

    /// Whether a microbatch that is given back can reach its lost feeder. What a replica of stage 0 gives back goes to the
    /// feeder itself.
    fn others_reach(&self, feeder: PeerId) -> bool {
        self.config.stage.0 > 0 && self.table.address(feeder).is_some()
    }

    /// Gives a microbatch back that can have no grant here, unless the executor is at work on it or its gradient is
    /// computed.
    pub(super) fn give_back_ungranted(&mut self, now: Time, id: MicrobatchId) {
        let Some(held) = self.microbatches.get(&id) else { return };
        if held.trains()
            && !held.is_granted()
            && !held.is_running()
            && !matches!(held.phase, Phase::Returned(_))
        {
            self.give_back(now, id);
        }
    }

    /// Upstream sends the microbatch to another replica. An evaluation is just dropped: its feeder sends it again.
    pub(super) fn give_back(&mut self, now: Time, id: MicrobatchId) {
        let Some(held) = self.microbatches.get(&id) else { return };
        let Leg { hop, attempt } = held.upstream;
        if held.trains() {
            let status = Status::GivenBack;
            self.send(hop, Message::StatusReply { microbatch: id, attempt, status });
        }
        self.number_on(id);
        self.remove(now, id, Completion::Refused);
        self.count(Note::GivenBack(id));
    }

    /// Its gradient came when its feeder was lost already.
    pub(super) fn set_aside_if_lost(&mut self, id: MicrobatchId) {
        let feeder = self.microbatches.get(&id).and_then(Microbatch::feeder);
        if feeder.is_some_and(|feeder| self.feeders.is_lost(feeder.peer())) {
            self.set_aside(id);
        }
    }

    /// Computes no gradient of a microbatch whose claim no feeder answers, and keeps it for a successor.
    fn set_aside(&mut self, id: MicrobatchId) {
        if self.microbatches.get(&id).is_some_and(|held| held.trains() && !held.is_granted()) {
            self.queue.remove(id);
        }
    }

    /// Notes the feeders of held microbatches that the newer table does not list.
    pub(super) fn note_absent_feeders(&mut self, now: Time) {
        self.forfeits.keep_feeders(|feeder| self.table.address(feeder).is_some());
        let feeders = self.microbatches.values().filter_map(Microbatch::feeder);
        let absent =
            feeders.map(|feeder| feeder.peer()).filter(|&feeder| self.table.address(feeder).is_none());
        let clock = self.handoff.neighbours.clock(now);
        self.feeders.note_absent(clock, absent);
    }

    /// No successor came: the microbatches are of no use.
    fn give_up_feeder(&mut self, now: Time, feeder: PeerId) {
        self.feeders.forget(feeder);
        for id in self.microbatches_of(feeder) {
            self.give_up(now, id);
        }
    }

    /// Frees a microbatch that no feeder wants, as if it had its outcome.
    pub(super) fn give_up(&mut self, now: Time, id: MicrobatchId) {
        self.number_on(id);
        if let Some(held) = self.microbatches.get_mut(&id) {
            held.ended = true;
            if matches!(held.claim, ClaimState::Claimed { .. }) {
                held.claim = ClaimState::GivenUp;
            }
            self.settle_update(id);
            self.release_if_over(now, id);
        }
    }

    /// Should the microbatch come again, its attempts are numbered on.
    fn number_on(&mut self, id: MicrobatchId) {
        self.given_back.insert(id, self.handoff.latest(id).map(|latest| latest.attempt));
    }

    fn microbatches_of(&self, feeder: PeerId) -> Vec<MicrobatchId> {
        let of_feeder = |held: &Microbatch<P>| held.feeder().is_some_and(|hop| hop.peer() == feeder);
        self.microbatches.iter().filter(|(_, held)| of_feeder(held)).map(|(&id, _)| id).collect()
    }
}
