//! The microbatches that this peer handed on to the next stage and has not got back.
//!
//! A replica hands its activations to the next stage, a feeder its token ids to stage 0. Both choose a replica by the
//! router among the neighbours that live, number their attempts, ask when a reply is overdue, and hand the microbatch to
//! another replica when the first replica is lost. This module does all of that; the owner decides about a microbatch
//! that is lost or comes back.

mod attempts;
mod named;
mod neighbours;
mod status_timer;

use std::collections::{BTreeMap, BTreeSet};

use crate::alarms::Alarms;
use crate::router::{Choice, Completion, Router};
use crate::{
    Attempt, Duration, Hop, Instance, Message, MicrobatchId, MovingAverage, PeerId, PeerTable, StageIndex,
    Status, Time, Verdict,
};

pub(crate) use attempts::Leg;
pub(crate) use neighbours::Neighbours;

use attempts::Attempts;
use named::{Named, Names};
use status_timer::StatusTimer;

/// A neighbour that holds a microbatch for more than this many times the usual keeps it: another replica gets it.
const TURNAROUNDS_MAX: u32 = 8;

/// A neighbour may hold a microbatch for so long, however fast others are, and for so much longer with each stage behind
/// it: a neighbour that passes microbatches to a black hole is to find that out first.
const HELD_MIN: Duration = Duration::from_secs(20);

/// The microbatches handed on, and the neighbours that can take more.
#[derive(Debug)]
pub(crate) struct Handoff {
    /// The stage that takes the microbatches.
    next: StageIndex,
    /// A neighbour may hold a microbatch for so long.
    held_min: Duration,
    router: Box<dyn Router>,
    pub(crate) neighbours: Neighbours,
    /// Average time from handing a microbatch on to its return.
    turnaround: MovingAverage,
    entries: BTreeMap<MicrobatchId, Entry>,
    named: Named,
    /// When the reply about each microbatch is overdue, if it is awaited.
    due: Alarms<MicrobatchId>,
    /// Replicas that were handed a microbatch and are no neighbours by the table; see [`Handoff::follow`].
    strays: BTreeSet<Hop>,
}

/// One microbatch further down the pipeline.
#[derive(Clone, Debug, Default)]
struct Entry {
    attempts: Attempts,
    /// Running while the reply of the latest attempt is awaited.
    timer: Option<(StatusTimer, Duration)>,
    /// Time of the latest attempt.
    sent_at: Time,
    /// An attempt was lost with its receiver.
    had_failed: bool,
    /// The nearest replica that is known to hold it, at the next stage or further downstream.
    holder: Option<Hop>,
}

/// The attempts whose reply is overdue.
#[derive(Debug, Default)]
pub(crate) struct Overdue {
    /// The attempts whose status is to be requested.
    pub(crate) requests: Vec<(MicrobatchId, Leg)>,
    /// The microbatches whose attempt has failed: the neighbour answers no request about it.
    pub(crate) hopeless: Vec<MicrobatchId>,
}

impl Entry {
    fn awaited(&self) -> Option<Leg> {
        self.timer.and(self.attempts.latest())
    }

    fn due(&self) -> Option<Time> {
        self.timer.map(|(timer, timeout)| timer.due(timeout))
    }

    fn names(&self) -> Names {
        [self.awaited().map(|leg| leg.hop), self.holder]
    }
}

impl Handoff {
    /// A handoff to the stage `next` of `stages`, with no microbatch and no neighbour.
    pub(crate) fn new(next: StageIndex, stages: u16, router: Box<dyn Router>) -> Self {
        let (neighbours, entries) = (Neighbours::new(next), BTreeMap::new());
        Self {
            next,
            held_min: HELD_MIN * u32::from(stages.saturating_sub(next.0).max(1)),
            router,
            neighbours,
            turnaround: MovingAverage::default(),
            entries,
            named: Named::default(),
            due: Alarms::default(),
            strays: BTreeSet::new(),
        }
    }

    // --- Handing on -----------------------------------------------------------------------------------------

    /// The replica that should get the next microbatch; `None` if no replica takes one now.
    pub(crate) fn choose(&mut self, now: Time, table: &PeerTable) -> Option<Hop> {
        let candidates = self.neighbours.candidates(now, table);
        self.router.choose(now, &Choice { candidates: &candidates, senders: table.senders(self.next) })
    }

    /// A microbatch is handed to `to`, which owes a reply. After `timeout` without a reply its status is requested.
    /// Returns the number of the attempt.
    pub(crate) fn sent(&mut self, now: Time, id: MicrobatchId, to: Hop, timeout: Duration) -> Attempt {
        self.router.on_sent(now, to, id);
        if !self.neighbours.watches(to.instance) {
            self.strays.insert(to);
        }
        self.neighbours.has(to, self.router.outstanding_at(&to));
        self.change(id, |entry| {
            entry.timer = Some((StatusTimer::sent(now), timeout));
            entry.sent_at = now;
            entry.attempts.add(to)
        })
    }

    /// Watches exactly the peers `upstream` and `downstream`, and the replicas that have microbatches of this peer and
    /// are still `placed`. Returns all of them that are downstream.
    pub(crate) fn watch(
        &mut self,
        now: Time,
        upstream: impl Iterator<Item = Hop>,
        downstream: impl Iterator<Item = Hop>,
        placed: impl Fn(&Hop) -> bool,
    ) -> BTreeSet<Hop> {
        let handed = self.entries.values().filter_map(|entry| Some(entry.awaited()?.hop)).filter(placed);
        let downstream: BTreeSet<Hop> = downstream.chain(handed).collect();
        let hops = upstream.chain(downstream.iter().copied());
        self.strays.clear();
        self.neighbours.watch(now, hops, |hop| self.router.outstanding_at(hop));
        downstream
    }

    /// Follows the table: watches the replicas that this peer hands microbatches to, and others that have some and are
    /// still placed. Costs what has changed.
    pub(crate) fn follow(&mut self, now: Time, table: &PeerTable) {
        let (left, entered) = table.downstream_changes();
        for hop in entered {
            self.strays.remove(hop);
            self.watch_too(now, *hop);
        }
        let strays = std::mem::take(&mut self.strays);
        for hop in strays.into_iter().chain(left.iter().copied()) {
            if table.placed(&hop) && self.router.outstanding_at(&hop) > 0 {
                self.strays.insert(hop);
                self.watch_too(now, hop);
            } else {
                self.neighbours.forget(hop);
            }
        }
    }

    fn watch_too(&mut self, now: Time, hop: Hop) {
        if !self.neighbours.watches(hop.instance) {
            self.neighbours.watch_too(now, hop, self.router.outstanding_at(&hop));
        }
    }

    /// Changes an entry, which begins empty, and what follows from it.
    fn change<T>(&mut self, id: MicrobatchId, change: impl FnOnce(&mut Entry) -> T) -> T {
        let entry = self.entries.entry(id).or_default();
        let (names, due) = (entry.names(), entry.due());
        let changed = change(entry);
        self.named.change(id, names, entry.names());
        if entry.due() != due {
            self.due.set(id, entry.due());
        }
        changed
    }

    fn set_timer(&mut self, id: MicrobatchId, timer: Option<(StatusTimer, Duration)>) {
        self.change(id, |entry| entry.timer = timer);
    }

    /// Numbers the attempts of a microbatch from `first` on.
    pub(crate) fn number_from(&mut self, id: MicrobatchId, first: Attempt) {
        self.change(id, |entry| entry.attempts = Attempts::from(first));
    }

    /// Notes an attempt that was made before this process started. Its reply is not awaited.
    pub(crate) fn remember(&mut self, id: MicrobatchId, to: Hop) {
        self.change(id, |entry| entry.attempts.add(to));
    }

    /// `holder` is known to have the microbatch further downstream.
    pub(crate) fn hint(&mut self, id: MicrobatchId, holder: Hop) {
        self.change(id, |entry| entry.holder = Some(holder));
    }

    /// The microbatch counts as lost: its next attempt is a retry.
    pub(crate) fn mark_failed(&mut self, id: MicrobatchId) {
        self.change(id, |entry| entry.had_failed = true);
    }

    // --- Outcomes -------------------------------------------------------------------------------------------

    /// The latest attempt is over; its reply is no longer awaited.
    pub(crate) fn complete(&mut self, now: Time, id: MicrobatchId, how: Completion) {
        let Some(Leg { hop, .. }) = self.awaited(id) else { return };
        match how {
            Completion::Returned => {
                if let Some(entry) = self.entries.get(&id) {
                    self.turnaround.add(now.since(entry.sent_at));
                }
                self.neighbours.earns(hop);
            }
            Completion::Lost => self.neighbours.loses(hop),
            Completion::Refused => {}
        }
        self.set_timer(id, None);
        self.router.on_completed(now, hop, id, how);
        self.neighbours.has(hop, self.router.outstanding_at(&hop));
    }

    /// The latest attempt failed; the microbatch needs another attempt.
    pub(crate) fn fail(&mut self, now: Time, id: MicrobatchId, how: Completion) {
        self.complete(now, id, how);
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.had_failed |= how == Completion::Lost;
        }
    }

    /// Drops the entry of a microbatch that needs no further attempt.
    pub(crate) fn forget(&mut self, now: Time, id: MicrobatchId, how: Completion) {
        self.complete(now, id, how);
        if let Some(entry) = self.entries.remove(&id) {
            self.named.change(id, entry.names(), Names::default());
        }
    }

    /// Fails every attempt with these replicas and returns the microbatches, by id; hints that name them are dropped.
    pub(crate) fn lose(&mut self, now: Time, gone: &BTreeSet<Hop>) -> BTreeSet<MicrobatchId> {
        let named: BTreeSet<_> = gone.iter().flat_map(|&hop| self.named.by(hop)).collect();
        let mut failed = BTreeSet::new();
        for id in named {
            self.change(id, |entry| entry.holder = entry.holder.filter(|holder| !gone.contains(holder)));
            if self.awaited(id).is_some_and(|awaited| gone.contains(&awaited.hop)) {
                failed.insert(id);
            }
        }
        failed.iter().for_each(|&id| self.fail(now, id, Completion::Lost));
        failed
    }

    /// The replicas that have a microbatch of this peer, or may have one further downstream.
    pub(crate) fn named(&self) -> impl Iterator<Item = &Hop> {
        self.named.hops()
    }

    /// A neighbour replied about the awaited attempt. Returns whether the microbatch needs another attempt.
    pub(crate) fn on_status(&mut self, now: Time, leg: Leg, id: MicrobatchId, status: Status) -> bool {
        match status {
            Status::Held if !self.is_kept_too_long(now, id) => {
                if let Some((mut timer, timeout)) = self.entries.get(&id).and_then(|entry| entry.timer) {
                    timer.held(now);
                    self.set_timer(id, Some((timer, timeout)));
                }
                return false;
            }
            Status::Held | Status::GivenBack => {
                self.neighbours.keeps(now, leg.hop);
                self.fail(now, id, Completion::Lost);
            }
            Status::Missing => self.fail(now, id, Completion::Lost),
            Status::Busy => {
                self.neighbours.busy(leg.hop);
                self.fail(now, id, Completion::Refused);
            }
        }
        true
    }

    /// Whether a neighbour has held the microbatch for far longer than others take to return one.
    fn is_kept_too_long(&self, now: Time, id: MicrobatchId) -> bool {
        let limit = self.long_turnaround().unwrap_or_default().max(self.held_min);
        self.entries.get(&id).is_some_and(|entry| entry.sent_at + limit <= now)
    }

    /// A time in which a neighbour that returns anything has returned it; `None` before the first return.
    pub(crate) fn long_turnaround(&self) -> Option<Duration> {
        self.turnaround.get().map(|usual| usual * TURNAROUNDS_MAX)
    }

    /// The own queue for `to` did not take `message`. A microbatch in it waits as if the neighbour were busy: until the
    /// next heartbeat of the neighbour, or for another replica. Returns the microbatch.
    pub(crate) fn on_send_queue_full(
        &mut self,
        now: Time,
        to: PeerId,
        message: &Message,
    ) -> Option<MicrobatchId> {
        let Message::Forward { microbatch, attempt, .. } = message else { return None };
        let unsent =
            self.awaited(*microbatch).filter(|leg| leg.hop.peer() == to && leg.attempt == *attempt)?;
        self.on_status(now, unsent, *microbatch, Status::Busy).then_some(*microbatch)
    }

    /// The neighbour of the awaited attempt handed the microbatch on to `next`: if the neighbour is lost, `next` is
    /// asked.
    pub(crate) fn on_forwarded(&mut self, leg: Leg, id: MicrobatchId, next: Hop) {
        if self.awaited(id) == Some(leg) && next.stage > Some(self.next) {
            self.hint(id, next);
        }
    }

    /// A replica downstream has lost its upstream. The next attempt names it as holder. Returns the replica that was
    /// handed the microbatch meanwhile, which needs the notice too.
    pub(crate) fn on_orphan(&mut self, id: MicrobatchId, holder: Hop) -> Option<Hop> {
        if self.latest(id).map(|latest| latest.hop) == Some(holder) {
            return None;
        }
        self.change(id, |entry| {
            if entry.holder.is_none_or(|known| known.stage >= holder.stage) {
                entry.holder = Some(holder);
            }
        });
        self.awaited(id).map(|awaited| awaited.hop).filter(|hop| hop.stage < holder.stage)
    }

    /// Takes the hint that a replica of the next stage itself has the microbatch.
    pub(crate) fn take_next_holder(&mut self, id: MicrobatchId) -> Option<Hop> {
        let next = Some(self.next);
        self.entries
            .contains_key(&id)
            .then(|| self.change(id, |entry| entry.holder.take_if(|holder| holder.stage == next)))?
    }

    // --- Waits ----------------------------------------------------------------------------------------------

    /// The attempts whose reply is overdue, by id. Each counts as requested now; an attempt whose requests go unanswered
    /// fails.
    pub(crate) fn take_overdue(&mut self, now: Time) -> Overdue {
        let mut overdue = Overdue::default();
        for id in self.due.take_due(now) {
            let Some((mut timer, timeout)) = self.entries.get(&id).and_then(|entry| entry.timer) else {
                continue;
            };
            if timer.is_hopeless() {
                overdue.hopeless.push(id);
                self.fail(now, id, Completion::Lost);
            } else {
                overdue.requests.extend(self.awaited(id).map(|leg| (id, leg)));
                timer.requested(now);
                self.set_timer(id, Some((timer, timeout)));
            }
        }
        overdue
    }

    /// When the next reply is overdue.
    pub(crate) fn next_check(&self) -> Option<Time> {
        self.due.next().map(|(at, _)| at)
    }

    /// Acts on the verdicts that have changed: a healthy peer may be chosen again, a dead or stalled peer is
    /// quarantined. Returns the dead and stalled peers.
    pub(crate) fn judge(&mut self, now: Time, table: &mut PeerTable) -> Vec<Instance> {
        let mut lost = Vec::new();
        for (instance, verdict) in self.neighbours.judge(now) {
            match verdict {
                Verdict::Healthy => table.heard(instance),
                Verdict::Suspect => {}
                Verdict::Stalled | Verdict::Dead => {
                    table.quarantine(now, instance);
                    lost.push(instance);
                }
            }
        }
        lost
    }

    /// The wait for a reply begins again, without a request.
    pub(crate) fn restart_wait(&mut self, now: Time, id: MicrobatchId) {
        self.change(id, |entry| {
            if let Some((timer, _)) = &mut entry.timer {
                *timer = StatusTimer::sent(now);
            }
        });
    }

    // --- Getters --------------------------------------------------------------------------------------------

    /// The attempt whose reply is awaited.
    pub(crate) fn awaited(&self, id: MicrobatchId) -> Option<Leg> {
        self.entries.get(&id).and_then(Entry::awaited)
    }

    /// The latest attempt, whether or not its reply is awaited.
    pub(crate) fn latest(&self, id: MicrobatchId) -> Option<Leg> {
        self.entries.get(&id)?.attempts.latest()
    }

    /// Whether the microbatch was handed to this neighbour under this number.
    pub(crate) fn contains(&self, id: MicrobatchId, leg: Leg) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.attempts.contain(leg))
    }

    /// Whether the microbatch was handed on under this number.
    pub(crate) fn contains_number(&self, id: MicrobatchId, attempt: Attempt) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.attempts.contain_number(attempt))
    }

    /// When the latest attempt was made.
    pub(crate) fn sent_at(&self, id: MicrobatchId) -> Option<Time> {
        self.entries.get(&id).map(|entry| entry.sent_at)
    }

    /// Attempts so far, at most as many as are remembered.
    pub(crate) fn attempts(&self, id: MicrobatchId) -> u32 {
        self.entries.get(&id).map_or(0, |entry| entry.attempts.count())
    }

    /// Whether an attempt was lost with its receiver.
    pub(crate) fn had_failed(&self, id: MicrobatchId) -> bool {
        self.entries.get(&id).is_some_and(|entry| entry.had_failed)
    }

    /// The replica that is known to hold the microbatch beyond the next stage.
    pub(crate) fn holder_beyond(&self, id: MicrobatchId) -> Option<Hop> {
        let holder = self.entries.get(&id)?.holder;
        holder.filter(|holder| holder.stage > Some(self.next))
    }
}
