//! The life of a run: who takes part, who serves which stage, who feeds which ids, and when it is over.
//!
//! A run waits until every stage is served, runs while it is, and is finished when its feeders say so. Every
//! change of the members makes a new table, one version up. A member that is silent for the lease is removed.

mod answer;
mod config;
pub mod placement;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;

use crate::coordinator::placement::Occupancy;
use crate::stage::Progress;
use crate::{
    HeldLease, Incarnation, LeaseBook, LeaseRefusal, Member, Membership, PeerId, Role, StageIndex, Standing,
    Time,
};

pub use answer::{Answer, JoinRefusal};
pub use config::{Config, MEMBERS_MAX, Policy};

/// What happens to a coordinator. The shell has authenticated every `peer`.
#[derive(Clone, Copy, Debug)]
pub enum Event {
    /// Somebody wants to take part.
    Join {
        /// Its identity.
        peer: PeerId,
        /// Which start of it. A newer start replaces an older one.
        incarnation: Incarnation,
        /// What for.
        role: Role,
        /// Where its data plane listens.
        address: SocketAddr,
    },
    /// A loading replica has its shard and serves from now on.
    Ready {
        /// Its identity.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
    },
    /// A sign of life.
    Heartbeat {
        /// Its identity.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// How far it is; zeros from a feeder or a standby.
        progress: Progress,
    },
    /// A member goes, drained.
    Leave {
        /// Its identity.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
    },
    /// A feeder wants ids.
    LeaseRequest {
        /// Its identity.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
        /// How many; it may get fewer.
        count: u64,
    },
    /// A feeder has an outcome for all it wanted to inject.
    FeederDone {
        /// Its identity.
        peer: PeerId,
        /// Which start of it.
        incarnation: Incarnation,
    },
    /// The time `poll_timeout` named has come.
    Timeout,
}

impl Event {
    fn sender(&self) -> Option<PeerId> {
        match *self {
            Self::Join { peer, .. }
            | Self::Ready { peer, .. }
            | Self::Heartbeat { peer, .. }
            | Self::Leave { peer, .. }
            | Self::LeaseRequest { peer, .. }
            | Self::FeederDone { peer, .. } => Some(peer),
            Self::Timeout => None,
        }
    }
}

/// What a coordinator wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Answer the request just handled. Every request has exactly one answer.
    Answer {
        /// Who asked.
        to: PeerId,
        /// The answer.
        answer: Answer,
    },
    /// Publish this table to all members.
    Membership(Membership),
    /// The run is over. Said once.
    Finished,
}

/// Why a coordinator wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A member is silent.
    MemberExpires,
}

/// How far a run is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Some stages have nobody who serves them.
    Waiting {
        /// Which.
        unserved: Vec<StageIndex>,
    },
    /// Every stage is served.
    Running,
    /// The feeders are done.
    Finished,
}

/// A member and what only the coordinator knows of it.
#[derive(Clone, Debug)]
struct Entry {
    member: Member,
    heard: Time,
    progress: Progress,
    /// A feeder that has reported the end of its work.
    done: bool,
}

/// Decides who does what in a run.
#[derive(Clone, Debug)]
pub struct Coordinator {
    config: Config,
    version: u64,
    entries: BTreeMap<PeerId, Entry>,
    leases: LeaseBook,
    finished: bool,
    /// The members differ from the table published last.
    changed: bool,
    actions: VecDeque<Action>,
}

impl Coordinator {
    /// A run nobody takes part in yet.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            version: 0,
            entries: BTreeMap::new(),
            leases: LeaseBook::default(),
            finished: false,
            changed: false,
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain `poll_action` before the next.
    pub fn handle(&mut self, now: Time, event: Event) {
        self.remove_silent(now, event.sender());
        match event {
            Event::Join { peer, incarnation, role, address } => {
                let answer = self.join(now, peer, incarnation, role, address);
                self.answer(peer, answer.map_or_else(Answer::JoinRefused, Answer::Joined));
            }
            Event::Ready { peer, incarnation } => {
                let standing = self.ready(now, peer, incarnation);
                self.answer(peer, standing.map_or(Answer::NotAMember, Answer::Noted));
            }
            Event::Heartbeat { peer, incarnation, progress } => {
                let standing = self.heartbeat(now, peer, incarnation, progress);
                self.answer(peer, standing.map_or(Answer::NotAMember, Answer::Noted));
            }
            Event::Leave { peer, incarnation } => {
                let left = self.leave(peer, incarnation);
                self.answer(peer, if left { Answer::Left } else { Answer::NotAMember });
            }
            Event::LeaseRequest { peer, incarnation, count } => {
                let answer = self.lease(now, peer, incarnation, count);
                self.answer(peer, answer);
            }
            Event::FeederDone { peer, incarnation } => {
                let standing = self.feeder_done(now, peer, incarnation);
                self.answer(peer, standing.map_or(Answer::NotAMember, Answer::Noted));
            }
            Event::Timeout => {}
        }
        self.promote_standbys();
        self.publish();
    }

    /// The next thing to do.
    pub fn poll_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to call again with [`Event::Timeout`] at the latest.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let oldest = self.entries.values().map(|entry| entry.heard).min()?;
        Some((oldest + self.config.lease, Reason::MemberExpires))
    }

    /// How far the run is.
    #[must_use]
    pub fn state(&self) -> RunState {
        if self.finished {
            return RunState::Finished;
        }
        let unserved: Vec<_> =
            (0..self.config.stages).map(StageIndex).filter(|&stage| !self.serves(stage)).collect();
        if unserved.is_empty() { RunState::Running } else { RunState::Waiting { unserved } }
    }

    /// The members now.
    #[must_use]
    pub fn membership(&self) -> Membership {
        let members = self.entries.values().map(|entry| entry.member.clone()).collect();
        Membership { version: self.version, members, successions: self.leases.successions() }
    }

    /// What a member said of itself last.
    #[must_use]
    pub fn progress(&self, peer: PeerId) -> Option<Progress> {
        self.entries.get(&peer).map(|entry| entry.progress)
    }

    /// When a member was heard last.
    #[must_use]
    pub fn heard(&self, peer: PeerId) -> Option<Time> {
        self.entries.get(&peer).map(|entry| entry.heard)
    }

    /// Ranges of ids given out, by first id.
    #[must_use]
    pub fn leases(&self) -> &[HeldLease] {
        self.leases.held()
    }

    /// The settings.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    // --- Requests -------------------------------------------------------------------------------------------

    fn join(
        &mut self,
        now: Time,
        peer: PeerId,
        incarnation: Incarnation,
        role: Role,
        address: SocketAddr,
    ) -> Result<Standing, JoinRefusal> {
        if self.finished {
            return Err(JoinRefusal::Finished);
        }
        if !self.config.policy.admits(peer) {
            return Err(JoinRefusal::NotListed);
        }
        let known = self.entries.get(&peer).map(|entry| (entry.member.incarnation, entry.member.standing));
        match known {
            Some((known, _)) if known > incarnation => return Err(JoinRefusal::Superseded { known }),
            Some((known, standing)) if known == incarnation => {
                self.touch(now, peer, incarnation);
                return Ok(standing);
            }
            None if self.entries.len() >= self.config.members_max => {
                return Err(JoinRefusal::Full { limit: self.config.members_max });
            }
            Some(_) | None => {}
        }
        if role == Role::Successor {
            self.succeed(peer, incarnation)?;
        }
        self.entries.remove(&peer);
        let previous = known.and_then(|(_, standing)| stage_of(standing));
        let standing = match role {
            Role::Feeder | Role::Successor => Standing::Feeding,
            Role::Replica => self.place(previous).map_or(Standing::Standby, Standing::Loading),
        };
        let member = Member { peer, incarnation, standing, address };
        let progress = Progress::default();
        self.entries.insert(peer, Entry { member, heard: now, progress, done: false });
        self.changed = true;
        Ok(standing)
    }

    /// Everything the feeders that are gone have left goes to `peer`; a former start of its own is gone too.
    fn succeed(&mut self, peer: PeerId, incarnation: Incarnation) -> Result<(), JoinRefusal> {
        let Self { entries, leases, .. } = self;
        let gone = |holder: PeerId| holder == peer || !entries.contains_key(&holder);
        if leases.succeed(peer, incarnation, gone) {
            return Ok(());
        }
        let alive = leases.held().iter().find(|held| !held.done).map(|held| held.holder);
        let lease = self.config.lease;
        Err(alive.map_or(JoinRefusal::NothingToSucceed, |feeder| JoinRefusal::FeederLives { feeder, lease }))
    }

    fn ready(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) -> Option<Standing> {
        let entry = self.touch(now, peer, incarnation)?;
        if let Standing::Loading(stage) = entry.member.standing {
            entry.member.standing = Standing::Serving(stage);
            self.changed = true;
            return Some(Standing::Serving(stage));
        }
        Some(entry.member.standing)
    }

    fn heartbeat(
        &mut self,
        now: Time,
        peer: PeerId,
        incarnation: Incarnation,
        progress: Progress,
    ) -> Option<Standing> {
        let entry = self.touch(now, peer, incarnation)?;
        entry.progress = progress;
        Some(entry.member.standing)
    }

    fn leave(&mut self, peer: PeerId, incarnation: Incarnation) -> bool {
        let member = self.entries.get(&peer).is_some_and(|entry| entry.member.incarnation == incarnation);
        if member {
            self.entries.remove(&peer);
            self.changed = true;
        }
        member
    }

    fn lease(&mut self, now: Time, peer: PeerId, incarnation: Incarnation, count: u64) -> Answer {
        let standing = self.touch(now, peer, incarnation).map(|entry| entry.member.standing);
        if standing != Some(Standing::Feeding) {
            return Answer::LeaseRefused(LeaseRefusal::NotAFeeder);
        }
        if self.finished {
            return Answer::LeaseRefused(LeaseRefusal::Finished);
        }
        self.leases.grant(peer, incarnation, count).map_or_else(Answer::LeaseRefused, Answer::Leased)
    }

    /// The run is over when no feeder has work left.
    fn feeder_done(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) -> Option<Standing> {
        let entry = self.touch(now, peer, incarnation)?;
        let standing = entry.member.standing;
        if standing == Standing::Feeding {
            entry.done = true;
            self.leases.finish(peer);
            let mut feeders =
                self.entries.values().filter(|entry| entry.member.standing == Standing::Feeding);
            if feeders.all(|feeder| feeder.done) && !self.finished {
                self.finished = true;
                self.actions.push_back(Action::Finished);
            }
        }
        Some(standing)
    }

    // --- What follows ---------------------------------------------------------------------------------------

    /// The sender of the event at hand is not silent, however late.
    fn remove_silent(&mut self, now: Time, sender: Option<PeerId>) {
        let (before, lease) = (self.entries.len(), self.config.lease);
        self.entries.retain(|&peer, entry| entry.heard + lease > now || Some(peer) == sender);
        self.changed |= self.entries.len() != before;
    }

    /// A place that became free goes to the standby that has waited; it takes the state from a replica that lives.
    fn promote_standbys(&mut self) {
        while !self.finished {
            let standby = |entry: &&mut Entry| entry.member.standing == Standing::Standby;
            let Some(stage) = self.place(None) else { return };
            let Some(entry) = self.entries.values_mut().find(standby) else { return };
            entry.member.standing = Standing::Loading(stage);
            self.changed = true;
        }
    }

    fn publish(&mut self) {
        if std::mem::take(&mut self.changed) {
            self.version += 1;
            self.actions.push_back(Action::Membership(self.membership()));
        }
    }

    // --- Hands ----------------------------------------------------------------------------------------------

    /// The member, noted as heard; `None` if this start of it is no member.
    fn touch(&mut self, now: Time, peer: PeerId, incarnation: Incarnation) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(&peer).filter(|entry| entry.member.incarnation == incarnation)?;
        entry.heard = entry.heard.max(now);
        Some(entry)
    }

    fn place(&self, previous: Option<StageIndex>) -> Option<StageIndex> {
        let standings = self.entries.values().map(|entry| entry.member.standing);
        Occupancy::new(self.config.stages, standings).place(self.config.replicas_per_stage, previous)
    }

    fn serves(&self, stage: StageIndex) -> bool {
        self.entries.values().any(|entry| entry.member.standing == Standing::Serving(stage))
    }

    fn answer(&mut self, to: PeerId, answer: Answer) {
        self.actions.push_back(Action::Answer { to, answer });
    }
}

fn stage_of(standing: Standing) -> Option<StageIndex> {
    match standing {
        Standing::Loading(stage) | Standing::Serving(stage) => Some(stage),
        Standing::Standby | Standing::Feeding => None,
    }
}
