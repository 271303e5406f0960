//! What a coordinator that dies must know when it is started again. With each event a coordinator hands its process the
//! facts that are new ([`Action::Log`](super::Action)), before the tables and replies that follow from them. A process that
//! has made them durable before those leave can be killed at any point: [`Coordinator::restored`] goes on where the facts
//! end.
//!
//! A fact replaces the fact before it with the same [key](Fact::key), so the newest fact of each key is all there is to keep.
//! Times are no facts: after a restart every member has a whole lease to be heard again.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::farewell::Farewell;
use super::former::FormerStarts;
use super::lease_book::Entry as BlockEntry;
use super::members::Entry as MemberEntry;
use super::restart::Restart;
use super::{Action, Config, Coordinator};
use crate::{Block, Instance, Membership, Origin, PeerId, StageIndex, Time};

/// A fact that a coordinator must not forget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Fact {
    /// How far the run is.
    Run(RunFact),
    /// A peer is a member.
    Member(MemberEntry),
    /// A peer is no member any more.
    Gone(PeerId),
    /// The latest start of a peer that was a member and is none any more.
    Former(Instance),
    /// The former starts of a peer are forgotten.
    Forgotten(PeerId),
    /// A key may not come back.
    Evicted(PeerId),
    /// A key has kept a stage of a run whose weights stay split, and keeps no other.
    Keeper(PeerId, StageIndex),
    /// A block of ids, its feeder and its progress.
    Block(BlockEntry),
}

/// The key of a fact. Facts with different keys say nothing about each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum FactKey {
    /// Of [`Fact::Run`].
    Run,
    /// Of [`Fact::Member`] and [`Fact::Gone`].
    Member(PeerId),
    /// Of [`Fact::Former`] and [`Fact::Forgotten`].
    Former(PeerId),
    /// Of [`Fact::Evicted`].
    Evicted(PeerId),
    /// Of [`Fact::Keeper`].
    Keeper(PeerId),
    /// Of [`Fact::Block`].
    Block(Block),
}

/// The newest fact of each key.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts(BTreeMap<FactKey, Fact>);

impl Facts {
    /// Takes a fact in place of the one with its key.
    pub fn keep(&mut self, fact: Fact) {
        if fact.is_removal() {
            self.0.remove(&fact.key());
        } else {
            self.0.insert(fact.key(), fact);
        }
    }

    /// Whether nothing is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The launch that the facts are of.
    #[must_use]
    pub fn launch(&self) -> u64 {
        self.newest_table().0
    }

    /// Microbatches of the run that have their outcome.
    #[must_use]
    pub fn settled(&self) -> u64 {
        let settled = |fact: &Fact| if let Fact::Block(entry) = fact { entry.settled() } else { 0 };
        self.0.values().fold(0, |sum: u64, fact| sum.saturating_add(settled(fact)))
    }

    /// Launch and version of the newest table.
    fn newest_table(&self) -> (u64, u64) {
        match self.0.get(&FactKey::Run) {
            Some(Fact::Run(run)) => (run.launch, run.version),
            _ => (0, 0),
        }
    }
}

impl FromIterator<Fact> for Facts {
    fn from_iter<I: IntoIterator<Item = Fact>>(facts: I) -> Self {
        let mut kept = Self::default();
        facts.into_iter().for_each(|fact| kept.keep(fact));
        kept
    }
}

impl IntoIterator for Facts {
    type Item = Fact;
    type IntoIter = std::collections::btree_map::IntoValues<FactKey, Fact>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_values()
    }
}

/// The facts about the run as a whole.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFact {
    launch: u64,
    version: u64,
    next_block: u32,
    first_feeder: Option<PeerId>,
    has_run: bool,
    finished: bool,
    diverged: Option<u64>,
    trained: Vec<StageIndex>,
    #[serde(default)]
    origin: Option<Origin>,
}

impl Fact {
    /// The key that the fact is kept under.
    #[must_use]
    pub fn key(&self) -> FactKey {
        match self {
            Self::Run(_) => FactKey::Run,
            Self::Member(entry) => FactKey::Member(entry.member.instance.peer),
            Self::Gone(peer) => FactKey::Member(*peer),
            Self::Former(start) => FactKey::Former(start.peer),
            Self::Forgotten(peer) => FactKey::Former(*peer),
            Self::Evicted(peer) => FactKey::Evicted(*peer),
            Self::Keeper(peer, _) => FactKey::Keeper(*peer),
            Self::Block(entry) => FactKey::Block(entry.block()),
        }
    }

    /// Whether the fact says that there is nothing to know: the fact with its key is dropped, and it with it.
    #[must_use]
    pub fn is_removal(&self) -> bool {
        matches!(self, Self::Gone(_) | Self::Forgotten(_))
    }
}

impl RunFact {
    fn of(coordinator: &Coordinator) -> Self {
        Self {
            launch: coordinator.config.launch,
            version: coordinator.version,
            next_block: coordinator.leases.next_block(),
            first_feeder: coordinator.first_feeder,
            has_run: coordinator.has_run,
            finished: coordinator.is_finished(),
            diverged: coordinator.diverged,
            trained: coordinator.trained.clone(),
            origin: coordinator.origin,
        }
    }
}

impl Coordinator {
    /// The coordinator of a run that an earlier start has kept the facts of: same members, leases and progress, and a newer
    /// table. Members that have left meanwhile, or died, are silent for a lease.
    #[must_use]
    pub fn restored(now: Time, config: Config, facts: Facts) -> Self {
        let mut run = Self::new(config);
        run.now = now;
        facts.into_iter().for_each(|fact| run.recall(fact));
        let clock = run.lease_clock(now, None);
        run.members.renew_leases(clock);
        run.version = Membership::next_start(run.version);
        run.publishing.change();
        run.await_restored(clock);
        run.forget_unlogged();
        run
    }

    /// As [`Coordinator::restored`], with facts that may be out of date, since the latest were not made durable. Members
    /// return their tables, and the newest of these counts where it is newer than the facts.
    #[must_use]
    pub fn restored_from_old(now: Time, config: Config, facts: Facts) -> Self {
        let (own, newest) = (config.launch, facts.newest_table());
        let mut run = Self::restored(now, config, facts);
        run.members.mark_restored();
        run.restart = Some(Restart::with_table(own, newest));
        run.waits_for_members = true;
        run
    }

    fn recall(&mut self, fact: Fact) {
        match fact {
            Fact::Run(run) => self.recall_run(run),
            Fact::Member(entry) => self.members.insert(self.now, entry),
            Fact::Former(start) => self.former.note(start),
            Fact::Evicted(peer) => self.evicted.note(peer),
            Fact::Keeper(peer, stage) => self.keepers.note(peer, stage),
            Fact::Block(entry) => self.leases.recall(entry),
            Fact::Gone(_) | Fact::Forgotten(_) => {}
        }
    }

    fn recall_run(&mut self, run: RunFact) {
        self.config.launch = run.launch;
        self.version = run.version;
        self.leases.skip_to(run.next_block);
        self.first_feeder = run.first_feeder;
        self.has_run = run.has_run;
        self.diverged = run.diverged;
        if run.finished {
            self.farewell = Some(Farewell::new(self.now, &self.config, run.diverged.is_some()));
        }
        self.trained = run.trained;
        self.origin = run.origin;
    }

    /// Hands over the facts that are new, ahead of all other actions. While members may return a newer table there are
    /// none: a start that dies before it knows its run leaves nothing behind.
    pub(super) fn log(&mut self) {
        if self.waits_for_members {
            return;
        }
        let facts = self.unlogged();
        if !facts.is_empty() {
            self.actions.push_front(Action::Log(facts));
        }
    }

    fn unlogged(&mut self) -> Vec<Fact> {
        let mut facts = Vec::new();
        let run = RunFact::of(self);
        if self.logged_run.as_ref() != Some(&run) {
            self.logged_run = Some(run.clone());
            facts.push(Fact::Run(run));
        }
        facts.extend(self.members.take_unlogged());
        facts.extend(self.former.take_unlogged());
        facts.extend(self.evicted.take_unlogged().into_iter().map(Fact::Evicted));
        facts.extend(self.keepers.take_unlogged().into_iter().map(|(peer, stage)| Fact::Keeper(peer, stage)));
        facts.extend(self.leases.take_unlogged().into_iter().map(Fact::Block));
        facts
    }

    /// What was recalled is kept already, but for the version of the table.
    fn forget_unlogged(&mut self) {
        self.unlogged();
        self.logged_run = None;
    }
}

impl FormerStarts {
    fn take_unlogged(&mut self) -> Vec<Fact> {
        let fact = |peer, latest| match latest {
            Some(incarnation) => Fact::Former(Instance::new(peer, incarnation)),
            None => Fact::Forgotten(peer),
        };
        self.take_changed().into_iter().map(|(peer, latest)| fact(peer, latest)).collect()
    }
}

#[cfg(test)]
mod tests;
