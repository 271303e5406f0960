//! A coordinator that was started again with its key. It has forgotten its run, but every member has the table that it
//! signed last. A member that it does not know returns that table to it, and with the newest one the coordinator goes on
//! where it stood: the same members in their states, the same leases, the same trained stages. It publishes no table of
//! its own before the time to return is over: members would lose a newer one.
//!
//! The tables that it publishes from then on are newer than any that it published before, since the upper half of a
//! version counts its starts.

use std::collections::BTreeSet;

use super::members::Entry;
use super::{Coordinator, Event, LeaseBook, Reply};
use crate::{Duration, Instance, MemberState, Membership, PeerId, Time};

/// How long a coordinator that was started again places no replica and leases no ids, from the first call that it hears
/// on. Members send a heartbeat every second and give up on one after three.
pub(super) const RETURN_WITHIN: Duration = Duration::from_secs(5);
/// After the first table that is returned, a newer one is awaited this long.
const NEWER_WITHIN: Duration = Duration::from_secs(4);
/// A caller that speaks as a member, and is none, has a table to return: it is awaited this long.
const STRANGER_RETURNS_WITHIN: Duration = Duration::from_secs(15);
/// The longest time to return, whatever calls come.
const RETURN_WITHIN_MAX: Duration = Duration::from_secs(60);
/// Members that are asked for their table, though a table names them already: theirs may be newer. Of a large run these
/// are a part; but a table reaches all members within a moment.
const ASKED_MAX: usize = 64;

/// The state of a coordinator that was started again.
#[derive(Clone, Debug)]
pub(super) struct Restart {
    /// The first call, and the end of the time to return. Before that the coordinator's own link may be down.
    heard: Option<(Time, Time)>,
    /// The launch that this start drew for itself. Tables of it tell nothing of the run before.
    own: u64,
    /// Launch and version of the newest table that was returned.
    returned: Option<(u64, u64)>,
    /// The highest version of a table that was returned, whatever it says.
    seen: u64,
    /// Members by a table that was returned, which have returned their own.
    returned_by: BTreeSet<PeerId>,
    /// The launch began at a checkpoint: tables of the launches before tell how new the next one must be, and no more.
    is_new_launch: bool,
}

impl Restart {
    pub(super) fn new(own: u64) -> Self {
        let (returned_by, is_new_launch) = (BTreeSet::new(), false);
        Self { heard: None, own, returned: None, seen: 0, returned_by, is_new_launch }
    }

    /// The state of a coordinator whose launch begins at a checkpoint, beside members of the launch before.
    pub(super) fn of_new_launch(own: u64) -> Self {
        Self { is_new_launch: true, ..Self::new(own) }
    }

    /// The state of a coordinator that knows a table already, with this launch and version.
    pub(super) fn with_table(own: u64, known: (u64, u64)) -> Self {
        Self { returned: Some(known), ..Self::new(own) }
    }

    /// A call has arrived.
    fn hear(&mut self, now: Time) {
        self.heard.get_or_insert((now, now + RETURN_WITHIN));
    }

    /// A caller was told that it is unknown.
    fn meet_stranger(&mut self, now: Time) {
        if let Some((first, until)) = self.heard.as_mut().filter(|_| self.returned.is_none()) {
            let later = (now + STRANGER_RETURNS_WITHIN).min(*first + RETURN_WITHIN_MAX);
            *until = (*until).max(later);
        }
    }

    /// Whether tables may still come that the coordinator does not know of.
    pub(super) fn waits(&self, now: Time) -> bool {
        self.until().is_none_or(|until| now < until)
    }

    /// The end of the time to return; `None` before the first call.
    pub(super) fn until(&self) -> Option<Time> {
        self.heard.map(|(_, until)| until)
    }

    /// Whether a table of the run was returned.
    pub(super) fn has_table(&self) -> bool {
        self.returned.is_some()
    }

    /// Whether a member that a table names is to return its own.
    fn asks(&self, peer: PeerId) -> bool {
        self.has_table() && self.returned_by.len() < ASKED_MAX && !self.returned_by.contains(&peer)
    }

    /// Notes a table that a caller returned; `false` if it says nothing of the run before, or nothing new. After the time
    /// to return no further table is taken, and none at all if ids are leased by then: the run has gone on. Any key may
    /// return a table, and tables that an earlier start published before it knew of a run are signed too.
    fn take(&mut self, now: Time, table: &Membership, has_leased: bool) -> bool {
        let serves = |state| matches!(state, MemberState::Serving(_));
        let has_run = !table.leases.is_empty() || table.members.iter().any(|member| serves(member.state));
        let is_of_the_run = table.version > 0 && table.launch != self.own && has_run && !self.is_new_launch;
        let in_time = self.waits(now);
        let newer = match self.returned {
            None => in_time || !has_leased,
            Some(known) => in_time && (table.launch, table.version) > known,
        };
        if newer && is_of_the_run {
            if let Some((first, until)) = self.heard.as_mut().filter(|_| self.returned.is_none()) {
                *until = (*first + RETURN_WITHIN).max(now + NEWER_WITHIN);
            }
            self.returned = Some((table.launch, table.version));
        }
        newer && is_of_the_run
    }
}

impl Coordinator {
    /// A call has arrived at a coordinator that was started again.
    pub(super) fn hear_after_restart(&mut self, now: Time) {
        if let Some(restart) = &mut self.restart {
            restart.hear(now);
        }
    }

    /// Whether the caller is a member by a table that was returned, and may have a newer one. It is told that it is
    /// unknown, and returns its own.
    pub(super) fn asks_for_table(&self, event: &Event) -> bool {
        let Event::Heartbeat { from, .. } = *event else { return false };
        let restart = self.restart.as_ref().filter(|_| self.waits_for_members);
        self.is_restored(from) && restart.is_some_and(|restart| restart.asks(from.peer))
    }

    fn is_restored(&self, from: Instance) -> bool {
        self.members.get(from).is_some_and(|entry| entry.is_restored)
    }

    /// A caller that no table names is not asked, so it uses up no question.
    fn note_returned(&mut self, from: Instance) {
        let is_restored = self.is_restored(from);
        if let Some(restart) = self.restart.as_mut().filter(|restart| restart.returned_by.len() < ASKED_MAX)
            && is_restored
        {
            restart.returned_by.insert(from.peer);
        }
    }

    /// Takes the table that a caller returns: the coordinator has signed it and forgotten it since.
    pub(super) fn take_back(&mut self, now: Time, clock: Time, from: Instance, table: &Membership) -> Reply {
        let has_leased = self.first_feeder.is_some();
        if let Some(restart) = &mut self.restart {
            let is_first = !restart.has_table();
            if table.launch != self.config.launch {
                restart.seen = restart.seen.max(table.version);
            }
            if restart.take(now, table, has_leased) {
                self.waits_for_members |= is_first;
                self.restore(clock, table, is_first);
            }
        }
        self.note_returned(from);
        self.members.get(from).map_or_else(|| self.stranger(from), |entry| Reply::Noted(entry.member.state))
    }

    /// Ends the time to return. A table that said nothing of the run may have the number of a later table, which its
    /// owner would take for old.
    pub(super) fn end_return(&mut self, now: Time) {
        let Some(restart) = &self.restart else { return };
        self.waits_for_members &= restart.waits(now);
        if !self.waits_for_members && restart.seen > 0 && self.version <= restart.seen {
            self.version = Membership::next_start(restart.seen);
            self.publishing.change();
        }
    }

    /// Goes on where the table stood. Every member has a whole lease to be heard again.
    fn restore(&mut self, now: Time, table: &Membership, is_first: bool) {
        if is_first {
            // What was decided without the members of the run was decided about another run.
            self.leases = LeaseBook::of_later_start(self.config.total, self.config.launch);
            self.first_feeder = None;
        }
        self.members.retain(|entry| !is_first && !entry.is_restored);
        for member in &table.members {
            let Instance { peer, incarnation } = member.instance;
            let is_former = self.former.latest(peer).is_some_and(|latest| incarnation <= latest);
            if !self.members.contains(peer) && !is_former {
                self.members.insert(now, Entry::restored(member.clone()));
            }
        }
        table.trained.iter().for_each(|&stage| self.note_trained(stage));
        self.has_run |= !table.leases.is_empty();
        self.await_restored(now);
        let first = table.leases.iter().find(|leased| !leased.is_vacant()).map(|leased| leased.feeder);
        self.first_feeder = self.first_feeder.or(first);
        self.origin = table.origin;
        self.leases.restore(table);
        self.config.launch = table.launch;
        self.version = self.version.max(Membership::next_start(table.version));
        self.publishing.change();
    }

    /// The time until which no replica is placed and no ids are leased.
    pub(super) fn return_ends(&self) -> Option<Time> {
        self.restart.as_ref().filter(|_| self.waits_for_members).and_then(Restart::until)
    }

    /// Whether the table waits, lest members lose a newer one that they have.
    pub(super) fn withholds_table(&self) -> bool {
        self.waits_for_members && self.restart.as_ref().is_some_and(Restart::has_table)
    }

    /// A caller that is no member and was told so may return its table.
    pub(super) fn note_stranger(&mut self, now: Time, from: Option<Instance>, reply: Option<&Reply>) {
        let is_stranger = from.is_some_and(|from| !self.members.contains(from.peer));
        if let Some(restart) = &mut self.restart
            && is_stranger
            && reply == Some(&Reply::Unknown)
        {
            restart.meet_stranger(now);
        }
    }
}
