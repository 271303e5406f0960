//! The members of a run. What a request has to know of all of them is kept as they change, so that a request costs the
//! same among ten members and among ten thousand.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::placement::Occupancy;
use super::{Fact, Join};
use crate::alarms::Alarms;
use crate::{Duration, Instance, Member, MemberState, PeerId, ProcessNumber, StageIndex, Time};

/// A member, with the fields that only the coordinator knows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    pub(super) member: Member,
    /// The number of its process; `None` if only a table tells of it.
    #[serde(default)]
    process: Option<ProcessNumber>,
    /// The stage whose state it brought along when it joined.
    pub(super) holds: Option<StageIndex>,
    /// It is a member by a table that was returned to a coordinator that was started again.
    #[serde(skip)]
    pub(super) is_restored: bool,
    /// A feeder that has reported the end of its work.
    done: bool,
    /// A feeder that has reported a divergence of the run.
    diverged: bool,
}

impl Entry {
    /// A member that has asked for nothing yet.
    pub(super) fn new(member: Member, process: ProcessNumber, holds: Option<StageIndex>) -> Self {
        Self { process: Some(process), holds, is_restored: false, ..Self::restored(member) }
    }

    /// A member that a table names.
    pub(super) fn restored(member: Member) -> Self {
        Self { member, process: None, holds: None, is_restored: true, done: false, diverged: false }
    }

    /// Whether the start that asks to join is this member.
    pub(super) fn is(&self, request: &Join) -> bool {
        self.member.instance == request.from && self.process.is_none_or(|process| process == request.process)
    }

    /// Whether this member is a start of that process.
    pub(super) fn is_of(&self, process: ProcessNumber) -> bool {
        self.process == Some(process)
    }

    fn is_working_feeder(&self) -> bool {
        self.member.state == MemberState::Feeding && !self.done
    }
}

/// The members by key.
#[derive(Clone, Debug)]
pub(super) struct Members {
    entries: BTreeMap<PeerId, Entry>,
    /// The time, on the clock of the leases, at which the lease of each member ends.
    leases: Alarms<PeerId>,
    /// How long a member stays one without a request.
    lease: Duration,
    occupancy: Occupancy,
    standbys: BTreeSet<PeerId>,
    /// The standbys that have brought the weights of a stage along.
    standby_holders: BTreeSet<(StageIndex, PeerId)>,
    feeders: usize,
    /// Feeders that have not reported the end of their work.
    working_feeders: usize,
    /// The keepers: the only stage of each, if it keeps one, and the microbatches of its checkpoint, 0 without one.
    keepers: BTreeMap<PeerId, (Option<StageIndex>, u64)>,
    /// The peers whose entries were made, changed or removed.
    unlogged: BTreeSet<PeerId>,
}

impl Members {
    /// No members, on `stages` stages. A member that is silent for `lease` is lost.
    pub(super) fn new(stages: u16, lease: Duration) -> Self {
        Self {
            entries: BTreeMap::new(),
            leases: Alarms::default(),
            lease,
            occupancy: Occupancy::new(stages),
            standbys: BTreeSet::new(),
            standby_holders: BTreeSet::new(),
            feeders: 0,
            working_feeders: 0,
            keepers: BTreeMap::new(),
            unlogged: BTreeSet::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    pub(super) fn contains(&self, peer: PeerId) -> bool {
        self.entries.contains_key(&peer)
    }

    /// The member with this key, whatever its start.
    pub(super) fn of_peer(&self, peer: PeerId) -> Option<&Entry> {
        self.entries.get(&peer)
    }

    /// The member that is this start of its peer.
    pub(super) fn get(&self, from: Instance) -> Option<&Entry> {
        self.entries.get(&from.peer).filter(|entry| entry.member.instance == from)
    }

    /// All members, by key.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Member> {
        self.entries.values().map(|entry| &entry.member)
    }

    pub(super) fn occupancy(&self) -> &Occupancy {
        &self.occupancy
    }

    /// The standby with the lowest key.
    pub(super) fn first_standby(&self) -> Option<&Entry> {
        self.standbys.first().and_then(|peer| self.entries.get(peer))
    }

    /// The standby with the lowest key that has the weights of a stage.
    pub(super) fn standby_with(&self, stage: StageIndex) -> Option<PeerId> {
        let holders = (stage, PeerId([0; 32]))..=(stage, PeerId([u8::MAX; 32]));
        self.standby_holders.range(holders).next().map(|&(_, peer)| peer)
    }

    pub(super) fn feeders(&self) -> usize {
        self.feeders
    }

    /// Number of keepers.
    pub(super) fn keepers(&self) -> usize {
        self.keepers.len()
    }

    /// Notes the checkpoint of a keeper. Returns whether it had none before, or has none any more.
    pub(super) fn set_kept(&mut self, keeper: PeerId, microbatches: u64) -> bool {
        let Some((_, kept)) = self.keepers.get_mut(&keeper) else { return false };
        let before = std::mem::replace(kept, microbatches);
        (before == 0) != (microbatches == 0)
    }

    /// Whether a keeper has a checkpoint.
    pub(super) fn gives_checkpoint(&self) -> bool {
        self.keepers.values().any(|&(_, microbatches)| microbatches > 0)
    }

    /// Microbatches of the newest checkpoint of a keeper of `stage`; `None` without one.
    pub(super) fn kept_of(&self, stage: StageIndex) -> Option<u64> {
        let of_stage = self.keepers.values().filter(|(only, _)| only.is_none_or(|only| only == stage));
        of_stage.map(|&(_, microbatches)| microbatches).filter(|&microbatches| microbatches > 0).max()
    }

    pub(super) fn has_working_feeder(&self) -> bool {
        self.working_feeders > 0
    }

    /// Adds a member that was heard at `now`, in place of any other start of its peer.
    pub(super) fn insert(&mut self, now: Time, entry: Entry) {
        let peer = entry.member.instance.peer;
        self.remove(peer);
        self.leases.set(peer, Some(now + self.lease));
        self.count_in(&entry);
        self.entries.insert(peer, entry);
        self.unlogged.insert(peer);
    }

    pub(super) fn remove(&mut self, peer: PeerId) -> Option<Entry> {
        let entry = self.entries.remove(&peer)?;
        self.leases.set(peer, None);
        self.count_out(&entry);
        self.unlogged.insert(peer);
        Some(entry)
    }

    /// Removes the members for which `stays` is false.
    pub(super) fn retain(&mut self, stays: impl Fn(&Entry) -> bool) {
        let gone: Vec<_> =
            self.entries.iter().filter(|(_, entry)| !stays(entry)).map(|(&peer, _)| peer).collect();
        for peer in gone {
            self.remove(peer);
        }
    }

    /// The members were not heard yet: their own tables may be newer than what is known of them.
    pub(super) fn mark_restored(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.is_restored = true);
    }

    /// Every member has a whole lease from `now` on.
    pub(super) fn renew_leases(&mut self, now: Time) {
        for &peer in self.entries.keys() {
            self.leases.set(peer, Some(now + self.lease));
        }
    }

    /// What the entries that changed since the last call say now.
    pub(super) fn take_unlogged(&mut self) -> Vec<Fact> {
        let entry = |peer| self.entries.get(&peer).cloned().map_or(Fact::Gone(peer), Fact::Member);
        std::mem::take(&mut self.unlogged).into_iter().map(entry).collect()
    }

    /// Notes that this start of a member was heard; `None` if it is no member.
    pub(super) fn touch(&mut self, now: Time, from: Instance) -> Option<&Entry> {
        let entry = self.entries.get(&from.peer).filter(|entry| entry.member.instance == from)?;
        self.leases.set(from.peer, Some(now + self.lease));
        Some(entry)
    }

    /// Whether nothing was heard from the member for so long.
    pub(super) fn is_silent(&self, now: Time, peer: PeerId, so_long: Duration) -> bool {
        self.leases.get(&peer).is_some_and(|ends| ends + so_long <= now + self.lease)
    }

    pub(super) fn set_state(&mut self, peer: PeerId, state: MemberState) {
        self.change(peer, |entry| entry.member.state = state);
    }

    pub(super) fn set_done(&mut self, peer: PeerId) {
        self.change(peer, |entry| entry.done = true);
    }

    /// A feeder has reported a divergence; whether all feeders have.
    pub(super) fn set_diverged(&mut self, peer: PeerId) -> bool {
        self.change(peer, |entry| entry.diverged = true);
        let mut feeders = self.entries.values().filter(|entry| entry.member.state == MemberState::Feeding);
        feeders.all(|entry| entry.diverged)
    }

    /// The end of the lease that ends first.
    pub(super) fn next_expiry(&self) -> Option<Time> {
        self.leases.next().map(|(at, _)| at)
    }

    /// A member whose lease is over, other than `except`.
    pub(super) fn expired(&self, now: Time, except: Option<PeerId>) -> Option<PeerId> {
        let mut expired = self.leases.in_order().take_while(|&(at, _)| at <= now).map(|(_, peer)| peer);
        expired.find(|&peer| Some(peer) != except)
    }

    fn change(&mut self, peer: PeerId, change: impl FnOnce(&mut Entry)) {
        if let Some(mut entry) = self.entries.remove(&peer) {
            self.count_out(&entry);
            change(&mut entry);
            self.unlogged.insert(peer);
            self.count_in(&entry);
            self.entries.insert(peer, entry);
        }
    }

    fn count_in(&mut self, entry: &Entry) {
        let Member { instance, state, .. } = entry.member;
        self.occupancy.enter(state);
        self.feeders += usize::from(state == MemberState::Feeding);
        self.working_feeders += usize::from(entry.is_working_feeder());
        if let MemberState::Keeping(stage) = state {
            self.keepers.insert(instance.peer, (stage, 0));
        }
        if state == MemberState::Standby {
            self.standbys.insert(instance.peer);
            self.standby_holders.extend(entry.holds.map(|stage| (stage, instance.peer)));
        }
    }

    fn count_out(&mut self, entry: &Entry) {
        self.occupancy.exit(entry.member.state);
        self.feeders -= usize::from(entry.member.state == MemberState::Feeding);
        self.working_feeders -= usize::from(entry.is_working_feeder());
        self.keepers.remove(&entry.member.instance.peer);
        let peer = entry.member.instance.peer;
        self.standbys.remove(&peer);
        if let Some(stage) = entry.holds {
            self.standby_holders.remove(&(stage, peer));
        }
    }
}
