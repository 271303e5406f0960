//! Averaging rounds in the world. Replicas drive their machine as production does: a feeder's word calls a round, the
//! executor copies and moves numbers between two jobs, and the feeder hears when the round has ended.

use super::executor::time_between;
use super::process::Liveness;
use super::queue::Machine;
use super::{Delivery, World};
use crate::averaging::{
    Action, Attendance, AveragingMessage, Config, Event, GatheringId, PartIndex, Participant, Round,
    SetIndex, Word,
};
use crate::{
    Averaging, Duration, Incarnation, Member, Message, MicrobatchId, PeerId, Stage, StageIndex, Standing,
    Time, stage,
};

pub(super) use super::reference_model::averaging::Means;
use super::state::{Weights, mean};

/// To average the shares of a part takes a time below this.
const REDUCTION_MAX: Duration = Duration::from_millis(20);

/// Numbers of a part on their way: a share, or a mean.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Numbers {
    pub(super) gathering: GatheringId,
    pub(super) part: PartIndex,
    /// Whose shares are in it, in order.
    pub(super) of: Vec<Participant>,
    pub(super) numbers: Vec<f64>,
}

/// A replica's rounds: the machine, and what is kept beside it.
#[derive(Debug)]
pub(super) struct Rounds {
    machine: Averaging<Numbers>,
    pub(super) weights: Weights,
    attendance: Attendance,
}

/// What an event of the stage machine is to its rounds.
#[derive(Clone, Copy, Debug)]
pub(super) enum News {
    Call { feeder: PeerId, incarnation: Incarnation, round: Round, over: bool },
    Lost(Participant),
    Table,
    Nothing,
}

impl News {
    pub(super) fn of(event: &stage::Event<u8>) -> Self {
        match *event {
            stage::Event::Received { from, incarnation, message: Message::Ended { round, over, .. } } => {
                Self::Call { feeder: from, incarnation, round, over }
            }
            stage::Event::PeerLost { peer, incarnation } => Self::Lost(Participant { peer, incarnation }),
            stage::Event::Membership(_) => Self::Table,
            _ => Self::Nothing,
        }
    }
}

impl Rounds {
    fn new(me: Participant, sets: u32, weights: Weights) -> Self {
        Self {
            machine: Averaging::new(Config { me, sets, parts_min: 1 }),
            weights,
            attendance: Attendance::default(),
        }
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.machine.poll_timeout().map(|(at, _)| at)
    }
}

impl World {
    /// A replica that gets ready for a stage takes over the numbers of one that serves there, if any does.
    pub(super) fn open_rounds(&mut self, index: usize, stage: StageIndex) {
        let Some(carrying) = self.scenario.averaging else { return };
        let sets = u32::try_from(carrying.sets).unwrap();
        let table = self.coordinator.membership();
        let donor = self.replicas.iter().find(|replica| {
            let serves = |member: &Member| {
                let same = (member.peer, member.incarnation) == (replica.peer, replica.incarnation);
                same && member.standing == Standing::Serving(stage)
            };
            replica.liveness != Liveness::Dead && table.members.iter().any(serves)
        });
        let weights = donor.and_then(|donor| donor.rounds.as_ref()).map(|rounds| rounds.weights.joined());
        let weights = weights.unwrap_or_else(|| Weights::fresh(sets));
        self.replicas[index].rounds = Some(Rounds::new(self.participant(index), sets, weights));
    }

    /// A microbatch is in the numbers of this replica.
    pub(super) fn contribute(&mut self, index: usize, microbatch: MicrobatchId) {
        if let Some(rounds) = &mut self.replicas[index].rounds {
            rounds.weights.contribute(microbatch);
        }
    }

    /// The stage machine has heard this.
    pub(super) fn tell_rounds(&mut self, index: usize, news: News) {
        if self.replicas[index].liveness == Liveness::Dead {
            return;
        }
        match news {
            News::Call { feeder, incarnation, round, over } => {
                self.hear_call(index, feeder, incarnation, round, over);
            }
            News::Lost(peer) => self.at_rounds(index, Event::PeerLost(peer)),
            News::Table => self.at_rounds(index, Event::Members(self.members(index))),
            News::Nothing => {}
        }
        let replica = &mut self.replicas[index];
        let held = replica.stage.as_ref().map_or(0, Stage::held);
        if let Some(round) = replica.rounds.as_mut().and_then(|rounds| rounds.attendance.take_due(held)) {
            self.judge.path("averaging round");
            self.at_rounds(index, Event::Round(round));
        }
    }

    fn hear_call(
        &mut self,
        index: usize,
        feeder: PeerId,
        incarnation: Incarnation,
        round: Round,
        over: bool,
    ) {
        let (serves, me) = (self.members(index), self.participant(index));
        let (now, replica) = (self.now, &mut self.replicas[index]);
        let feeds = replica.stage.as_ref().is_some_and(|stage| stage.table().feeds(feeder, incarnation));
        let Some(rounds) = replica.rounds.as_mut().filter(|_| feeds && serves.contains(&me)) else { return };
        let word = rounds.attendance.hear_call(now, feeder, round, over);
        if let Some(Word { ended, .. }) = word {
            self.at_rounds(index, Event::Past(ended));
        }
        self.say(index, word);
    }

    /// Hands an event to the machine and does what it asks.
    pub(super) fn at_rounds(&mut self, index: usize, event: Event<Numbers>) {
        let (now, me) = (self.now, self.participant(index));
        let Some(rounds) = self.replicas[index].rounds.as_mut() else { return };
        if matches!(event, Event::Applied { .. }) {
            self.judge.means.answered(me);
        }
        let called = if let Event::Round(round) = event { Some(round) } else { None };
        rounds.machine.handle(now, event);
        while let Some(action) = self.rounds(index).machine.poll_action() {
            self.average(index, action);
        }
        // A round that does not begin has nobody to average with.
        let rounds = self.rounds(index);
        if let Some(round) = called.filter(|_| rounds.machine.round().is_none()) {
            let word = rounds.attendance.end(now, round);
            self.say(index, word);
        }
        self.set_alarm(Machine::Rounds(index));
    }

    fn average(&mut self, index: usize, action: Action<Numbers>) {
        match action {
            Action::Snapshot { round, set, parts } => self.snapshot(index, round, set, parts),
            Action::Send { to, message } => self.post_averaging(index, to, message),
            Action::Reduce { round, part, attempt, inputs, .. } => {
                self.judge.means.reduce(self.participant(index), part, &inputs);
                let gathering = inputs[0].1.gathering;
                let of = inputs.iter().flat_map(|(_, share)| share.of.clone()).collect();
                let numbers = mean(inputs.iter().map(|(weight, share)| (*weight, &*share.numbers)));
                let outcome = Ok(Numbers { gathering, part, of, numbers });
                let delay = time_between(&mut self.rng, Duration::ZERO, REDUCTION_MAX);
                self.answer(index, self.now + delay, Event::Reduced { round, part, attempt, outcome });
            }
            Action::Apply { round, part, mean } => self.apply(index, round, part, &mean),
            Action::Finished { round, complete, .. } => self.end_round(index, round, complete),
            Action::Counted(_) => {}
        }
    }

    fn snapshot(&mut self, index: usize, round: Round, set: SetIndex, parts: u32) {
        let me = self.participant(index);
        let at = self.executor_done(index);
        let rounds = self.rounds(index);
        let (gathering, members) = rounds.machine.gathering().expect("a round begins");
        let (weight, parts) = rounds.weights.snapshot(round, set, parts);
        let share = |(part, numbers)| Numbers { gathering, part: PartIndex(part), of: vec![me], numbers };
        let parts: Vec<_> = (0..).zip(parts).map(share).collect();
        self.judge.means.begin(me, gathering, members.len(), weight, &parts);
        self.answer(index, at, Event::Snapshot { round, weight, parts });
    }

    fn apply(&mut self, index: usize, round: Round, part: PartIndex, mean: &Numbers) {
        if self.judge.means.apply(self.participant(index), part, mean) {
            self.judge.path("averaged");
            let (_, members) = self.rounds(index).machine.gathering().expect("a round is open");
            if members.into_iter().any(|member| !mean.of.contains(&member) && !self.lives(member)) {
                self.judge.path("averaged without a dead member");
            }
        }
        self.rounds(index).weights.apply(round, part, &mean.numbers);
        let at = self.executor_done(index);
        self.answer(index, at, Event::Applied { round, part, applied: true });
    }

    fn end_round(&mut self, index: usize, round: Round, complete: bool) {
        self.judge.means.finish(self.participant(index), round);
        let now = self.now;
        let rounds = self.rounds(index);
        rounds.weights.finish(round, complete);
        let word = rounds.attendance.end(now, round);
        self.say(index, word);
    }

    /// Tells a feeder which round has ended.
    fn say(&mut self, index: usize, word: Option<Word>) {
        if let Some(Word { feeder, ended }) = word {
            let Participant { peer, incarnation } = self.participant(index);
            self.post(peer, incarnation, feeder, Message::Averaged { round: ended });
        }
    }

    fn post_averaging(&mut self, index: usize, to: PeerId, message: AveragingMessage<Numbers>) {
        let from = self.participant(index);
        self.judge.means.say(from, &message);
        let Some(receiver) = self.replica_of(to) else { return };
        let known = self.replicas[receiver].incarnation;
        if self.replicas[receiver].liveness == Liveness::Dead {
            return self.unreachable(from.peer, from.incarnation, to, known);
        }
        let event = Event::Received { from, message };
        self.carry(from.peer, to, Delivery::Rounds(receiver, known, event));
    }

    fn answer(&mut self, index: usize, at: Time, event: Event<Numbers>) {
        let incarnation = self.replicas[index].incarnation;
        self.send_at(at, Delivery::Rounds(index, incarnation, event));
    }

    /// A process is about to die.
    pub(super) fn judge_death(&mut self, index: usize) {
        if self.judge.means.is_open(self.participant(index)) {
            self.judge.path("died in a round");
        }
    }

    /// Whether those who serve a stage hold the same numbers, bit for bit.
    pub(super) fn agree(&self, stage: StageIndex) -> bool {
        let serving = self
            .replicas
            .iter()
            .filter(|replica| replica.stage.as_ref().is_some_and(|machine| machine.config().stage == stage));
        let mut bits =
            serving.filter_map(|replica| replica.rounds.as_ref()).map(|rounds| rounds.weights.bits());
        let first = bits.next();
        bits.all(|bits| Some(bits) == first)
    }

    /// When the executor will be done with something short.
    fn executor_done(&mut self, index: usize) -> Time {
        let replica = &mut self.replicas[index];
        replica.executor.busy(self.now, replica.service / 8)
    }

    /// Who serves the stage of this replica, as it knows.
    fn members(&self, index: usize) -> Vec<Participant> {
        let Some(stage) = &self.replicas[index].stage else { return Vec::new() };
        let hops = stage.table().hops(stage.config().stage).into_iter();
        hops.map(|hop| Participant { peer: hop.peer, incarnation: hop.incarnation }).collect()
    }

    fn lives(&self, member: Participant) -> bool {
        let replica = self.replica_of(member.peer).map(|index| &self.replicas[index]);
        replica.is_some_and(|replica| {
            replica.incarnation == member.incarnation && replica.liveness != Liveness::Dead
        })
    }

    fn participant(&self, index: usize) -> Participant {
        let replica = &self.replicas[index];
        Participant { peer: replica.peer, incarnation: replica.incarnation }
    }

    fn rounds(&mut self, index: usize) -> &mut Rounds {
        self.replicas[index].rounds.as_mut().expect("only asked for where there are rounds")
    }
}
