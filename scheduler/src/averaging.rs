//! The averaging rounds of a stage, at one replica.
//!
//! Replicas of a stage step on their own and drift apart. In a round they average one of the disjoint fragments of
//! their weights and moments, `round mod fragments`; the feeder calls a round when enough microbatches are finished and
//! the previous round has ended at every member. The executor takes a snapshot of the fragment, cut into parts. Each
//! part has an owner: members send it their contributions, the owner leaves out silent members, and the mean of the
//! others goes to every member. If the owner is silent or dead, the next member becomes owner within the round: the
//! senders still have their contributions. All members that apply a mean apply the same mean, because a majority must
//! accept it first, and no member accepts two (`averaging/part.rs`).
//!
//! Training goes on meanwhile. Every wait has a deadline, so every round ends; a part that is given up in a round is
//! not changed by it. A replica without another member has nothing to average.
//!
//! A stage of more replicas than a group holds averages in groups that each round draws (`averaging/draw.rs`). Replicas
//! may see different lists of members. Each takes part in one group a round, the group drawn from its own list, and
//! tells members of other groups that it is not in theirs, so that they do not wait for it. Of two groups that differ
//! by one member only one can have a majority. Groups further apart can each choose means of their own; then each
//! averages within itself until the fragment has its turn again.

mod adaptive_timeout;
mod context;
mod counts;
mod deferred;
mod draw;
mod drawn_groups;
mod event;
mod group;
mod job;
mod message;
mod part;
mod reducer;
mod round_tracker;
#[cfg(test)]
mod tests;
mod unreachable;
mod votes;
mod weights;
#[cfg(test)]
mod world;

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::transfer::ChunkHash;
use crate::{Attempt, Duration, Instance, Time};

pub use adaptive_timeout::{TIMEOUT_FIRST, TIMEOUT_MAX, TIMEOUT_MIN};
pub use counts::{Counts, Fault, Note};
pub use deferred::DEFERRED_PER_MEMBER;
pub use draw::{GROUP_MAX, GROUP_MIN};
pub(crate) use drawn_groups::DrawnGroups;
pub use event::{Action, Event, Reason};
pub use group::{
    ATTEMPTS_MAX, FragmentIndex, FragmentSize, GroupId, MemberSet, PARTS_IN_FLIGHT_MAX, PartIndex, Round,
};
pub use job::{Job, Reply};
pub use message::{AveragingMessage, Content};
pub(crate) use round_tracker::highest_believed;
pub use round_tracker::{ROUND_JUMP_MAX, RoundReport, RoundTracker};
pub use votes::MeanId;
pub use weights::WEIGHT_MAX;

use adaptive_timeout::AdaptiveTimeout;
use context::Context;
use deferred::{Deferred, ROUNDS_AHEAD_MAX};
use group::Group;
use part::PartState;
use unreachable::Unreachable;
use weights::Weights;

/// Settings of averaging: the replica's identity, and the division of its numbers.
#[derive(Clone, Copy, Debug)]
pub struct Config<P> {
    /// This replica.
    pub me: Instance,
    /// Fragments, at least 1; the run decides. By default 20: a round averages 5 % of the numbers.
    pub fragments: u32,
    /// The size of a fragment.
    pub size: FragmentSize,
    /// Length in bytes and digest of the numbers of a mean.
    pub digest: fn(&P) -> (u64, ChunkHash),
}

/// Means the executor has at once: one is applied, one waits. Microbatches go on between them.
pub const APPLYING_MAX: usize = 2;

/// How long a snapshot is awaited: the executor may be in a long job. A copy that takes longer than [`TIMEOUT_MAX`] is
/// in no mean, but its replica still learns the means of the others.
pub const SNAPSHOT_WITHIN: Duration = Duration::from_secs(30);

/// A round under way.
#[derive(Debug)]
struct Current<P> {
    group: Group,
    fragment: FragmentIndex,
    /// The time at which the round is given up if there is no snapshot.
    deadline: Time,
    weight: u64,
    /// Contributions of this replica that no mean has carried.
    uncarried: u64,
    /// The state of each part; empty before the snapshot is there.
    parts: Vec<PartState<P>>,
}

/// The machine of one replica for averaging rounds.
#[derive(Debug)]
pub struct Averaging<P> {
    config: Config<P>,
    /// The replicas of the stage, sorted, with one start of each peer.
    members: Vec<Instance>,
    newest: Option<Round>,
    weights: Weights,
    /// The last round begun here.
    begun: Option<Round>,
    current: Option<Current<P>>,
    /// The round that ended last, until the next begins: members that are late are told its means.
    settled: Option<Current<P>>,
    unreachable: Unreachable,
    deferred: Deferred<P>,
    timeout: AdaptiveTimeout,
    counts: Counts,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Default + Debug> Averaging<P> {
    /// A replica that knows no other member and no round.
    #[must_use]
    pub fn new(config: Config<P>) -> Self {
        Self {
            config,
            members: Vec::new(),
            newest: None,
            weights: Weights::default(),
            begun: None,
            current: None,
            settled: None,
            unreachable: Unreachable::default(),
            deferred: Deferred::default(),
            timeout: AdaptiveTimeout::default(),
            counts: Counts::default(),
            actions: VecDeque::new(),
        }
    }

    /// Takes one event; drain [`Averaging::poll_action`] before the next.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Members(members) => self.on_members(now, members),
            Event::Round(round) => self.newest = self.newest.max(Some(round)),
            Event::Weights(weights) => self.weights.confirm(weights),
            Event::Past(round) => self.pass(round),
            Event::Replied(reply) => self.on_reply(now, reply),
            Event::Received { from, message, payload } => self.on_message(now, from, message, payload),
            Event::PeerLost(instance) => self.on_lost(now, instance),
            Event::Timeout => self.on_timeout(now),
        }
        self.proceed(now);
    }

    /// Takes the oldest action that is not yet done; `None` if there is none.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// The latest time for the next call of [`Averaging::handle`], with [`Event::Timeout`], and the reason.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let current = self.current.as_ref()?;
        if current.parts.is_empty() {
            return Some((current.deadline, Reason::SnapshotExpires));
        }
        let parts = (0..).map(PartIndex).zip(&current.parts);
        let deadlines = parts.filter_map(|(part, state)| state.deadline(&current.group, part, &self.timeout));
        deadlines.min_by_key(|(at, _)| *at)
    }

    /// The round under way; `None` between rounds.
    #[must_use]
    pub fn round(&self) -> Option<Round> {
        self.current.as_ref().map(|current| current.group.id.round)
    }

    /// The group under way, and its members in order.
    #[cfg(any(test, feature = "sim"))]
    pub(crate) fn group(&self) -> Option<(GroupId, Vec<Instance>)> {
        let group = &self.current.as_ref()?.group;
        let members = (0..group.len()).filter_map(|member| group.instance(member));
        Some((group.id, members.collect()))
    }

    /// Totals since this replica started.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    // --- Events ---------------------------------------------------------------------------------------------

    fn on_members(&mut self, now: Time, mut members: Vec<Instance>) {
        members.sort_unstable();
        // Of two starts of a peer the later is alive.
        members.dedup_by(|later, kept| {
            let same = later.peer == kept.peer;
            if same {
                *kept = *later;
            }
            same
        });
        self.deferred.retain(|from| members.binary_search(from).is_ok());
        self.unreachable.retain(|member| members.binary_search(member).is_ok());
        self.lose(now, |member| members.binary_search(member).is_err());
        self.members = members;
    }

    fn on_reply(&mut self, now: Time, reply: Reply<P>) {
        match reply {
            Reply::Snapshot { round, uncarried, weight, parts } => {
                self.on_snapshot(now, round, (uncarried, weight), parts);
            }
            Reply::Reduced { round, part, attempt, outcome } => {
                self.at(now, round, part, |part, x| part.reduced(x, attempt, outcome));
            }
            Reply::Applied { round, part, applied } => {
                self.at(now, round, part, |part, x| part.applied(x, applied));
            }
        }
    }

    fn on_snapshot(&mut self, now: Time, round: Round, (uncarried, weight): (u64, u64), parts: Vec<P>) {
        let Some(current) = self
            .current
            .as_mut()
            .filter(|current| current.group.id.round == round && current.parts.is_empty())
        else {
            return;
        };
        if parts.len() != current.group.parts() as usize {
            return self.finish();
        }
        current.weight = weight.min(WEIGHT_MAX);
        current.uncarried = uncarried;
        current.group.copied(now);
        current.parts = parts.into_iter().map(PartState::new).collect();
        let id = current.group.id;
        if !current.group.can_choose() {
            return self.each(now, PartState::give_up);
        }
        for (from, message, payload) in self.deferred.take(|of| of == id) {
            self.deliver(now, from, message, payload);
        }
    }

    fn on_message(&mut self, now: Time, from: Instance, message: AveragingMessage, payload: P) {
        if from == self.config.me || self.members.binary_search(&from).is_err() {
            return self.count(Note::Stranger(from));
        }
        self.unreachable.heard(from);
        let round = message.group.round;
        let under_way = self.current.as_ref().map(|current| (current.group.id, current.parts.is_empty()));
        match under_way {
            Some((id, _)) if id == message.group && matches!(message.content, Content::NotAMember) => {
                self.lose(now, |member| *member == from);
            }
            Some((id, true)) if id == message.group && !matches!(message.content, Content::Copying) => {
                self.defer(from, message, payload);
            }
            Some((id, _)) if id == message.group => {
                self.deliver(now, from, message, payload);
            }
            Some((id, _)) if id.round == round => {
                self.count(Note::OtherMembers(from));
                self.decline(from, &message);
            }
            Some(_) | None if self.begun < Some(round) && self.is_far(round) => self.count(Note::Late(from)),
            Some(_) | None if self.begun < Some(round) => self.defer(from, message, payload),
            Some(_) | None => self.on_late(from, &message),
        }
    }

    fn on_copying(&mut self, from: Instance) {
        if let Some(current) = &mut self.current
            && let Some(member) = current.group.position(from)
        {
            current.group.copy_begins(member);
        }
    }

    /// A message about a round that has ended here. A member that is late is told the mean, if there is one.
    fn on_late(&mut self, from: Instance, message: &AveragingMessage) {
        self.count(Note::Late(from));
        let &AveragingMessage { group, part, attempt, .. } = message;
        let settled = self.settled.as_mut().filter(|settled| settled.group.id == group);
        let answer = settled.and_then(|Current { group, parts, .. }| {
            let sender = group.position(from)?;
            parts.get_mut(part.0 as usize)?.answer(group, part, (sender, attempt), &message.content)
        });
        match answer {
            Some((attempt, content, payload)) => {
                let message = AveragingMessage { group, part, attempt, content };
                self.actions.push_back(Action::Send { to: from.peer, message, payload });
            }
            None => self.decline(from, message),
        }
    }

    /// Tells a member of a group that this replica takes no part in it, so that the member does not wait for an answer.
    fn decline(&mut self, from: Instance, message: &AveragingMessage) {
        if message.content.has_payload() {
            let &AveragingMessage { group, part, attempt, .. } = message;
            let message = AveragingMessage { group, part, attempt, content: Content::NotAMember };
            self.actions.push_back(Action::Send { to: from.peer, message, payload: P::default() });
        }
    }

    /// Whether a round is further ahead than a message can be that this replica will use.
    fn is_far(&self, round: Round) -> bool {
        let known = self.newest.max(self.begun);
        known.is_some_and(|known| round.0 > known.0.saturating_add(ROUNDS_AHEAD_MAX))
    }

    fn defer(&mut self, from: Instance, message: AveragingMessage, payload: P) {
        if !self.deferred.keep(from, message, payload) {
            self.count(Note::Late(from));
        }
    }

    fn deliver(&mut self, now: Time, from: Instance, message: AveragingMessage, payload: P) {
        let AveragingMessage { group, part, attempt, content } = message;
        if matches!(content, Content::Copying) {
            return self.on_copying(from);
        }
        let Some(current) = &self.current else { return };
        match current.group.position(from) {
            Some(member) if part.0 < current.group.parts() => {
                self.at(now, group.round, part, |part, x| {
                    part.receive(x, member, attempt, (content, payload));
                });
            }
            Some(_) | None => self.count(Note::Malformed(from)),
        }
    }

    fn on_lost(&mut self, now: Time, instance: Instance) {
        self.unreachable.insert(now, instance);
        self.lose(now, |member| *member == instance);
    }

    /// Marks members as gone: no part waits for them.
    fn lose(&mut self, now: Time, is_gone: impl Fn(&Instance) -> bool) {
        let Some(current) = &mut self.current else { return };
        if !current.group.mark_absent(is_gone) {
            return;
        }
        let can_choose = current.group.can_choose();
        self.each(now, |part, x| if can_choose { part.notice_absence(x) } else { part.give_up(x) });
    }

    fn on_timeout(&mut self, now: Time) {
        let overdue = |current: &Current<P>| current.parts.is_empty() && current.deadline <= now;
        if self.current.as_ref().is_some_and(overdue) {
            return self.finish();
        }
        self.each(now, PartState::expire);
    }

    // --- Progress of a round --------------------------------------------------------------------------------

    /// Opens the next parts, ends the round when all parts are over, and begins a newer round.
    fn proceed(&mut self, now: Time) {
        self.open_parts(now);
        self.apply_chosen(now);
        let over =
            |current: &Current<P>| !current.parts.is_empty() && current.parts.iter().all(PartState::is_over);
        if self.current.as_ref().is_some_and(over) {
            self.finish();
        }
        if self.current.is_none() {
            self.begin(now);
        }
    }

    /// Opens parts in their order, so that enough of them are on their way at once.
    fn open_parts(&mut self, now: Time) {
        while let Some(current) = &self.current {
            let in_flight = current.parts.iter().filter(|part| !part.is_waiting() && !part.is_over()).count();
            let next = current.parts.iter().position(PartState::is_waiting);
            let Some(next) = next.filter(|_| in_flight < current.group.parts_in_flight()) else { return };
            self.each_of(now, next..next + 1, PartState::open);
        }
    }

    fn apply_chosen(&mut self, now: Time) {
        let Some(current) = &self.current else { return };
        let mut applying = current.parts.iter().filter(|part| part.is_applying()).count();
        self.each(now, |part, x| {
            if applying < APPLYING_MAX {
                applying += usize::from(part.apply(x));
            }
        });
    }

    fn begin(&mut self, now: Time) {
        let Some(round) = self.newest.filter(|&newest| self.begun < Some(newest)) else { return };
        if self.members.len() < 2 || self.members.binary_search(&self.config.me).is_err() {
            return;
        }
        let drawn = draw::group_of(round, &self.members, self.config.me.peer);
        let Ok(me) = drawn.binary_search(&self.config.me) else { return self.pass(round) };
        let mut group = Group::new(round, drawn, me, self.config.size);
        group.mark_absent(|member| self.unreachable.contains(now, *member));
        group.bound_weights(&self.weights);
        if !group.can_choose() {
            return self.pass(round);
        }
        self.begun = Some(round);
        self.decline_deferred(|id| id.round <= round && id != group.id);
        let (fragment, parts) = (round.fragment(self.config.fragments), group.parts());
        let deadline = now + SNAPSHOT_WITHIN;
        self.timeout.begin(group.transfer());
        self.announce_copy(&group);
        self.settled = None;
        self.current =
            Some(Current { group, fragment, deadline, weight: 0, uncarried: 0, parts: Vec::new() });
        self.execute(Job::Snapshot { round, fragment, parts });
    }

    /// Tells the other members that this replica's copy is under way.
    fn announce_copy(&mut self, group: &Group) {
        let (part, attempt) = (PartIndex(0), Attempt(0));
        for to in group.others().filter_map(|member| group.instance(member)) {
            let message = AveragingMessage { group: group.id, part, attempt, content: Content::Copying };
            self.actions.push_back(Action::Send { to: to.peer, message, payload: P::default() });
        }
    }

    /// Leaves out every round up to `round` that has not begun here.
    fn pass(&mut self, round: Round) {
        if self.begun < Some(round) {
            self.begun = Some(round);
            self.decline_deferred(|id| id.round <= round);
        }
    }

    fn decline_deferred(&mut self, is_declined: impl Fn(GroupId) -> bool) {
        for (from, message, _) in self.deferred.take(is_declined) {
            self.decline(from, &message);
        }
    }

    fn finish(&mut self) {
        let Some(current) = self.current.take() else { return };
        let complete = !current.parts.is_empty() && current.parts.iter().all(PartState::is_carried);
        self.counts.rounds += 1;
        self.counts.complete += u64::from(complete);
        let (round, fragment) = (current.group.id.round, current.fragment);
        self.execute(Job::Finish { round, fragment, complete });
        self.settled = Some(current);
    }

    // --- Access to parts ------------------------------------------------------------------------------------

    /// Calls `act` with one part of the round under way, if it is `round`.
    fn at(
        &mut self,
        now: Time,
        round: Round,
        part: PartIndex,
        act: impl FnOnce(&mut PartState<P>, &mut Context<'_, P>),
    ) {
        if self.round() == Some(round) {
            let mut act = Some(act);
            let index = part.0 as usize;
            self.each_of(now, index..index.saturating_add(1), |part, x| {
                if let Some(act) = act.take() {
                    act(part, x);
                }
            });
        }
    }

    fn each(&mut self, now: Time, act: impl FnMut(&mut PartState<P>, &mut Context<'_, P>)) {
        self.each_of(now, 0..usize::MAX, act);
    }

    fn each_of(
        &mut self,
        now: Time,
        range: std::ops::Range<usize>,
        mut act: impl FnMut(&mut PartState<P>, &mut Context<'_, P>),
    ) {
        let Some(current) = &mut self.current else { return };
        let mut notes = Vec::new();
        let superseded = self.newest > Some(current.group.id.round);
        let parts = (0..).map(PartIndex).zip(&mut current.parts);
        for (part, state) in parts.skip(range.start).take(range.len()) {
            let mut context = Context {
                now,
                group: &mut current.group,
                part,
                weight: current.weight,
                uncarried: current.uncarried,
                superseded,
                timeout: &mut self.timeout,
                digest: self.config.digest,
                actions: &mut self.actions,
                notes: &mut notes,
            };
            act(state, &mut context);
        }
        notes.into_iter().for_each(|note| self.count(note));
    }

    fn execute(&mut self, job: Job<P>) {
        self.actions.push_back(Action::Execute(job));
    }

    fn count(&mut self, note: Note) {
        self.counts.add(&note);
        self.actions.push_back(Action::Counted(note));
    }
}
