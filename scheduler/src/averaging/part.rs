//! One part of a round at one member, from its contribution to the mean that it applies.
//!
//! Every member must apply the same mean, although an owner may die after it has told only some members, or may lie. An
//! owner proposes a mean. A member accepts one mean of the part and tells all others which (`votes.rs`). A mean that a
//! majority has accepted is chosen, and applied: no other mean can ever have a majority, because no member accepts two.
//!
//! If the owner is silent or dead, members turn to the next one: they accept nothing from earlier owners any more, and
//! send the mean that they have accepted, if any. The next owner hears a majority before it proposes, so it finds every
//! mean that may be chosen, and proposes it again. (As in single-decree Paxos, Lamport 1998, "The part-time parliament",
//! with one ballot for each owner, in a fixed order; but an acceptor does not change its mind. That costs a part
//! now and then, which waits for its next round, and needs no trust in owners.)
//!
//! A member that lies may accept two means, and an owner that lies may propose two. So a member applies a mean at once
//! only if so many have accepted it that two means cannot both have as many, although one member lies
//! ([`Group::quorum`]). With less, but a majority, it first waits for the votes of the other members that are there; if
//! one of them has accepted another mean, the part stays as it was.

use std::collections::BTreeSet;

use crate::{Attempt, Time};

use super::adaptive_timeout::AdaptiveTimeout;
use super::context::Context;
use super::counts::{Fault, Note};
use super::event::{Action, Reason};
use super::group::{Group, MemberSet, PartIndex};
use super::job::Job;
use super::message::Content;
use super::reducer::{Decision, Given, Mean, Reducer};
use super::votes::{MeanId, Votes};
use super::weights::WEIGHT_MAX;

/// The progress of a part at this member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not opened.
    Waiting,
    /// An owner works on it, or other members vote, since then.
    Open(Time),
    /// The mean accepted here is chosen; the executor does not have it yet.
    Chosen,
    /// The executor applies it.
    Applying,
    Over(Ending),
}

/// The way in which a part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// The mean was applied, and this replica's contribution is in it, or it had nothing to contribute.
    Carried,
    /// A mean without this replica's contribution was applied.
    LeftOut,
    /// No member had anything to contribute.
    Empty,
    /// The round does not change the part.
    GivenUp,
}

/// One part of a round.
#[derive(Clone, Debug)]
pub(super) struct PartState<P> {
    mine: P,
    phase: Phase,
    /// The owner that this replica has turned to: it accepts no mean from earlier owners.
    attempt: Attempt,
    /// The time at which this replica had turned to the first owner.
    opened: Time,
    /// The mean accepted, and the attempt whose owner proposed it.
    accepted: Option<(Attempt, Mean<P>)>,
    /// Its vote, which outlasts the numbers: a member that is late may ask for it.
    vote: Option<(Attempt, MeanId)>,
    votes: Votes,
    /// The members whose numbers have arrived here. The same again is no sign that a member is at work.
    given: BTreeSet<usize>,
    /// Present while this replica is the owner.
    reducer: Option<Reducer<P>>,
}

impl<P: Clone + Default> PartState<P> {
    pub(super) fn new(mine: P) -> Self {
        Self {
            mine,
            phase: Phase::Waiting,
            attempt: Attempt(0),
            opened: Time::default(),
            accepted: None,
            vote: None,
            votes: Votes::default(),
            given: BTreeSet::new(),
            reducer: None,
        }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.phase == Phase::Waiting
    }

    pub(super) fn is_applying(&self) -> bool {
        self.phase == Phase::Applying
    }

    /// Whether the part has carried this replica's contribution, or there was nothing to carry.
    pub(super) fn is_carried(&self) -> bool {
        matches!(self.phase, Phase::Over(Ending::Carried | Ending::Empty))
    }

    /// Sends the contribution to the first owner.
    pub(super) fn open(&mut self, x: &mut Context<'_, P>) {
        if self.phase == Phase::Waiting {
            self.opened = x.now;
            self.turn_to(x, Attempt(0));
        }
    }

    /// The latest time to call [`PartState::expire`], and the reason.
    pub(super) fn deadline(
        &self,
        group: &Group,
        part: PartIndex,
        timeout: &AdaptiveTimeout,
    ) -> Option<(Time, Reason)> {
        let Phase::Open(since) = self.phase else { return None };
        let collects = self
            .reducer
            .as_ref()
            .filter(|reducer| reducer.is_collecting() && self.may_conclude(group, reducer));
        let due = |reducer| (contributions_due(group, timeout, reducer), Reason::ContributionsExpire);
        let votes = self.has_majority(group).then(|| (since + timeout.current(), Reason::VotesExpire));
        let owner = group.owner(part, self.attempt);
        let owner = (owner_due(group, timeout, owner, since), Reason::OwnerExpires);
        collects.map(due).into_iter().chain(votes).chain([owner]).min_by_key(|(at, _)| *at)
    }

    /// Goes on without the members that are overdue.
    pub(super) fn expire(&mut self, x: &mut Context<'_, P>) {
        self.conclude(x);
        self.count_votes(x);
        if let Phase::Open(since) = self.phase
            && owner_due(x.group, x.timeout, x.group.owner(x.part, self.attempt), since) <= x.now
        {
            self.leave_owner(x);
        }
    }

    /// The owner is overdue: it has proposed nothing, or too few have accepted what it proposed.
    fn leave_owner(&mut self, x: &mut Context<'_, P>) {
        let owner = x.group.owner(x.part, self.attempt);
        if self.accepted.is_none() && owner != x.group.me() {
            x.group.go_on_without(owner);
        }
        if x.superseded {
            self.give_up(x);
        } else {
            self.turn_to(x, Attempt(self.attempt.0.saturating_add(1)));
        }
    }

    /// The group has lost members: the part turns to the next owner if its owner is lost and has proposed nothing, and
    /// waits for no lost member.
    pub(super) fn notice_absence(&mut self, x: &mut Context<'_, P>) {
        if !matches!(self.phase, Phase::Open(_)) {
            return;
        }
        if self.accepted.is_some() || x.group.is_present(x.group.owner(x.part, self.attempt)) {
            self.conclude(x);
            self.count_votes(x);
        } else {
            self.turn_to(x, Attempt(self.attempt.0.saturating_add(1)));
        }
    }

    /// Ends the part without a mean, if it has not ended.
    pub(super) fn give_up(&mut self, x: &mut Context<'_, P>) {
        if matches!(self.phase, Phase::Waiting | Phase::Open(_)) {
            x.note(Note::GivenUp(x.group.id.round, x.part));
            self.end(Ending::GivenUp);
        }
    }

    /// Gives the executor the mean if the mean is chosen and not yet applied. Returns whether it did.
    pub(super) fn apply(&mut self, x: &mut Context<'_, P>) -> bool {
        let Some((_, mean)) = self.accepted.as_ref().filter(|_| self.phase == Phase::Chosen) else {
            return false;
        };
        let (round, part, mean, contributed) =
            (x.group.id.round, x.part, mean.numbers.clone(), mean.id.contributors.contains(x.group.me()));
        x.actions.push_back(Action::Execute(Job::Apply { round, part, mean, contributed }));
        self.phase = Phase::Applying;
        true
    }

    /// The executor has applied the mean, or refused it.
    pub(super) fn applied(&mut self, x: &mut Context<'_, P>, applied: bool) {
        if self.phase == Phase::Applying {
            let (round, part) = (x.group.id.round, x.part);
            x.note(if applied { Note::Applied(round, part) } else { Note::GivenUp(round, part) });
            self.phase = Phase::Over(if applied { self.ending(x) } else { Ending::GivenUp });
        }
    }

    /// The way in which an applied part ended.
    fn ending(&self, x: &mut Context<'_, P>) -> Ending {
        let named = |(_, mean): &(Attempt, Mean<P>)| mean.id.contributors.contains(x.group.me());
        if x.uncarried == 0 || self.accepted.as_ref().is_some_and(named) {
            return Ending::Carried;
        }
        x.note(Note::NotCarried(x.group.id.round, x.part));
        Ending::LeftOut
    }

    // --- Messages of members --------------------------------------------------------------------------------

    pub(super) fn receive(
        &mut self,
        x: &mut Context<'_, P>,
        from: usize,
        attempt: Attempt,
        (content, payload): (Content, P),
    ) {
        let fits = match content {
            Content::Contribution { .. } | Content::Promise { .. } => x.is_owner(x.group.me(), attempt),
            Content::Accept { .. } | Content::Empty { .. } => x.is_owner(from, attempt),
            Content::Accepted { .. } => attempt.0 < x.group.attempts(),
            // These messages are about the group, not about the part.
            Content::Copying | Content::NotAMember => return,
        };
        if from == x.group.me() || !fits {
            return x.malformed(from);
        }
        match content {
            Content::Contribution { weight } if weight > WEIGHT_MAX => x.malformed(from),
            Content::Contribution { weight } => {
                let weight = x.group.weight(from, weight);
                self.on_given(x, from, attempt, Given::Contribution { weight, numbers: payload });
            }
            Content::Promise { of, .. } if of >= attempt => x.malformed(from),
            Content::Promise { of, contributors } => {
                let mean = x.mean(contributors, payload);
                self.votes.add(from, mean.id);
                self.on_given(x, from, attempt, Given::Promise { of, mean });
            }
            Content::Accept { .. } if self.votes.has(from) && self.needs_no_mean() => {}
            Content::Accept { contributors } => {
                let mean = x.mean(contributors, payload);
                self.on_accept(x, from, attempt, mean);
            }
            Content::Accepted { mean } => self.on_accepted(x, from, attempt, mean),
            Content::Empty { heard } => self.on_empty(x, from, attempt, heard),
            Content::Copying | Content::NotAMember => {}
        }
    }

    /// A member takes this replica for the owner, which it is unless it has turned to a later owner.
    fn on_given(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, given: Given<P>) {
        let heard_before = x.group.silent_since(from, self.opened, false);
        if self.given.insert(from) {
            x.group.heard(x.now, from);
        }
        match self.phase {
            Phase::Chosen | Phase::Applying | Phase::Over(Ending::Carried | Ending::LeftOut) => {
                x.timeout.saw(x.now.since(self.opened));
                return self.help(x, from, attempt);
            }
            Phase::Over(Ending::Empty | Ending::GivenUp) => return x.late(from),
            Phase::Waiting => self.join(x, attempt),
            Phase::Open(_) if attempt > self.attempt => self.join(x, attempt),
            Phase::Open(_) => {}
        }
        let Some(reducer) = self.reducer.as_mut().filter(|_| attempt == self.attempt) else {
            return x.late(from);
        };
        x.timeout.saw(x.now.since(heard_before.max(reducer.since())));
        if reducer.take(from, given) { self.conclude(x) } else { x.late(from) }
    }

    /// A member has missed that the mean of this part is chosen.
    fn help(&self, x: &mut Context<'_, P>, from: usize, attempt: Attempt) {
        match self.proposal(x.group, x.part, attempt) {
            Some((attempt, content, numbers)) => x.send(from, attempt, content, numbers),
            None => x.late(from),
        }
    }

    /// The answer to a member for which the round is not over, while it is over here.
    pub(super) fn answer(
        &mut self,
        group: &Group,
        part: PartIndex,
        (from, attempt): (usize, Attempt),
        content: &Content,
    ) -> Option<(Attempt, Content, P)> {
        match content {
            Content::Contribution { .. } | Content::Promise { .. } => self.proposal(group, part, attempt),
            &Content::Accepted { mean } if self.votes.add(from, mean) => {
                self.vote().map(|(attempt, vote)| (attempt, vote, P::default()))
            }
            _ => None,
        }
    }

    /// The chosen mean, for a member that is still at `attempt`, in an attempt in which this replica may propose it: as
    /// the owner of a later attempt it would propose the same mean.
    fn proposal(&self, group: &Group, part: PartIndex, attempt: Attempt) -> Option<(Attempt, Content, P)> {
        let chosen = matches!(
            self.phase,
            Phase::Chosen | Phase::Applying | Phase::Over(Ending::Carried | Ending::LeftOut)
        );
        let (of, mean) = self.accepted.as_ref().filter(|_| chosen)?;
        let owned = |attempt: &Attempt| group.owner(part, *attempt) == group.me();
        let attempt = [attempt, *of].into_iter().find(owned)?;
        let accept = Content::Accept { contributors: mean.id.contributors };
        Some((attempt, accept, mean.numbers.clone()))
    }

    // --- Votes ----------------------------------------------------------------------------------------------

    /// An owner proposes a mean, which it has accepted itself.
    fn on_accept(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, mean: Mean<P>) {
        let is_first = self.add_vote(x, from, attempt, mean.id);
        if is_first {
            x.group.heard(x.now, from);
        }
        match self.phase {
            Phase::Chosen | Phase::Applying | Phase::Over(_) => self.vote_again(x, from, is_first),
            Phase::Waiting | Phase::Open(_) if self.accepted.is_some() => self.count_votes(x),
            Phase::Open(_) if attempt < self.attempt => x.late(from),
            Phase::Waiting | Phase::Open(_) => {
                self.accept(x, attempt, mean);
                if let Some((attempt, vote)) = self.vote() {
                    x.broadcast(attempt, &vote, &P::default());
                }
                self.count_votes(x);
            }
        }
    }

    /// Whether the numbers of a further mean would be of no use here.
    fn needs_no_mean(&self) -> bool {
        self.accepted.is_some() || !matches!(self.phase, Phase::Waiting | Phase::Open(_))
    }

    /// Another member has accepted a mean.
    fn on_accepted(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, mean: MeanId) {
        let is_first = self.add_vote(x, from, attempt, mean);
        match self.phase {
            Phase::Waiting | Phase::Open(_) => self.count_votes(x),
            Phase::Chosen | Phase::Applying | Phase::Over(_) => self.vote_again(x, from, is_first),
        }
    }

    fn add_vote(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, mean: MeanId) -> bool {
        let is_first = self.votes.add(from, mean);
        let contradicts = |(of, own): &&(Attempt, Mean<P>)| *of == attempt && own.id != mean;
        if is_first && self.accepted.as_ref().filter(contradicts).is_some() {
            let owner = x.group.instance(x.group.owner(x.part, attempt));
            x.notes.extend(
                owner.zip(x.group.instance(from)).map(|(owner, voter)| Note::TwoMeans { owner, voter }),
            );
        }
        is_first
    }

    /// A member that votes when the part is over here is late: it may have missed this replica's vote.
    fn vote_again(&self, x: &mut Context<'_, P>, to: usize, is_first: bool) {
        if let Some((attempt, vote)) = self.vote().filter(|_| is_first) {
            x.send(to, attempt, vote, P::default());
        }
    }

    fn vote(&self) -> Option<(Attempt, Content)> {
        self.vote.map(|(attempt, mean)| (attempt, Content::Accepted { mean }))
    }

    fn accept(&mut self, x: &mut Context<'_, P>, attempt: Attempt, mean: Mean<P>) {
        if self.phase == Phase::Waiting {
            self.opened = x.now;
        }
        (self.attempt, self.phase, self.reducer) = (attempt, Phase::Open(x.now), None);
        self.votes.add(x.group.me(), mean.id);
        self.vote = Some((attempt, mean.id));
        self.accepted = Some((attempt, mean));
    }

    /// Chooses the mean that this replica has accepted if enough others have accepted it. Gives up if enough have accepted
    /// others: no vote changes.
    fn count_votes(&mut self, x: &mut Context<'_, P>) {
        let (Phase::Open(since), Some((_, mean))) = (self.phase, &self.accepted) else { return };
        let silent = |member: usize| !self.votes.has(member) && x.group.is_awaited(member);
        let all = since + x.timeout.current() <= x.now || !x.group.others().any(silent);
        if self.votes.count(mean.id) >= x.group.quorum() || (all && self.has_majority(x.group)) {
            self.phase = Phase::Chosen;
        } else if self.is_outvoted(mean.id, x.group) {
            self.give_up(x);
        }
    }

    fn is_outvoted(&self, mean: MeanId, group: &Group) -> bool {
        let open = group.others().filter(|&member| !self.votes.has(member)).count();
        self.votes.are_divided(mean) && self.votes.count(mean) + open < group.quorum()
    }

    /// Whether a majority has accepted the same mean as this replica, and no member another.
    fn has_majority(&self, group: &Group) -> bool {
        let most = |mean: MeanId| self.votes.count(mean) >= group.majority() && !self.votes.are_divided(mean);
        self.accepted.as_ref().is_some_and(|(_, mean)| most(mean.id))
    }

    fn on_empty(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, heard: MemberSet) {
        match self.phase {
            Phase::Waiting | Phase::Open(_) if attempt == self.attempt && self.accepted.is_none() => {
                self.end_empty(x, heard);
            }
            Phase::Waiting | Phase::Open(_) | Phase::Chosen | Phase::Applying | Phase::Over(_) => {
                x.late(from);
            }
        }
    }

    // --- Owners ---------------------------------------------------------------------------------------------

    /// Turns to the first owner from `attempt` on that is not known to be gone.
    fn turn_to(&mut self, x: &mut Context<'_, P>, attempt: Attempt) {
        match x.group.attempt_from(x.part, attempt) {
            Some(attempt) => self.join(x, attempt),
            None => self.give_up(x),
        }
    }

    fn join(&mut self, x: &mut Context<'_, P>, attempt: Attempt) {
        if attempt.0 > 0 {
            x.note(Note::Reassigned(x.group.id.round, x.part));
        }
        (self.attempt, self.phase, self.reducer) = (attempt, Phase::Open(x.now), None);
        let owner = x.group.owner(x.part, attempt);
        match self.accepted.clone() {
            Some((_, mean)) if owner == x.group.me() => self.propose(x, mean),
            Some((of, Mean { id, numbers })) => {
                x.send(owner, attempt, Content::Promise { of, contributors: id.contributors }, numbers);
            }
            None if owner == x.group.me() => {
                let own = Given::Contribution { weight: x.weight, numbers: self.mine.clone() };
                self.reducer = Some(Reducer::new(x.now, owner, own));
                self.conclude(x);
            }
            None => x.send(owner, attempt, Content::Contribution { weight: x.weight }, self.mine.clone()),
        }
    }

    /// Whether the owner may decide. The first owner need not hear a majority: no earlier owner can have proposed a
    /// mean.
    fn may_conclude(&self, group: &Group, reducer: &Reducer<P>) -> bool {
        self.attempt == Attempt(0) || reducer.len() >= group.majority()
    }

    /// Stops collecting if every present member has contributed, or the missing members are overdue.
    fn conclude(&mut self, x: &mut Context<'_, P>) {
        let Some(reducer) = self.reducer.as_ref().filter(|reducer| reducer.is_collecting()) else { return };
        let missing: Vec<usize> = missing(x.group, reducer).collect();
        let due = contributions_due(x.group, x.timeout, reducer) <= x.now;
        let over = due || missing.iter().all(|&member| x.group.is_overdue(member));
        if !over || !self.may_conclude(x.group, reducer) {
            return;
        }
        for member in missing {
            x.group.go_on_without(member);
            let note = |member| Note::LeftOut(x.group.id.round, x.part, member);
            x.notes.extend(x.group.instance(member).map(note));
        }
        self.decide(x);
    }

    fn decide(&mut self, x: &mut Context<'_, P>) {
        match self.reducer.as_mut().map(Reducer::conclude) {
            Some(Decision::Adopt(mean)) => self.propose(x, mean),
            Some(Decision::Reduce(inputs)) => {
                let (round, part, attempt, own) = (x.group.id.round, x.part, self.attempt, self.mine.clone());
                x.actions.push_back(Action::Execute(Job::Reduce { round, part, attempt, own, inputs }));
            }
            Some(Decision::Empty) => {
                let heard = self.reducer.as_ref().map(Reducer::heard).unwrap_or_default();
                x.broadcast(self.attempt, &Content::Empty { heard }, &P::default());
                self.end_empty(x, heard);
            }
            None => {}
        }
    }

    /// The mean is computed, or the contribution at index `input` cannot be used and the others are reduced again.
    pub(super) fn reduced(
        &mut self,
        x: &mut Context<'_, P>,
        attempt: Attempt,
        outcome: Result<P, (usize, Fault)>,
    ) {
        let current = |reducer: &&mut Reducer<P>| attempt == self.attempt && reducer.is_reducing();
        let Some(reducer) = self.reducer.as_mut().filter(current) else { return };
        match outcome {
            Ok(numbers) => {
                let mean = x.mean(reducer.contributors(), numbers);
                self.propose(x, mean);
            }
            Err((input, fault)) => match reducer.refuse(input).and_then(|member| x.group.instance(member)) {
                Some(member) => {
                    x.note(Note::Refused(member, fault));
                    self.decide(x);
                }
                None => self.give_up(x),
            },
        }
    }

    /// Proposes a mean, which this owner accepts first.
    fn propose(&mut self, x: &mut Context<'_, P>, mean: Mean<P>) {
        let accept = Content::Accept { contributors: mean.id.contributors };
        x.broadcast(self.attempt, &accept, &mean.numbers);
        self.accept(x, self.attempt, mean);
        self.count_votes(x);
    }

    /// No mean is made. A member that was not heard may have something to contribute: then this was no round.
    fn end_empty(&mut self, x: &mut Context<'_, P>, heard: MemberSet) {
        let all = x.uncarried == 0 && (0..x.group.len()).all(|member| heard.contains(member));
        if !all {
            return self.give_up(x);
        }
        x.note(Note::Empty(x.group.id.round, x.part));
        self.end(Ending::Empty);
    }

    fn end(&mut self, ending: Ending) {
        self.phase = Phase::Over(ending);
        self.reducer = None;
        self.accepted = None;
    }
}

/// The members that the owner has not heard.
fn missing<P: Clone>(group: &Group, reducer: &Reducer<P>) -> impl Iterator<Item = usize> {
    group.others().filter(|&member| !reducer.has(member))
}

/// The time at which an owner goes on without the members that it has not heard.
fn contributions_due<P: Clone>(group: &Group, timeout: &AdaptiveTimeout, reducer: &Reducer<P>) -> Time {
    let awaited = missing(group, reducer).filter(|&member| !group.is_overdue(member));
    let silent_since = |member| group.silent_since(member, reducer.since(), group.is_copying(member));
    awaited.map(silent_since).max().unwrap_or_default() + timeout.current()
}

/// The time at which a member turns to the next owner.
fn owner_due(group: &Group, timeout: &AdaptiveTimeout, owner: usize, since: Time) -> Time {
    let waits = group.others().any(|member| group.is_copying(member));
    group.silent_since(owner, since, waits) + timeout.with_owner()
}
