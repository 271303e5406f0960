//! One part of a round, as one member sees it: from its share to the mean it applies.
//!
//! What is applied must be the same everywhere, although owners die between telling one member and the next. So an
//! owner proposes, and a mean is settled once a majority holds it. A member that turns to the next owner promises to
//! take nothing from those before, and hands over the mean it holds, if any; the next owner hears a majority before
//! it proposes, so it hears of every mean that may be settled, and proposes that one again. (Single-decree Paxos,
//! Lamport 1998, "The part-time parliament", with one ballot for each owner, in a fixed order.)

use std::collections::VecDeque;

use crate::{Attempt, Duration, Time};

use super::adaptive_timeout::Spread;
use super::counts::{Fault, Note};
use super::group::{Gathering, PartIndex};
use super::message::{AveragingMessage, Content};
use super::reducer::{Desk, Given, Verdict};
use super::{Action, Reason};

/// Contributions a share may claim: more than any run has, and few enough that sums of them are exact.
pub const WEIGHT_MAX: u64 = 1 << 40;

/// What a part needs to know of its round, and where its wishes go.
#[derive(Debug)]
pub(super) struct Context<'a, P> {
    pub(super) now: Time,
    pub(super) gathering: &'a Gathering,
    pub(super) part: PartIndex,
    /// This replica's contributions since the set's last round.
    pub(super) weight: u64,
    /// A newer round waits: no owner is given a second chance.
    pub(super) superseded: bool,
    pub(super) spread: &'a mut Spread,
    pub(super) actions: &'a mut VecDeque<Action<P>>,
    pub(super) notes: &'a mut Vec<Note>,
}

impl<P: Clone> Context<'_, P> {
    fn send(&mut self, member: usize, attempt: Attempt, content: Content<P>) {
        let Some(to) = self.gathering.participant(member) else { return };
        let message = AveragingMessage { gathering: self.gathering.id, part: self.part, attempt, content };
        self.actions.push_back(Action::Send { to: to.peer, message });
    }

    fn broadcast(&mut self, attempt: Attempt, content: &Content<P>) {
        for member in self.gathering.others().collect::<Vec<_>>() {
            self.send(member, attempt, content.clone());
        }
    }

    fn note(&mut self, note: Note) {
        self.notes.push(note);
    }

    fn malformed(&mut self, from: usize) {
        self.notes.extend(self.gathering.participant(from).map(Note::Malformed));
    }

    fn late(&mut self, from: usize) {
        self.notes.extend(self.gathering.participant(from).map(Note::Late));
    }

    fn patience(&self) -> Duration {
        self.spread.patience()
    }

    fn deadline(&self) -> Time {
        self.now + self.spread.patience_with_owner()
    }

    fn is_owner(&self, member: usize, attempt: Attempt) -> bool {
        attempt.0 < self.gathering.attempts() && self.gathering.owner(self.part, attempt) == member
    }
}

/// How far a part is here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Not begun.
    Waiting,
    /// With an owner, until the deadline.
    Open(Time),
    /// A majority holds the mean kept; the executor has not heard of it.
    Settled,
    /// The executor applies it.
    Applying,
    Over(Ending),
}

/// How a part ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    Applied,
    /// Nobody had contributed to it.
    Nothing,
    /// It is as it was before the round.
    GivenUp,
}

/// One part of a round.
#[derive(Clone, Debug)]
pub(super) struct Share<P> {
    mine: P,
    phase: Phase,
    /// The owner this replica has turned to: it takes no mean from earlier ones, unless that is settled.
    attempt: Attempt,
    /// The mean taken last, and from which owner.
    kept: Option<(Attempt, P)>,
    /// This owner's mean is settled, but has not arrived.
    settled: Option<Attempt>,
    /// While this replica is the owner.
    desk: Option<Desk<P>>,
}

impl<P: Clone> Share<P> {
    pub(super) fn new(mine: P) -> Self {
        Self { mine, phase: Phase::Waiting, attempt: Attempt(0), kept: None, settled: None, desk: None }
    }

    pub(super) fn is_over(&self) -> bool {
        matches!(self.phase, Phase::Over(_))
    }

    pub(super) fn is_applying(&self) -> bool {
        self.phase == Phase::Applying
    }

    /// Whether the part has been round: applied, or there was nothing to apply.
    pub(super) fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Over(Ending::Applied | Ending::Nothing))
    }

    /// Gives the share to its first owner.
    pub(super) fn open(&mut self, x: &mut Context<'_, P>) {
        if self.phase == Phase::Waiting {
            self.turn_to(x, Attempt(0));
        }
    }

    /// When to call [`Share::expire`], and why.
    pub(super) fn deadline(&self, gathering: &Gathering, patience: Duration) -> Option<(Time, Reason)> {
        let Phase::Open(deadline) = self.phase else { return None };
        let gathers =
            self.desk.as_ref().filter(|desk| desk.is_gathering() && self.may_conclude(gathering, desk));
        let concludes = gathers.map(|desk| (desk.since() + patience, Reason::SharesExpire));
        concludes.into_iter().chain([(deadline, Reason::OwnerExpires)]).min_by_key(|(at, _)| *at)
    }

    /// What is overdue is done without those who are late.
    pub(super) fn expire(&mut self, x: &mut Context<'_, P>) {
        self.conclude(x);
        if let Phase::Open(deadline) = self.phase
            && deadline <= x.now
        {
            if x.superseded {
                self.give_up(x);
            } else {
                self.turn_to(x, Attempt(self.attempt.0.saturating_add(1)));
            }
        }
    }

    /// The gathering has lost members: an owner among them has successors, and nobody waits for their shares.
    pub(super) fn notice_absence(&mut self, x: &mut Context<'_, P>) {
        if !matches!(self.phase, Phase::Open(_)) {
            return;
        }
        if x.gathering.is_present(x.gathering.owner(x.part, self.attempt)) {
            self.conclude(x);
        } else {
            self.turn_to(x, Attempt(self.attempt.0.saturating_add(1)));
        }
    }

    /// Ends the part without a mean, if it has not ended.
    pub(super) fn give_up(&mut self, x: &mut Context<'_, P>) {
        if matches!(self.phase, Phase::Waiting | Phase::Open(_)) {
            x.note(Note::GivenUp(x.gathering.id.round, x.part));
            self.end(Ending::GivenUp);
        }
    }

    /// Gives the executor the mean, if it is settled; whether it was.
    pub(super) fn apply(&mut self, x: &mut Context<'_, P>) -> bool {
        let Some((_, mean)) = self.kept.as_ref().filter(|_| self.phase == Phase::Settled) else {
            return false;
        };
        let (round, part) = (x.gathering.id.round, x.part);
        x.actions.push_back(Action::Apply { round, part, mean: mean.clone() });
        self.phase = Phase::Applying;
        true
    }

    /// The executor has applied the mean, or refused it.
    pub(super) fn applied(&mut self, x: &mut Context<'_, P>, applied: bool) {
        if self.phase == Phase::Applying {
            let (round, part) = (x.gathering.id.round, x.part);
            x.note(if applied { Note::Applied(round, part) } else { Note::GivenUp(round, part) });
            self.phase = Phase::Over(if applied { Ending::Applied } else { Ending::GivenUp });
        }
    }

    // --- What members say -----------------------------------------------------------------------------------

    pub(super) fn receive(
        &mut self,
        x: &mut Context<'_, P>,
        from: usize,
        attempt: Attempt,
        content: Content<P>,
    ) {
        let to_owner = matches!(content, Content::Share { .. } | Content::Kept { .. } | Content::Held);
        let owner = if to_owner { x.gathering.me() } else { from };
        if from == x.gathering.me() || !x.is_owner(owner, attempt) {
            return x.malformed(from);
        }
        match content {
            Content::Share { weight, .. } if weight > WEIGHT_MAX => x.malformed(from),
            Content::Share { weight, share } => {
                self.on_given(x, from, attempt, Given::Share { weight, share });
            }
            Content::Kept { of, .. } if of >= attempt => x.malformed(from),
            Content::Kept { of, mean } => self.on_given(x, from, attempt, Given::Kept { of, mean }),
            Content::Mean { mean } => self.on_mean(x, from, attempt, mean),
            Content::Held => self.on_held(x, from, attempt),
            Content::Settled => self.on_settled(x, from, attempt),
            Content::Nothing => self.on_nothing(x, from, attempt),
            // It is about the gathering, not about this part.
            Content::Absent => {}
        }
    }

    /// Somebody takes this replica for the owner: it is, if nobody has gone further.
    fn on_given(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, given: Given<P>) {
        match self.phase {
            Phase::Settled | Phase::Applying | Phase::Over(Ending::Applied) => {
                return self.help(x, from, attempt);
            }
            Phase::Over(Ending::Nothing | Ending::GivenUp) => return x.late(from),
            Phase::Waiting => self.join(x, attempt),
            Phase::Open(_) if attempt > self.attempt => self.join(x, attempt),
            Phase::Open(_) => {}
        }
        let Some(desk) = self.desk.as_mut().filter(|_| attempt == self.attempt) else { return x.late(from) };
        x.spread.saw(x.now.since(desk.since()));
        if desk.take(from, given) { self.conclude(x) } else { x.late(from) }
    }

    /// Somebody has missed that this part is settled. As a later owner this replica would propose the same mean.
    fn help(&self, x: &mut Context<'_, P>, from: usize, attempt: Attempt) {
        if let Some((_, mean)) = &self.kept {
            x.send(from, attempt, Content::Mean { mean: mean.clone() });
            x.send(from, attempt, Content::Settled);
        }
    }

    fn on_mean(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt, mean: P) {
        let (settled, overtaken) = (self.settled == Some(attempt), attempt < self.attempt);
        match self.phase {
            Phase::Settled | Phase::Applying | Phase::Over(_) => x.late(from),
            Phase::Waiting | Phase::Open(_) if settled => {
                self.kept = Some((attempt, mean));
                self.settle();
            }
            Phase::Open(_) if overtaken => x.late(from),
            // A frame may come twice.
            Phase::Open(_) if self.kept_of(attempt) => {}
            Phase::Waiting | Phase::Open(_) => {
                self.attempt = attempt;
                self.desk = None;
                self.kept = Some((attempt, mean));
                self.phase = Phase::Open(x.deadline());
                x.send(from, attempt, Content::Held);
            }
        }
    }

    fn on_held(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt) {
        let desk = self.desk.as_mut().filter(|_| attempt == self.attempt);
        let holders = desk.map_or(0, |desk| desk.held_by(from));
        if holders >= x.gathering.majority() && matches!(self.phase, Phase::Open(_)) {
            x.broadcast(attempt, &Content::Settled);
            self.settle();
        }
    }

    /// It may have overtaken the mean it is about.
    fn on_settled(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt) {
        match self.phase {
            Phase::Settled | Phase::Applying | Phase::Over(_) => x.late(from),
            Phase::Waiting | Phase::Open(_) if self.kept_of(attempt) => self.settle(),
            Phase::Waiting | Phase::Open(_) => self.settled = Some(attempt),
        }
    }

    fn on_nothing(&mut self, x: &mut Context<'_, P>, from: usize, attempt: Attempt) {
        match self.phase {
            Phase::Waiting | Phase::Open(_) if attempt >= self.attempt => self.end_with_nothing(x),
            Phase::Waiting | Phase::Open(_) | Phase::Settled | Phase::Applying | Phase::Over(_) => {
                x.late(from);
            }
        }
    }

    // --- What follows ---------------------------------------------------------------------------------------

    /// On to the next owner who is not known to be gone.
    fn turn_to(&mut self, x: &mut Context<'_, P>, attempt: Attempt) {
        match x.gathering.attempt_from(x.part, attempt) {
            Some(attempt) => self.join(x, attempt),
            None => self.give_up(x),
        }
    }

    fn join(&mut self, x: &mut Context<'_, P>, attempt: Attempt) {
        if attempt.0 > 0 {
            x.note(Note::Reassigned(x.gathering.id.round, x.part));
        }
        self.attempt = attempt;
        self.phase = Phase::Open(x.deadline());
        self.desk = None;
        let owner = x.gathering.owner(x.part, attempt);
        if owner == x.gathering.me() {
            self.desk = Some(Desk::new(x.now, owner, self.given(x.weight)));
            self.conclude(x);
        } else {
            let content = match self.given(x.weight) {
                Given::Share { weight, share } => Content::Share { weight, share },
                Given::Kept { of, mean } => Content::Kept { of, mean },
            };
            x.send(owner, attempt, content);
        }
    }

    fn given(&self, weight: u64) -> Given<P> {
        match &self.kept {
            Some((of, mean)) => Given::Kept { of: *of, mean: mean.clone() },
            None => Given::Share { weight, share: self.mine.clone() },
        }
    }

    /// The first owner need not hear a majority: nobody can have settled anything before it.
    fn may_conclude(&self, gathering: &Gathering, desk: &Desk<P>) -> bool {
        self.attempt == Attempt(0) || desk.len() >= gathering.majority()
    }

    /// Stops gathering if everybody who is there has given, or the rest is late.
    fn conclude(&mut self, x: &mut Context<'_, P>) {
        let Some(desk) = self.desk.as_ref().filter(|desk| desk.is_gathering()) else { return };
        let missing: Vec<usize> = x.gathering.others().filter(|&member| !desk.has(member)).collect();
        let over = missing.is_empty() || desk.since() + x.patience() <= x.now;
        if !over || !self.may_conclude(x.gathering, desk) {
            return;
        }
        for member in missing.into_iter().filter_map(|member| x.gathering.participant(member)) {
            x.note(Note::LeftOut(x.gathering.id.round, x.part, member));
        }
        self.decide(x);
    }

    fn decide(&mut self, x: &mut Context<'_, P>) {
        match self.desk.as_mut().map(Desk::conclude) {
            Some(Verdict::Adopt(mean)) => self.propose(x, mean),
            Some(Verdict::Reduce(inputs)) => {
                let (round, part, attempt, own) =
                    (x.gathering.id.round, x.part, self.attempt, self.mine.clone());
                x.actions.push_back(Action::Reduce { round, part, attempt, own, inputs });
            }
            Some(Verdict::Nothing) => {
                x.broadcast(self.attempt, &Content::Nothing);
                self.end_with_nothing(x);
            }
            None => {}
        }
    }

    /// The mean is computed, or the share at place `input` was unusable and the rest is tried again.
    pub(super) fn reduced(
        &mut self,
        x: &mut Context<'_, P>,
        attempt: Attempt,
        outcome: Result<P, (usize, Fault)>,
    ) {
        let Some(desk) = self.desk.as_mut().filter(|desk| attempt == self.attempt && desk.is_reducing())
        else {
            return;
        };
        match outcome {
            Ok(mean) => self.propose(x, mean),
            Err((input, fault)) => {
                match desk.refuse(input).and_then(|member| x.gathering.participant(member)) {
                    Some(member) => {
                        x.note(Note::Refused(member, fault));
                        self.decide(x);
                    }
                    None => self.give_up(x),
                }
            }
        }
    }

    fn propose(&mut self, x: &mut Context<'_, P>, mean: P) {
        if let Some(desk) = &mut self.desk {
            desk.propose(x.gathering.me());
        }
        self.kept = Some((self.attempt, mean.clone()));
        self.phase = Phase::Open(x.deadline());
        x.broadcast(self.attempt, &Content::Mean { mean });
    }

    fn kept_of(&self, attempt: Attempt) -> bool {
        self.kept.as_ref().is_some_and(|(of, _)| *of == attempt)
    }

    fn settle(&mut self) {
        self.phase = Phase::Settled;
        self.desk = None;
    }

    fn end_with_nothing(&mut self, x: &mut Context<'_, P>) {
        x.note(Note::Nothing(x.gathering.id.round, x.part));
        self.end(Ending::Nothing);
    }

    fn end(&mut self, ending: Ending) {
        self.phase = Phase::Over(ending);
        self.desk = None;
        self.kept = None;
    }
}
