//! The life of a run: its members, the stage each replica serves, the ids each feeder injects, and the end.
//!
//! A run waits until every stage is served, runs while it is, and is finished when its feeders say so. Every change of the
//! members makes a new table, one version up. A member that is silent for the lease is removed, unless all are silent:
//! then the coordinator's own link is down, or its process stood still, and the leases stand still too.

mod config;
mod event;
mod lease_book;
mod placement;
mod reply;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use crate::health::Link;
use crate::stage::Progress;
use crate::{
    HeldLease, Instance, LeaseRefusal, Member, MemberState, Membership, PeerId, Role, StageIndex, Time,
};

pub use config::{Config, FeedPolicy, MEMBERS_MAX, Policy};
pub use event::{Action, Event, Reason};
pub use lease_book::{LEASES_MAX, LeaseBook};
pub use reply::{JoinRefusal, Reply};

use placement::Occupancy;

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
    /// A feeder has reported the end of its work, and no feeder works any more.
    Finished,
}

/// A member, with the fields that only the coordinator knows.
#[derive(Clone, Debug)]
struct Entry {
    member: Member,
    /// Time of its last request, on the clock of the leases.
    heard: Time,
    progress: Progress,
    /// A feeder that has reported the end of its work.
    done: bool,
}

/// The machine that decides about the members of a run.
#[derive(Clone, Debug)]
pub struct Coordinator {
    config: Config,
    version: u64,
    entries: BTreeMap<PeerId, Entry>,
    link: Link,
    now: Time,
    leases: LeaseBook,
    /// The first peer that took ids.
    first_feeder: Option<PeerId>,
    /// Stages whose weights have been updated, ascending.
    trained: Vec<StageIndex>,
    /// A feeder has reported the end of its work; it may have left since.
    fed: bool,
    finished: bool,
    /// Time at which a finished run ends, even if members have not left.
    farewell_until: Option<Time>,
    ended: bool,
    /// The members differ from the table published last.
    changed: bool,
    actions: VecDeque<Action>,
}

impl Coordinator {
    /// The coordinator of a run without members.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            version: 0,
            entries: BTreeMap::new(),
            link: Link::default(),
            now: Time::default(),
            leases: LeaseBook::default(),
            first_feeder: None,
            trained: Vec::new(),
            fed: false,
            finished: false,
            farewell_until: None,
            ended: false,
            changed: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    ///
    /// A table comes before the reply: the first table of a successor names the ranges that it takes over, so it denies
    /// no claim that only the former feeder could judge.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.now = self.now.max(now);
        let sender = event.sender().map(|from| from.peer);
        let clock = self.lease_clock(now, sender);
        self.remove_silent(clock, sender);
        let reply = self.reply(clock, event);
        self.notice_finished(now);
        self.promote_standbys();
        self.publish();
        let replies = sender.zip(reply).map(|(to, reply)| Action::Reply { to, reply });
        self.actions.extend(replies);
        self.notice_end(now);
    }

    /// Handles a request and returns its reply.
    fn reply(&mut self, now: Time, event: Event) -> Option<Reply> {
        let noted = |state: Option<MemberState>| state.map_or(Reply::NotAMember, Reply::Noted);
        Some(match event {
            Event::Join { from, role, address } => {
                self.join(now, from, role, address).map_or_else(Reply::JoinRefused, Reply::Joined)
            }
            Event::Ready { from, stage } => noted(self.ready(now, from, stage)),
            Event::Heartbeat { from, progress } => noted(self.heartbeat(now, from, progress)),
            Event::Leave { from } if self.leave(from) => Reply::Left,
            Event::Leave { .. } => Reply::NotAMember,
            Event::LeaseRequest { from, count } => self.lease(now, from, count),
            Event::FeederDone { from } => noted(self.feeder_done(now, from)),
            Event::Timeout => return None,
        })
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of `handle`, with [`Event::Timeout`]; `None` if there is nothing to wait for.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let expires = self.next_expiry().map(|at| (at, Reason::MemberExpires));
        let farewell = self.farewell_until.filter(|_| !self.ended).map(|at| (at, Reason::FarewellEnds));
        [expires, farewell].into_iter().flatten().min_by_key(|(at, _)| *at)
    }

    /// The state of the run.
    #[must_use]
    pub fn state(&self) -> RunState {
        if self.finished {
            return RunState::Finished;
        }
        let unserved: Vec<_> =
            (0..self.config.stages).map(StageIndex).filter(|&stage| !self.serves(stage)).collect();
        if unserved.is_empty() { RunState::Running } else { RunState::Waiting { unserved } }
    }

    /// The current members, with the version of the table published last.
    #[must_use]
    pub fn membership(&self) -> Membership {
        let members = self.entries.values().map(|entry| entry.member.clone()).collect();
        let (successions, trained) = (self.leases.successions(), self.trained.clone());
        Membership { launch: self.config.launch, version: self.version, members, successions, trained }
    }

    /// The latest progress of a member.
    #[must_use]
    pub fn progress(&self, peer: PeerId) -> Option<Progress> {
        self.entries.get(&peer).map(|entry| entry.progress)
    }

    /// Ranges of ids given out, by first id.
    #[must_use]
    pub fn leases(&self) -> &[HeldLease] {
        self.leases.held()
    }

    /// The settings that the coordinator was created with.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // --- Requests -------------------------------------------------------------------------------------------

    fn join(
        &mut self,
        now: Time,
        from: Instance,
        role: Role,
        address: SocketAddr,
    ) -> Result<MemberState, JoinRefusal> {
        if self.finished {
            return Err(JoinRefusal::Finished);
        }
        if !self.config.policy.admits(from.peer) {
            return Err(JoinRefusal::NotListed);
        }
        if role != Role::Replica {
            self.check_may_feed(from.peer)?;
        }
        let known = self.entries.get(&from.peer).map(|entry| (entry.member.instance, entry.member.state));
        match known {
            Some((known, _)) if known > from => {
                return Err(JoinRefusal::Superseded { known: known.incarnation });
            }
            Some((known, state)) if known == from => {
                self.touch(now, from);
                return Ok(state);
            }
            None if self.entries.len() >= self.config.members_max => {
                return Err(JoinRefusal::Full { limit: self.config.members_max });
            }
            Some(_) | None => {}
        }
        if role == Role::Successor {
            self.succeed(from)?;
        }
        self.entries.remove(&from.peer);
        let previous = known.and_then(|(_, state)| state.stage());
        let state = match role {
            Role::Feeder | Role::Successor => MemberState::Feeding,
            Role::Replica => self.place(previous).map_or(MemberState::Standby, MemberState::Loading),
        };
        let member = Member { instance: from, state, address };
        let progress = Progress::default();
        self.entries.insert(from.peer, Entry { member, heard: now, progress, done: false });
        self.changed = true;
        Ok(state)
    }

    /// Refuses a feeder that the policy does not name.
    fn check_may_feed(&self, key: PeerId) -> Result<(), JoinRefusal> {
        match (&self.config.feed, self.first_feeder) {
            (FeedPolicy::First, Some(first)) if first != key => Err(JoinRefusal::FedByAnother { key, first }),
            (FeedPolicy::Keys(keys), _) if !keys.contains(&key) => Err(JoinRefusal::MayNotFeed { key }),
            (FeedPolicy::First | FeedPolicy::Members | FeedPolicy::Keys(_), _) => Ok(()),
        }
    }

    /// Gives every range of a feeder that is gone to `successor`; a former start of the successor counts as gone.
    fn succeed(&mut self, successor: Instance) -> Result<(), JoinRefusal> {
        let Self { entries, leases, .. } = self;
        let gone = |holder: PeerId| holder == successor.peer || !entries.contains_key(&holder);
        if leases.succeed(successor, gone) {
            return Ok(());
        }
        let alive = leases.held().iter().find(|held| !held.done).map(|held| held.holder.peer);
        let lease = self.config.lease;
        Err(alive.map_or(JoinRefusal::NothingToSucceed, |feeder| JoinRefusal::FeederLives { feeder, lease }))
    }

    fn ready(&mut self, now: Time, from: Instance, stage: StageIndex) -> Option<MemberState> {
        let entry = self.touch(now, from)?;
        let has_loaded = entry.member.state == MemberState::Loading(stage);
        if has_loaded {
            entry.member.state = MemberState::Serving(stage);
        }
        let state = entry.member.state;
        self.changed |= has_loaded;
        Some(state)
    }

    fn heartbeat(&mut self, now: Time, from: Instance, progress: Progress) -> Option<MemberState> {
        let entry = self.touch(now, from)?;
        entry.progress = progress;
        let state = entry.member.state;
        if let MemberState::Serving(stage) = state
            && progress.done > 0
        {
            self.note_trained(stage);
        }
        Some(state)
    }

    /// Notes that the weights of `stage` were updated: from now on a replica that begins with initial weights loses
    /// updates.
    fn note_trained(&mut self, stage: StageIndex) {
        if let Err(place) = self.trained.binary_search(&stage) {
            self.trained.insert(place, stage);
            self.changed = true;
        }
    }

    fn leave(&mut self, from: Instance) -> bool {
        let member = self.entries.get(&from.peer).is_some_and(|entry| entry.member.instance == from);
        if member {
            self.entries.remove(&from.peer);
            self.changed = true;
        }
        member
    }

    fn lease(&mut self, now: Time, from: Instance, count: u64) -> Reply {
        let state = self.touch(now, from).map(|entry| entry.member.state);
        if state != Some(MemberState::Feeding) {
            return Reply::LeaseRefused(LeaseRefusal::NotAFeeder);
        }
        if self.finished {
            return Reply::LeaseRefused(LeaseRefusal::Finished);
        }
        // A feeder that never got so far, for its text was missing, owns nothing.
        self.first_feeder.get_or_insert(from.peer);
        if self.check_may_feed(from.peer).is_err() {
            return Reply::LeaseRefused(LeaseRefusal::NotAFeeder);
        }
        self.leases.grant(from, count).map_or_else(Reply::LeaseRefused, Reply::Leased)
    }

    fn feeder_done(&mut self, now: Time, from: Instance) -> Option<MemberState> {
        let entry = self.touch(now, from)?;
        let state = entry.member.state;
        if state == MemberState::Feeding {
            entry.done = true;
            self.fed = true;
            self.leases.finish(from.peer);
        }
        Some(state)
    }

    // --- Consequences ---------------------------------------------------------------------------------------

    /// The time at which the next lease ends; `None` if the clock of the leases stands still before.
    fn next_expiry(&self) -> Option<Time> {
        let oldest = self.entries.values().map(|entry| entry.heard).min()?;
        let expires = self.link.told_by_caller(oldest + self.config.lease);
        let stands = self.link.goes_down(self.entries.len());
        stands.is_none_or(|stands| expires < stands && self.now < stands).then_some(expires)
    }

    /// The clock of the members' leases. It stands still while no member is heard.
    fn lease_clock(&mut self, now: Time, sender: Option<PeerId>) -> Time {
        let members = self.entries.len();
        if sender.is_some() {
            self.link.sign(now, members);
        }
        self.link.clock(now, members)
    }

    /// Removes members that were silent for a lease, except the sender of the current event.
    fn remove_silent(&mut self, now: Time, sender: Option<PeerId>) {
        let (before, lease) = (self.entries.len(), self.config.lease);
        self.entries.retain(|&peer, entry| entry.heard + lease > now || Some(peer) == sender);
        self.changed |= self.entries.len() != before;
    }

    /// The run is over when a feeder has reported the end of its work and every feeder in the table has.
    fn notice_finished(&mut self, now: Time) {
        let mut feeders = self.entries.values().filter(|entry| entry.member.state == MemberState::Feeding);
        if self.fed && !self.finished && feeders.all(|feeder| feeder.done) {
            self.finished = true;
            self.farewell_until = Some(now + self.config.farewell);
            self.actions.push_back(Action::Finished);
        }
    }

    /// Gives a free place to a standby, which takes the state from a replica of the stage.
    fn promote_standbys(&mut self) {
        while !self.finished {
            let standby = |entry: &&mut Entry| entry.member.state == MemberState::Standby;
            let Some(stage) = self.place(None) else { return };
            let Some(entry) = self.entries.values_mut().find(standby) else { return };
            entry.member.state = MemberState::Loading(stage);
            self.changed = true;
        }
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.version += 1;
            self.actions.push_back(Action::Membership(self.membership()));
        }
    }

    /// A finished run ends when its members have left, or their time to leave is over.
    fn notice_end(&mut self, now: Time) {
        let late = self.farewell_until.is_some_and(|until| until <= now);
        if self.finished && !self.ended && (late || self.entries.is_empty()) {
            self.ended = true;
            self.actions.push_back(Action::End);
        }
    }

    // --- Members --------------------------------------------------------------------------------------------

    /// The member, noted as heard; `None` if the instance is no member.
    fn touch(&mut self, now: Time, from: Instance) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&from.peer).filter(|entry| entry.member.instance == from)?;
        entry.heard = entry.heard.max(now);
        Some(entry)
    }

    fn place(&self, previous: Option<StageIndex>) -> Option<StageIndex> {
        let states = self.entries.values().map(|entry| entry.member.state);
        Occupancy::new(self.config.stages, states).place(self.config.replicas_per_stage, previous)
    }

    fn serves(&self, stage: StageIndex) -> bool {
        self.entries.values().any(|entry| entry.member.state == MemberState::Serving(stage))
    }
}
