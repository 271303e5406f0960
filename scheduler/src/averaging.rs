//! One replica's part in the averaging rounds of its stage.
//!
//! Replicas of a stage step on their own and drift apart. In a round they average one of the disjoint index sets of
//! their weights and moments, `round mod sets`; the feeder calls a round when so many microbatches are finished and
//! nobody is at the one before. The executor takes a snapshot of the set, cut into parts. Each part has an owner: members
//! send it their shares, it leaves out who is silent, and the mean of the others goes to all. A silent or dead owner
//! is followed by the next member within the round, for the senders still have their shares. How a mean becomes the
//! same one for everybody who applies it is told in `averaging/share.rs`: a majority must hold it.
//!
//! Training goes on meanwhile. Every wait has a deadline, so every round ends, and a part that came to no end in one
//! is as it was before it. With one member there is nothing to do.
//!
//! Members may see different lists of members. Each takes part in one gathering a round, the one of its own list, and
//! tells those of the others that it is absent there, so that nobody waits for it. Of two lists that differ by one
//! member only one can have a majority. Lists further apart can each settle means of their own; then each group averages
//! among itself until the set has its turn again.

mod adaptive_timeout;
mod counts;
mod deferred;
mod group;
mod message;
mod part;
mod reducer;
mod round_tracker;
#[cfg(test)]
mod tests;
mod unreachable;
#[cfg(test)]
mod world;

use std::collections::VecDeque;
use std::fmt::Debug;

use crate::{Attempt, PeerId, Time};

pub use adaptive_timeout::{PATIENCE_FIRST, PATIENCE_MAX, PATIENCE_MIN};
pub use counts::{Counts, Fault, Note};
pub use deferred::EARLY_PER_MEMBER;
pub use group::{ATTEMPTS_MAX, GatheringId, MEMBERS_MAX, PartIndex, Participant, Round, SetIndex};
pub use message::{AveragingMessage, Content};
pub use part::WEIGHT_MAX;
pub use round_tracker::{Attendance, Word};

use adaptive_timeout::Spread;
use deferred::Early;
use group::Gathering;
use part::{Context, Share};
use unreachable::Lost;

/// Who a replica is and how its numbers are divided.
#[derive(Clone, Copy, Debug)]
pub struct Config {
    /// This replica.
    pub me: Participant,
    /// Index sets, at least 1; the run decides. By default 20: a round averages 5 % of the numbers.
    pub sets: u32,
    /// Parts a set must at least be cut into so that each fits a frame. A round has as many or more: a multiple of
    /// the members.
    pub parts_min: u32,
}

/// What happens to averaging.
#[derive(Clone, Debug)]
pub enum Event<P> {
    /// The live serving replicas of this stage, in any order, with or without this one. Who leaves this list while a
    /// round runs is gone for the rest of it.
    Members(Vec<Participant>),
    /// The round of the run, as the feeder calls it. Numbers below the known one are ignored.
    Round(Round),
    /// Rounds up to this one are over for this replica, or left to the others: it takes part in none of them.
    Past(Round),
    /// The answer to [`Action::Snapshot`].
    Snapshot {
        /// Which round.
        round: Round,
        /// Contributions in these numbers since the set's last round here; 0 for a joiner before it.
        weight: u64,
        /// The parts, as many as asked for; empty if there is no snapshot.
        parts: Vec<P>,
    },
    /// A message arrived from an authenticated peer.
    Received {
        /// Who sent it.
        from: Participant,
        /// What it says.
        message: AveragingMessage<P>,
    },
    /// The answer to [`Action::Reduce`].
    Reduced {
        /// Which round.
        round: Round,
        /// Which part.
        part: PartIndex,
        /// Which attempt at it.
        attempt: Attempt,
        /// The mean; or the place, among the inputs, of a share that cannot be used.
        outcome: Result<P, (usize, Fault)>,
    },
    /// The answer to [`Action::Apply`].
    Applied {
        /// Which round.
        round: Round,
        /// Which part.
        part: PartIndex,
        /// Whether it was; if not, nothing has changed.
        applied: bool,
    },
    /// The connection to a peer is gone, or a message to it could not be delivered.
    PeerLost(Participant),
    /// The time `poll_timeout` named has come.
    Timeout,
}

/// What averaging wants done.
#[derive(Clone, Debug, PartialEq)]
pub enum Action<P> {
    /// Copy the numbers of `set`, between two jobs, as `parts` parts in order. Answer: [`Event::Snapshot`]. At most
    /// one round is open at a time.
    Snapshot {
        /// Which round.
        round: Round,
        /// Which set.
        set: SetIndex,
        /// Into how many parts.
        parts: u32,
    },
    /// Send this to a member.
    Send {
        /// To whom.
        to: PeerId,
        /// What.
        message: AveragingMessage<P>,
    },
    /// Average these shares of a part, each with its weight, in this order. Weights are above 0. Answer:
    /// [`Event::Reduced`]. It needs none of this replica's numbers, so it need not wait for the executor.
    Reduce {
        /// Which round.
        round: Round,
        /// Which part.
        part: PartIndex,
        /// Which attempt at it.
        attempt: Attempt,
        /// This replica's own share: the others must have as many numbers. It is among the inputs if it has weight.
        own: P,
        /// Weights and shares.
        inputs: Vec<(u64, P)>,
    },
    /// Move this replica's numbers to the mean. Answer: [`Event::Applied`]. At most [`APPLYING_MAX`] are unanswered.
    Apply {
        /// Which round.
        round: Round,
        /// Which part.
        part: PartIndex,
        /// The mean.
        mean: P,
    },
    /// The round is over; the snapshot is not needed any more.
    Finished {
        /// Which round.
        round: Round,
        /// Which set.
        set: SetIndex,
        /// Whether the set has been round: every part was applied, or nobody had contributed to it.
        complete: bool,
    },
    /// A note for the metrics.
    Counted(Note),
}

/// Why averaging wants to be woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The executor has not delivered a snapshot.
    SnapshotExpires,
    /// Shares for a part owned here are late.
    SharesExpire,
    /// The owner of a part is late.
    OwnerExpires,
}

/// Means the executor has at once: one is applied, one waits. Microbatches go on between them.
pub const APPLYING_MAX: usize = 2;

/// Patiences for a snapshot: the executor may have a long job at hand.
const SNAPSHOT_PATIENCES: u32 = 4;

/// A round under way.
#[derive(Debug)]
struct Current<P> {
    gathering: Gathering,
    set: SetIndex,
    /// When to give up on the snapshot.
    deadline: Time,
    weight: u64,
    /// One for each part; none before the snapshot is there.
    shares: Vec<Share<P>>,
}

/// One replica's part in averaging.
#[derive(Debug)]
pub struct Averaging<P> {
    config: Config,
    /// In order, one start of each peer.
    members: Vec<Participant>,
    newest: Option<Round>,
    /// The last round begun here.
    begun: Option<Round>,
    current: Option<Current<P>>,
    lost: Lost,
    early: Early<P>,
    spread: Spread,
    counts: Counts,
    actions: VecDeque<Action<P>>,
}

impl<P: Clone + Debug> Averaging<P> {
    /// A replica that knows no other and no round.
    #[must_use]
    pub fn new(config: Config) -> Self {
        Self {
            config,
            members: Vec::new(),
            newest: None,
            begun: None,
            current: None,
            lost: Lost::default(),
            early: Early::default(),
            spread: Spread::default(),
            counts: Counts::default(),
            actions: VecDeque::new(),
        }
    }

    /// Tells what happened. Drain [`Averaging::poll_action`] afterwards.
    pub fn handle(&mut self, now: Time, event: Event<P>) {
        match event {
            Event::Members(members) => self.on_members(now, members),
            Event::Round(round) => self.newest = self.newest.max(Some(round)),
            Event::Past(round) => self.pass(round),
            Event::Snapshot { round, weight, parts } => self.on_snapshot(now, round, weight, parts),
            Event::Received { from, message } => self.on_message(now, from, message),
            Event::Reduced { round, part, attempt, outcome } => {
                self.at(now, round, part, |share, x| share.reduced(x, attempt, outcome));
            }
            Event::Applied { round, part, applied } => {
                self.at(now, round, part, |share, x| share.applied(x, applied));
            }
            Event::PeerLost(peer) => self.on_lost(now, peer),
            Event::Timeout => self.on_timeout(now),
        }
        self.proceed(now);
    }

    /// The next thing to do; `None` when all is done.
    pub fn poll_action(&mut self) -> Option<Action<P>> {
        self.actions.pop_front()
    }

    /// When to call [`Averaging::handle`] with [`Event::Timeout`], and why.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<(Time, Reason)> {
        let current = self.current.as_ref()?;
        if current.shares.is_empty() {
            return Some((current.deadline, Reason::SnapshotExpires));
        }
        let patience = self.spread.patience();
        let deadlines =
            current.shares.iter().filter_map(|share| share.deadline(&current.gathering, patience));
        deadlines.min_by_key(|(at, _)| *at)
    }

    /// The round under way.
    #[must_use]
    pub fn round(&self) -> Option<Round> {
        self.current.as_ref().map(|current| current.gathering.id.round)
    }

    /// The gathering under way, and its members in order.
    #[cfg(test)]
    pub(crate) fn gathering(&self) -> Option<(GatheringId, Vec<Participant>)> {
        let gathering = &self.current.as_ref()?.gathering;
        let members = (0..gathering.len()).filter_map(|member| gathering.participant(member));
        Some((gathering.id, members.collect()))
    }

    /// Totals so far.
    #[must_use]
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    // --- What arrives ---------------------------------------------------------------------------------------

    fn on_members(&mut self, now: Time, mut members: Vec<Participant>) {
        members.sort_unstable();
        // Of two starts of a peer the later one is alive.
        members.dedup_by(|later, kept| {
            let same = later.peer == kept.peer;
            if same {
                *kept = *later;
            }
            same
        });
        members.truncate(MEMBERS_MAX);
        self.early.retain(|from| members.binary_search(from).is_ok());
        self.lost.retain(|lost| members.binary_search(lost).is_ok());
        self.lose(now, |member| members.binary_search(member).is_err());
        self.members = members;
    }

    fn on_snapshot(&mut self, now: Time, round: Round, weight: u64, parts: Vec<P>) {
        let Some(current) = self
            .current
            .as_mut()
            .filter(|current| current.gathering.id.round == round && current.shares.is_empty())
        else {
            return;
        };
        if parts.len() != current.gathering.parts() as usize {
            return self.finish();
        }
        current.weight = weight.min(WEIGHT_MAX);
        current.shares = parts.into_iter().map(Share::new).collect();
        let id = current.gathering.id;
        if !current.gathering.can_settle() {
            return self.each(now, Share::give_up);
        }
        for (from, message) in self.early.take(|of| of == id) {
            self.deliver(now, from, message);
        }
    }

    fn on_message(&mut self, now: Time, from: Participant, message: AveragingMessage<P>) {
        if from == self.config.me || self.members.binary_search(&from).is_err() {
            return self.count(Note::Stranger(from));
        }
        self.lost.speaks(from);
        let round = message.gathering.round;
        let under_way =
            self.current.as_ref().map(|current| (current.gathering.id, current.shares.is_empty()));
        match under_way {
            Some((id, _)) if id == message.gathering && matches!(message.content, Content::Absent) => {
                self.lose(now, |member| *member == from);
            }
            Some((id, true)) if id == message.gathering => self.keep_early(from, message),
            Some((id, false)) if id == message.gathering => self.deliver(now, from, message),
            Some((id, _)) if id.round == round => {
                self.count(Note::OtherMembers(from));
                self.decline(from, &message);
            }
            Some(_) | None if self.begun < Some(round) => self.keep_early(from, message),
            Some(_) | None => {
                self.count(Note::Late(from));
                self.decline(from, &message);
            }
        }
    }

    /// Nobody waits for the answer of a replica that takes no part in a gathering.
    fn decline(&mut self, from: Participant, message: &AveragingMessage<P>) {
        if message.content.awaits_answer() {
            let &AveragingMessage { gathering, part, attempt, .. } = message;
            let message = AveragingMessage { gathering, part, attempt, content: Content::Absent };
            self.actions.push_back(Action::Send { to: from.peer, message });
        }
    }

    fn keep_early(&mut self, from: Participant, message: AveragingMessage<P>) {
        if !self.early.keep(from, message) {
            self.count(Note::Late(from));
        }
    }

    fn deliver(&mut self, now: Time, from: Participant, message: AveragingMessage<P>) {
        let AveragingMessage { gathering, part, attempt, content } = message;
        let Some(current) = &self.current else { return };
        match current.gathering.position(from) {
            Some(member) if part.0 < current.gathering.parts() => {
                self.at(now, gathering.round, part, |share, x| share.receive(x, member, attempt, content));
            }
            Some(_) | None => self.count(Note::Malformed(from)),
        }
    }

    fn on_lost(&mut self, now: Time, peer: Participant) {
        self.lost.insert(now, peer);
        self.lose(now, |member| *member == peer);
    }

    /// Members that are gone are not waited for.
    fn lose(&mut self, now: Time, is_gone: impl Fn(&Participant) -> bool) {
        let Some(current) = &mut self.current else { return };
        if !current.gathering.mark_absent(is_gone) {
            return;
        }
        let can_settle = current.gathering.can_settle();
        self.each(now, |share, x| if can_settle { share.notice_absence(x) } else { share.give_up(x) });
    }

    fn on_timeout(&mut self, now: Time) {
        let overdue = |current: &Current<P>| current.shares.is_empty() && current.deadline <= now;
        if self.current.as_ref().is_some_and(overdue) {
            return self.finish();
        }
        self.each(now, Share::expire);
    }

    // --- What follows ---------------------------------------------------------------------------------------

    /// Opens the next parts, ends the round when all are over, and begins a newer one.
    fn proceed(&mut self, now: Time) {
        self.open_parts(now);
        self.apply_settled(now);
        let over =
            |current: &Current<P>| !current.shares.is_empty() && current.shares.iter().all(Share::is_over);
        if self.current.as_ref().is_some_and(over) {
            self.finish();
        }
        if self.current.is_none() {
            self.begin(now);
        }
    }

    /// Keeps as many parts open as there are members: each owns one of them, so each receives one share at a time
    /// from everybody, however many parts there are.
    fn open_parts(&mut self, now: Time) {
        while let Some(current) = &self.current {
            let Some(first) = current.shares.iter().position(|share| !share.is_over()) else { return };
            let window = first..first.saturating_add(current.gathering.len()).min(current.shares.len());
            self.each_of(now, window, Share::open);
            let moved = self.current.as_ref().is_some_and(|current| current.shares[first].is_over());
            if !moved {
                return;
            }
        }
    }

    fn apply_settled(&mut self, now: Time) {
        let Some(current) = &self.current else { return };
        let mut applying = current.shares.iter().filter(|share| share.is_applying()).count();
        self.each(now, |share, x| {
            if applying < APPLYING_MAX {
                applying += usize::from(share.apply(x));
            }
        });
    }

    fn begin(&mut self, now: Time) {
        let Some(round) = self.newest.filter(|&newest| self.begun < Some(newest)) else { return };
        let Ok(me) = self.members.binary_search(&self.config.me) else { return };
        if self.members.len() < 2 {
            return;
        }
        let mut gathering = Gathering::new(round, self.members.clone(), me, self.config.parts_min);
        gathering.mark_absent(|member| self.lost.contains(now, *member));
        if !gathering.can_settle() {
            return self.pass(round);
        }
        self.begun = Some(round);
        self.decline_early(|id| id.round <= round && id != gathering.id);
        let (set, parts) = (round.set(self.config.sets), gathering.parts());
        let deadline = now + self.spread.patience() * SNAPSHOT_PATIENCES;
        self.current = Some(Current { gathering, set, deadline, weight: 0, shares: Vec::new() });
        self.actions.push_back(Action::Snapshot { round, set, parts });
    }

    /// Takes part in no round up to this one that has not begun here.
    fn pass(&mut self, round: Round) {
        if self.begun < Some(round) {
            self.begun = Some(round);
            self.decline_early(|id| id.round <= round);
        }
    }

    fn decline_early(&mut self, is_declined: impl Fn(GatheringId) -> bool) {
        for (from, message) in self.early.take(is_declined) {
            self.decline(from, &message);
        }
    }

    fn finish(&mut self) {
        let Some(current) = self.current.take() else { return };
        let complete = !current.shares.is_empty() && current.shares.iter().all(Share::is_done);
        self.counts.rounds += 1;
        self.counts.complete += u64::from(complete);
        let (round, set) = (current.gathering.id.round, current.set);
        self.actions.push_back(Action::Finished { round, set, complete });
    }

    // --- Hands ----------------------------------------------------------------------------------------------

    /// Does something to one part of the round under way, if it is `round`.
    fn at(
        &mut self,
        now: Time,
        round: Round,
        part: PartIndex,
        act: impl FnOnce(&mut Share<P>, &mut Context<'_, P>),
    ) {
        if self.round() == Some(round) {
            let mut act = Some(act);
            let index = part.0 as usize;
            self.each_of(now, index..index.saturating_add(1), |share, x| {
                if let Some(act) = act.take() {
                    act(share, x);
                }
            });
        }
    }

    fn each(&mut self, now: Time, act: impl FnMut(&mut Share<P>, &mut Context<'_, P>)) {
        self.each_of(now, 0..usize::MAX, act);
    }

    fn each_of(
        &mut self,
        now: Time,
        range: std::ops::Range<usize>,
        mut act: impl FnMut(&mut Share<P>, &mut Context<'_, P>),
    ) {
        let Some(current) = &mut self.current else { return };
        let mut notes = Vec::new();
        let superseded = self.newest > Some(current.gathering.id.round);
        let parts = (0..).map(PartIndex).zip(&mut current.shares);
        for (part, share) in parts.skip(range.start).take(range.len()) {
            let mut context = Context {
                now,
                gathering: &current.gathering,
                part,
                weight: current.weight,
                superseded,
                spread: &mut self.spread,
                actions: &mut self.actions,
                notes: &mut notes,
            };
            act(share, &mut context);
        }
        notes.into_iter().for_each(|note| self.count(note));
    }

    fn count(&mut self, note: Note) {
        self.counts.add(&note);
        self.actions.push_back(Action::Counted(note));
    }
}
