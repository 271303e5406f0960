//! A seeded world of replicas that average: messages take random times, get lost and come twice, replicas die, and
//! each may see other members. One seed gives one run; every run has a step bound.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    APPLYING_MAX, Action, Averaging, AveragingMessage, Config, Content, Event, Fault, FragmentIndex,
    FragmentSize, GroupId, Job, PartIndex, Reply, Round,
};
use crate::sim::queue::{EventQueue, Next};
use crate::transfer::ChunkHash;
use crate::{Duration, Incarnation, Instance, PeerId, Rng, Time};

/// Numbers of a replica in simulation: a value that identifies the contributions of a mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Numbers {
    pub(super) value: u64,
    pub(super) finite: bool,
}

/// A run and its faults. Everything else follows from `seed`.
#[derive(Clone, Debug)]
pub(super) struct Scenario {
    pub(super) seed: u64,
    pub(super) replicas: usize,
    pub(super) rounds: u64,
    pub(super) parts_min: u32,
    /// Bytes of a part, and what a link carries in each direction, bytes a second; 0 takes no time.
    pub(super) part_bytes: u64,
    pub(super) link: u64,
    /// Time between two rounds.
    pub(super) every: Duration,
    /// Heartbeats tell replicas of a round within this time.
    pub(super) skew_max: Duration,
    pub(super) delay_min: Duration,
    pub(super) delay_max: Duration,
    /// Every reply of an executor takes a time below this.
    pub(super) service_max: Duration,
    /// Messages in a thousand that are lost; as many come twice.
    pub(super) lost_per_mille: u64,
    /// Contributions in a thousand that are not finite.
    pub(super) poisoned_per_mille: u64,
    /// Rounds of a replica in a thousand in which a live replica vanishes from its list.
    pub(super) mistaken_per_mille: u64,
    /// The replicas that die, and the times of death. The others hear of a death a while later, or never if
    /// `is_silent`.
    pub(super) kills: Vec<(usize, Duration)>,
    pub(super) is_silent: bool,
    /// The replica that proposes two means of each part that it owns.
    pub(super) liar: Option<usize>,
    /// Number of replicas that joined last and have contributed to nothing.
    pub(super) joiners: usize,
    /// Replicas whose copies are ready this long after they were asked for.
    pub(super) slow: Vec<(usize, Duration)>,
    pub(super) steps_max: u64,
}

impl Scenario {
    /// A run without faults.
    pub(super) fn new(seed: u64, replicas: usize) -> Self {
        Self {
            seed,
            replicas,
            rounds: 6,
            parts_min: 1,
            part_bytes: 0,
            link: u64::MAX,
            every: Duration::from_secs(60),
            skew_max: Duration::from_secs(1),
            delay_min: Duration::ZERO,
            delay_max: Duration::from_millis(200),
            service_max: Duration::from_millis(100),
            lost_per_mille: 0,
            poisoned_per_mille: 0,
            mistaken_per_mille: 0,
            kills: Vec::new(),
            is_silent: false,
            liar: None,
            joiners: 0,
            slow: Vec::new(),
            steps_max: 200_000,
        }
    }
}

#[derive(Debug)]
enum Delivery {
    To(usize, Event<Numbers>),
    Kill(usize),
}

#[derive(Debug)]
pub(super) struct Replica {
    pub(super) averaging: Averaging<Numbers>,
    alive: bool,
    /// The times at which its link has sent and received all numbers on their way.
    sends_until: Time,
    receives_until: Time,
    /// Rounds whose snapshot has not been dropped.
    open: BTreeSet<Round>,
    /// Means without a reply of the executor.
    applying: usize,
    pub(super) applied: BTreeMap<(GroupId, PartIndex), Numbers>,
    pub(super) finished: BTreeMap<Round, bool>,
    /// The time at which the last round ended.
    pub(super) finished_at: Time,
}

/// A run in progress.
#[derive(Debug)]
pub(super) struct World {
    pub(super) scenario: Scenario,
    rng: Rng,
    queue: EventQueue<Delivery, usize>,
    pub(super) replicas: Vec<Replica>,
    /// The inputs of every mean made.
    pub(super) means: BTreeMap<Numbers, Vec<Numbers>>,
    /// The replica that each copy is of.
    copies: BTreeMap<u64, usize>,
}

pub(super) fn member(index: usize) -> Instance {
    let byte = u8::try_from(index).unwrap() + 1;
    Instance { peer: PeerId([byte; 32]), incarnation: Incarnation(1) }
}

/// A digest that tells values apart.
pub(super) fn digest(value: u64) -> ChunkHash {
    let mut digest = [0; 32];
    digest[..8].copy_from_slice(&value.to_le_bytes());
    digest
}

/// The value of a replica's copy of a part.
pub(super) fn copied(round: Round, part: PartIndex, index: usize) -> u64 {
    Rng::new(round.0 << 32 | u64::from(part.0) << 16 | index as u64).next_u64()
}

impl World {
    pub(super) fn new(scenario: Scenario) -> Self {
        let replica = |index| Replica {
            averaging: Averaging::new(Config {
                me: member(index),
                fragments: 20,
                digest: |numbers| (8, digest(numbers.value)),
                size: FragmentSize {
                    bytes: scenario.part_bytes * u64::from(scenario.parts_min),
                    parts_min: scenario.parts_min,
                },
            }),
            alive: true,
            sends_until: Time(0),
            receives_until: Time(0),
            open: BTreeSet::new(),
            applying: 0,
            applied: BTreeMap::new(),
            finished: BTreeMap::new(),
            finished_at: Time(0),
        };
        let mut world = Self {
            rng: Rng::new(scenario.seed),
            queue: EventQueue::new(),
            replicas: (0..scenario.replicas).map(replica).collect(),
            means: BTreeMap::new(),
            copies: BTreeMap::new(),
            scenario,
        };
        world.open();
        world
    }

    fn open(&mut self) {
        for index in 0..self.replicas.len() {
            self.send(Time(0), index, Event::Members(self.members()));
        }
        for (index, at) in self.scenario.kills.clone() {
            self.queue.schedule(Time(0) + at, Delivery::Kill(index));
        }
        for round in 1..=self.scenario.rounds {
            let at = Time(0) + self.scenario.every * u32::try_from(round).unwrap();
            for index in 0..self.replicas.len() {
                self.announce(at, round, index);
            }
        }
    }

    /// Tells one replica of a round, perhaps just after another replica vanished from its list.
    fn announce(&mut self, at: Time, round: u64, index: usize) {
        let at = at + self.time_below(self.scenario.skew_max);
        self.send(at, index, Event::Round(Round(round)));
        if self.rng.chance(self.scenario.mistaken_per_mille, 1_000) {
            let other = self.any();
            let mut fewer = self.members();
            fewer.retain(|one| *one != member(other));
            let lost = at + self.time_below(Duration::from_secs(4));
            let told = if self.rng.chance(1, 2) { at } else { lost };
            self.send(told, index, Event::Members(fewer));
            self.send(lost, index, Event::PeerLost(member(other)));
            self.send(at + Duration::from_secs(20), index, Event::Members(self.members()));
        }
    }

    /// Runs until no event is left.
    pub(super) fn run(&mut self) {
        let (seed, limit) = (self.scenario.seed, self.scenario.steps_max);
        while let Some(next) = self.queue.pop() {
            assert!(self.queue.steps() < limit, "seed {seed}: not over after {limit} steps");
            match next {
                Next::Event(Delivery::To(index, event)) => self.at(index, event),
                Next::Event(Delivery::Kill(index)) => self.kill(index),
                Next::Alarm(index) => self.at(index, Event::Timeout),
            }
        }
    }

    fn at(&mut self, index: usize, event: Event<Numbers>) {
        let now = self.queue.now();
        let replica = &mut self.replicas[index];
        if !replica.alive {
            return;
        }
        replica.applying -= usize::from(matches!(event, Event::Replied(Reply::Applied { .. })));
        replica.averaging.handle(now, event);
        while let Some(action) = self.replicas[index].averaging.poll_action() {
            match action {
                Action::Execute(job) => self.execute(index, job),
                Action::Send { to, message, payload } => self.carry(index, to, &message, payload),
                Action::Counted(_) => {}
            }
        }
        let alarm = self.replicas[index].averaging.poll_timeout().map(|(at, _)| at);
        self.queue.set_alarm(index, alarm);
    }

    fn execute(&mut self, index: usize, job: Job<Numbers>) {
        match job {
            Job::Snapshot { round, fragment, parts } => self.snapshot(index, round, fragment, parts),
            Job::Reduce { round, part, attempt, inputs, .. } => {
                let outcome = self.reduce(&inputs);
                self.reply(index, Reply::Reduced { round, part, attempt, outcome });
            }
            Job::Apply { round, part, mean, contributed } => {
                let own = copied(round, part, index);
                let named = self.means[&mean].iter().any(|input| input.value == own);
                assert_eq!(named, contributed, "seed {}: {part:?}", self.scenario.seed);
                let replica = &mut self.replicas[index];
                replica.applying += 1;
                assert!(replica.applying <= APPLYING_MAX, "seed {}", self.scenario.seed);
                let id = replica.averaging.group().unwrap().0;
                assert_eq!(id.round, round);
                let before = replica.applied.insert((id, part), mean);
                assert_eq!(before, None, "seed {}: {part:?} applied twice", self.scenario.seed);
                self.reply(index, Reply::Applied { round, part, applied: true });
            }
            Job::Finish { round, complete, .. } => {
                let now = self.queue.now();
                let replica = &mut self.replicas[index];
                replica.finished_at = now;
                assert!(replica.open.remove(&round), "seed {}: {round:?} ended twice", self.scenario.seed);
                replica.finished.insert(round, complete);
            }
        }
    }

    fn snapshot(&mut self, index: usize, round: Round, fragment: FragmentIndex, parts: u32) {
        assert_eq!(fragment, round.fragment(20));
        let open = &mut self.replicas[index].open;
        assert!(open.is_empty(), "seed {}: two rounds at once", self.scenario.seed);
        open.insert(round);
        let finite = !self.rng.chance(self.scenario.poisoned_per_mille, 1_000);
        let numbers = |part| Numbers { value: copied(round, PartIndex(part), index), finite };
        let parts: Vec<Numbers> = (0..parts).map(numbers).collect();
        self.copies.extend(parts.iter().map(|copy| (copy.value, index)));
        let reply = Event::Replied(Reply::Snapshot {
            round,
            uncarried: self.weight(index),
            weight: self.weight(index),
            parts,
        });
        let slow = self.scenario.slow.iter().find(|(slow, _)| *slow == index);
        let late = slow.map_or(Duration::ZERO, |(_, late)| *late);
        let at = self.queue.now() + late + self.time_below(self.scenario.service_max);
        self.send(at, index, reply);
    }

    fn reduce(&mut self, inputs: &[(u64, Numbers)]) -> Result<Numbers, (usize, Fault)> {
        assert!(!inputs.is_empty() && inputs.iter().all(|(weight, _)| *weight > 0));
        if let Some(input) = inputs.iter().position(|(_, numbers)| !numbers.finite) {
            return Err((input, Fault::NonFinite));
        }
        let mix = |sum: u64, (weight, numbers): &(u64, Numbers)| {
            Rng::new(sum ^ weight.wrapping_mul(numbers.value)).next_u64()
        };
        let mean = Numbers { value: inputs.iter().fold(0, mix), finite: true };
        self.means.insert(mean, inputs.iter().map(|(_, numbers)| *numbers).collect());
        Ok(mean)
    }

    fn kill(&mut self, index: usize) {
        self.replicas[index].alive = false;
        self.queue.set_alarm(index, None);
        if self.scenario.is_silent {
            return;
        }
        let survivors: Vec<_> = self.members().into_iter().filter(|one| *one != member(index)).collect();
        for other in (0..self.replicas.len()).filter(|&other| other != index) {
            let lost = self.queue.now() + self.time_below(Duration::from_secs(5));
            self.send(lost, other, Event::PeerLost(member(index)));
            let listed = lost + self.time_below(Duration::from_secs(10));
            self.send(listed, other, Event::Members(survivors.clone()));
        }
    }

    // --- The network ----------------------------------------------------------------------------------------

    fn carry(&mut self, from: usize, to: PeerId, message: &AveragingMessage, payload: Numbers) {
        let to = (0..self.replicas.len()).find(|&index| member(index).peer == to).unwrap();
        let fate = self.rng.below(1_000);
        let copies = if fate < self.scenario.lost_per_mille {
            0
        } else if fate < 2 * self.scenario.lost_per_mille {
            2
        } else {
            1
        };
        let payload = self.told(from, to, message, payload);
        for _ in 0..copies {
            let on_the_way = self.time_below(self.scenario.delay_max - self.scenario.delay_min);
            let at = self.transferred(from, to, message) + self.scenario.delay_min + on_the_way;
            let event = Event::Received { from: member(from), message: message.clone(), payload };
            self.send(at, to, event);
        }
    }

    /// The numbers that `from` tells `to`: a liar tells half of the members another mean.
    fn told(&mut self, from: usize, to: usize, message: &AveragingMessage, numbers: Numbers) -> Numbers {
        let proposes = matches!(message.content, Content::Accept { .. });
        if !proposes || self.scenario.liar != Some(from) || to.is_multiple_of(2) {
            return numbers;
        }
        let other = Numbers { value: numbers.value ^ 1, ..numbers };
        let inputs = self.means[&numbers].clone();
        self.means.insert(other, inputs);
        other
    }

    /// The time at which a link has sent and another has received a message: numbers go one after the other in each
    /// direction, and other messages pass them.
    fn transferred(&mut self, from: usize, to: usize, message: &AveragingMessage) -> Time {
        let now = self.queue.now();
        if !message.content.has_payload() {
            return now;
        }
        let takes = Duration::from_nanos(
            u64::try_from(
                u128::from(self.scenario.part_bytes) * 1_000_000_000 / u128::from(self.scenario.link),
            )
            .unwrap(),
        );
        let begins = self.replicas[from].sends_until.max(now);
        let received = self.replicas[to].receives_until.max(begins) + takes;
        self.replicas[from].sends_until = begins + takes;
        self.replicas[to].receives_until = received;
        received
    }

    fn reply(&mut self, index: usize, reply: Reply<Numbers>) {
        let at = self.queue.now() + self.time_below(self.scenario.service_max);
        self.send(at, index, Event::Replied(reply));
    }

    fn send(&mut self, at: Time, index: usize, event: Event<Numbers>) {
        self.queue.schedule(at, Delivery::To(index, event));
    }

    // --- Getters --------------------------------------------------------------------------------------------

    /// The weight of the contributions of a replica.
    pub(super) fn weight(&self, index: usize) -> u64 {
        let joined = index + self.scenario.joiners >= self.replicas.len();
        if joined { 0 } else { index as u64 + 1 }
    }

    /// Means that a replica has applied, and those of them with its contribution.
    pub(super) fn shares(&self, index: usize) -> (usize, usize) {
        let applied = self.replicas[index].applied.iter();
        let with = applied.clone().filter(|((group, part), mean)| {
            let own = copied(group.round, *part, index);
            self.means[mean].iter().any(|input| input.value == own)
        });
        (applied.count(), with.count())
    }

    /// The replicas whose contributions are in a mean.
    pub(super) fn contributors(&self, mean: Numbers) -> Vec<usize> {
        self.means[&mean].iter().filter_map(|input| self.copies.get(&input.value).copied()).collect()
    }

    pub(super) fn survivors(&self) -> impl Iterator<Item = &Replica> {
        self.replicas.iter().filter(|replica| replica.alive)
    }

    pub(super) fn is_quiet(&self) -> bool {
        self.survivors().all(|replica| replica.open.is_empty() && replica.averaging.round().is_none())
    }

    fn members(&self) -> Vec<Instance> {
        (0..self.replicas.len()).map(member).collect()
    }

    fn any(&mut self) -> usize {
        usize::try_from(self.rng.below(self.replicas.len() as u64)).unwrap()
    }

    fn time_below(&mut self, limit: Duration) -> Duration {
        Duration::from_nanos(self.rng.below(u64::try_from(limit.as_nanos()).unwrap()))
    }
}
