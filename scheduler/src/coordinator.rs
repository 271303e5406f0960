//! The life of a run: its members, the stage each replica serves, the ids each feeder injects, and the end.
//!
//! A run waits until every stage is served, runs while it is, and is finished when every microbatch has its outcome and no
//! feeder works any more. Every change of the members makes a new table, one version up. A member that is silent for the
//! lease is removed, unless all are silent: then the coordinator's own link is down, or its process stood still, and the
//! leases stand still too.
//!
//! A removed replica may live, with weights that no other process has. So a trained stage whose last replica fell silent
//! waits for it (`holders`) before it begins again, and a coordinator that was started again learns its run from the
//! members before it goes on (`restart`).

mod admission;
mod beginning;
mod config;
mod displacement;
mod divergence;
mod event;
mod eviction;
mod facts;
mod farewell;
mod former;
mod holders;
mod keepers;
mod lease_book;
mod members;
mod placement;
mod publishing;
mod reply;
mod restart;
mod resuming;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use crate::health::Link;
use crate::stage::Progress;
use crate::{
    BlockTally, Instance, LeaseRefusal, MemberState, Membership, MicrobatchId, Origin, PeerId, RunTally,
    StageIndex, Time,
};

pub use config::{Config, FeedPolicy, MEMBERS_MAX, Policy};
pub use displacement::{Displacement, OTHERS_FINISHED, STALLED_AFTER};
pub use event::{Action, Event, FeederReport, Join, Reason};
pub use facts::{Fact, FactKey, Facts, RunFact};
pub use reply::{JoinRefusal, Reply};

use displacement::Diligence;
use eviction::Evicted;
use farewell::Farewell;
use former::FormerStarts;
use holders::Holders;
use keepers::Keepers;
use lease_book::LeaseBook;
use members::Members;
use publishing::Publishing;
use restart::Restart;

/// The state of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Some stages have no replica.
    Waiting {
        /// Stages without a serving replica, ascending.
        unserved: Vec<StageIndex>,
    },
    /// Every stage is served.
    Running,
    /// Every microbatch has its outcome, and no feeder works any more.
    Finished,
}

/// The machine that decides about the members of a run.
#[derive(Clone, Debug)]
pub struct Coordinator {
    config: Config,
    version: u64,
    members: Members,
    former: FormerStarts,
    evicted: Evicted,
    keepers: Keepers,
    diligence: Diligence,
    holders: Holders,
    /// `None` if the run began with this start.
    restart: Option<Restart>,
    /// Members may come that only they know of: no replica is placed, no ids are leased.
    waits_for_members: bool,
    link: Link,
    now: Time,
    leases: LeaseBook,
    /// The first peer that took ids.
    first_feeder: Option<PeerId>,
    /// Stages whose weights have been updated, ascending, as their replicas have reported.
    trained: Vec<StageIndex>,
    /// The checkpoint that the launch began at.
    origin: Option<Origin>,
    /// Any stage may be trained: a table has named ids and a replica of every stage, or a replica has reported progress.
    has_run: bool,
    /// The run has ended by a divergence, after this many microbatches.
    diverged: Option<u64>,
    /// The end of the run; `None` before it is over.
    farewell: Option<Farewell>,
    publishing: Publishing,
    /// The facts about the run as the log has them.
    logged_run: Option<RunFact>,
    actions: VecDeque<Action>,
}

impl Coordinator {
    /// The coordinator of a run without members.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            members: Members::new(config.stages, config.lease),
            leases: LeaseBook::new(config.total),
            config,
            version: 0,
            former: FormerStarts::default(),
            evicted: Evicted::default(),
            keepers: Keepers::default(),
            diligence: Diligence::default(),
            holders: Holders::default(),
            restart: None,
            waits_for_members: false,
            link: Link::default(),
            now: Time::default(),
            first_feeder: None,
            trained: Vec::new(),
            origin: None,
            has_run: false,
            diverged: None,
            farewell: None,
            publishing: Publishing::default(),
            logged_run: None,
            actions: VecDeque::new(),
        }
    }

    /// The coordinator of a run that may have members already, which know its key from an earlier start.
    #[must_use]
    pub fn restarted(config: Config) -> Self {
        Self {
            restart: Some(Restart::new(config.launch)),
            waits_for_members: true,
            leases: LeaseBook::of_later_start(config.total, config.launch),
            ..Self::new(config)
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    ///
    /// A table comes before the reply: the first table of a successor names the ranges that it takes over, so it denies
    /// no claim that only the former feeder could judge. Where the table waits for its time, the reply waits for it.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = self.now.max(now);
        let from = event.sender();
        if from.is_some() {
            self.hear_after_restart(now);
        }
        let sender = from.map(|from| from.peer);
        let clock = self.lease_clock(now, sender);
        self.remove_silent(clock, sender);
        self.end_waits(now, clock);
        let reply = match event {
            Event::TableReturned { from, table } => Some(self.take_back(now, clock, from, &table)),
            event if self.asks_for_table(&event) => Some(Reply::Unknown),
            event => self.reply(clock, &event),
        };
        self.note_stranger(now, from, reply.as_ref());
        self.notice_finished(now);
        self.promote_standbys(clock);
        self.end_outages();
        self.publish();
        if let Some((from, reply)) = from.zip(reply)
            && let Some(reply) = self.publishing.wait(from, reply)
        {
            self.actions.push_back(Action::Reply { to: from.peer, reply });
        }
        self.notice_end(now);
        self.log();
    }

    /// Handles a request and returns its reply.
    fn reply(&mut self, now: Time, event: &Event) -> Option<Reply> {
        Some(match *event {
            Event::LeaseRequest { from, next, count, ref tallies } => {
                self.lease(now, from, (next, count), tallies)
            }
            Event::FeederReport { from, ref report } => self.feeder_report(now, from, report),
            Event::Join(request) => self.join(now, request).map_or_else(Reply::JoinRefused, Reply::Joined),
            Event::Ready { from, stage, initial } => self.ready(now, from, stage, initial),
            Event::Heartbeat { from, progress } => self.heartbeat(now, from, progress),
            Event::KeeperHeartbeat { from, kept } => self.keeper_heartbeat(now, from, kept),
            Event::Leave { from } => self.leave(from),
            Event::Strike { from, replica, evidence } => self.strike(now, from, replica, evidence),
            Event::TableReturned { .. } | Event::Timeout => return None,
        })
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of `handle`, with [`Event::Timeout`]; `None` if there is nothing to wait for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let expires = self.members.next_expiry().and_then(|at| self.told_by_caller(at));
        let expires = expires.map(|at| (at, Reason::MemberExpires));
        let forsaken = self.holders.next_end().and_then(|at| self.told_by_caller(at));
        let forsaken = forsaken.map(|at| (at, Reason::HolderForsaken));
        let returned = self.return_ends().map(|at| (at, Reason::ReturnEnds));
        let farewell = self.farewell.as_ref().and_then(Farewell::next);
        let farewell = farewell.map(|at| (at, Reason::FarewellEnds));
        let table = self.publishing.next().filter(|_| !self.withholds_table());
        let table = table.map(|at| (at, Reason::TableDue));
        [expires, forsaken, returned, farewell, table].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The state of the run.
    #[must_use]
    pub fn state(&self) -> RunState {
        if self.is_finished() {
            return RunState::Finished;
        }
        let unserved: Vec<_> = self.members.occupancy().unserved().collect();
        if unserved.is_empty() { RunState::Running } else { RunState::Waiting { unserved } }
    }

    /// Whether the run is over.
    #[must_use]
    pub fn is_finished(&self) -> bool {
        self.farewell.is_some()
    }

    /// Whether the reply to `peer` says that the run is over. The replicas of a finished run stay until its keepers have the
    /// final states.
    #[must_use]
    pub fn tells_end(&self, peer: PeerId) -> bool {
        self.farewell.as_ref().is_some_and(|farewell| farewell.tells(peer, &self.members))
    }

    /// What a table says that is made now, with the version of the table published last.
    #[must_use]
    pub fn membership(&self) -> Membership {
        Membership {
            launch: self.config.launch,
            version: self.version,
            members: self.members.iter().cloned().collect(),
            leases: self.leases.ranges(),
            trained: self.trained.clone(),
            awaited: self.holders.stages().into_iter().collect(),
            restorable: self.restorable(),
            origin: self.origin,
        }
    }

    /// Microbatches injected and settled by all feeders, those that are gone included.
    #[must_use]
    pub fn run_progress(&self) -> RunTally {
        self.leases.progress()
    }

    /// The settings that the coordinator was created with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // --- Requests -------------------------------------------------------------------------------------------

    fn heartbeat(&mut self, now: Time, from: Instance, progress: Progress) -> Reply {
        let Some(entry) = self.members.touch(now, from) else { return self.stranger(from) };
        let state = entry.member.state;
        if let MemberState::Serving(stage) = state
            && progress.done > 0
        {
            self.note_trained(stage);
        }
        if !self.is_finished() && self.displace(now, from, state, progress) {
            return Reply::NotAMember;
        }
        Reply::Noted(state)
    }

    /// The reply to a start that is no member.
    fn stranger(&self, from: Instance) -> Reply {
        if self.members.contains(from.peer) { Reply::NotAMember } else { Reply::Unknown }
    }

    /// Notes that the weights of `stage` were updated: from now on a replica that begins with initial weights loses
    /// updates.
    fn note_trained(&mut self, stage: StageIndex) {
        self.has_run = true;
        if let Err(place) = self.trained.binary_search(&stage) {
            self.trained.insert(place, stage);
            self.publishing.change();
        }
    }

    fn leave(&mut self, from: Instance) -> Reply {
        if self.members.get(from).is_none() {
            return self.stranger(from);
        }
        self.leases.close_settled(from);
        self.dismiss(from);
        Reply::Left
    }

    /// Takes a member from the run whose weights, if it has any, are not awaited.
    fn dismiss(&mut self, from: Instance) {
        self.members.remove(from.peer);
        self.former.note(from);
        self.holders.forget(from.peer);
        self.publishing.change();
    }

    /// Leases ids. A feeder that asks when nothing is left takes over from the feeders that are gone: their microbatches
    /// are all that the run still waits for.
    fn lease(
        &mut self,
        now: Time,
        from: Instance,
        (next, count): (Option<MicrobatchId>, u64),
        tallies: &[BlockTally],
    ) -> Reply {
        let Some(entry) = self.members.touch(now, from) else { return self.stranger(from) };
        if entry.member.state != MemberState::Feeding {
            return Reply::LeaseRefused(LeaseRefusal::NotAFeeder);
        }
        if self.is_finished() {
            return Reply::LeaseRefused(LeaseRefusal::Finished);
        }
        if self.waits_for_members {
            return Reply::Unknown;
        }
        // A feeder that never got so far, for its text was missing, owns nothing.
        let first = *self.first_feeder.get_or_insert(from.peer);
        if self.check_may_feed(from.peer).is_err() {
            return Reply::LeaseRefused(LeaseRefusal::FedByAnother { first });
        }
        let Self { members, leases, .. } = self;
        leases.report(from, tallies);
        let lease = leases.lease(from, next, count, members.feeders());
        if leases.is_given_out() && lease.is_ok_and(|lease| lease.count == 0) {
            leases.succeed(from, |holder| !members.contains(holder.peer));
        }
        let others = leases.others(from, tallies);
        lease.map_or_else(Reply::LeaseRefused, |lease| Reply::Leased { lease, others })
    }

    fn feeder_report(&mut self, now: Time, from: Instance, report: &FeederReport) -> Reply {
        let Some(entry) = self.members.touch(now, from) else { return self.stranger(from) };
        if entry.member.state != MemberState::Feeding {
            return Reply::NotAMember;
        }
        self.leases.report(from, &report.tallies);
        if let Some(at) = report.diverged {
            self.note_diverged(from, at);
        }
        if report.done {
            self.members.set_done(from.peer);
            self.leases.close_settled(from);
        }
        Reply::Reported { others: self.leases.others(from, &report.tallies) }
    }

    // --- Consequences ---------------------------------------------------------------------------------------

    /// The caller's time at which the clock of the leases shows `at`; `None` if that clock stands still before.
    fn told_by_caller(&self, at: Time) -> Option<Time> {
        let at = self.link.told_by_caller(at);
        let stands = self.link.goes_down(self.members.len());
        stands.is_none_or(|stands| at < stands && self.now < stands).then_some(at)
    }

    /// The clock of the members' leases. It stands still while no member is heard.
    fn lease_clock(&mut self, now: Time, sender: Option<PeerId>) -> Time {
        let members = self.members.len();
        // Where there are no members to be heard, the link counts as up.
        let is_watched = self.link.goes_down(members).is_some();
        if !is_watched || sender.is_some_and(|peer| self.members.contains(peer)) {
            self.link.sign(now, members);
        }
        self.link.clock(now, members)
    }

    /// Removes members that were silent for a lease, except the sender of the current event.
    fn remove_silent(&mut self, now: Time, sender: Option<PeerId>) {
        while let Some(peer) = self.members.expired(now, sender) {
            self.expel(now, peer);
        }
    }

    fn expel(&mut self, now: Time, peer: PeerId) {
        let gave = self.members.gives_checkpoint();
        let Some(entry) = self.members.remove(peer) else { return };
        self.former.note(entry.member.instance);
        self.publishing.change();
        if gave && !self.members.gives_checkpoint() {
            self.actions.push_back(Action::KeeperSilent);
        }
        if let MemberState::Serving(stage) = entry.member.state {
            self.await_holder(now, peer, Some(stage));
        }
    }

    fn end_waits(&mut self, now: Time, clock: Time) {
        if self.holders.expire(clock) {
            self.publishing.change();
        }
        self.end_return(now);
    }

    /// The run is over when every microbatch has its outcome, and every feeder in the table has called its last averaging
    /// round; or when it has diverged.
    fn notice_finished(&mut self, now: Time) {
        let is_complete = !self.members.has_working_feeder() && self.leases.is_over();
        if !self.is_finished() && (is_complete || self.diverged.is_some()) {
            // The table says so to a later start of the coordinator.
            self.publishing.change();
            self.farewell = Some(Farewell::new(now, &self.config, self.diverged.is_some()));
            self.actions.push_back(Action::Finished);
        }
    }

    fn publish(&mut self) {
        if self.leases.take_changed() {
            self.publishing.change_leases();
        }
        if self.withholds_table() {
            return;
        }
        if self.publishing.take_turn(self.now, self.config.table_interval) {
            let names_ids = !self.leases.ranges().is_empty();
            self.has_run |= names_ids && self.members.occupancy().is_complete();
            self.version += 1;
            self.diligence.retain(|peer| self.members.contains(peer));
            self.actions.push_back(Action::Membership(self.membership()));
            let waiting = self.publishing.take_waiting().into_iter();
            self.actions.extend(waiting.map(|(to, reply)| Action::LateReply { to, reply }));
        }
    }

    /// A finished run ends when its members have left, or their time to leave is over.
    fn notice_end(&mut self, now: Time) {
        let Some(farewell) = &mut self.farewell else { return };
        farewell.follow(now, &self.config, self.members.keepers());
        if farewell.ends(now, self.members.is_empty()) {
            self.actions.push_back(Action::End);
        }
    }
}
