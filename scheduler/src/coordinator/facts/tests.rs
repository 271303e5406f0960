//! Scripts of drawn requests, in which the coordinator dies after each one.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::super::{Event, FeedPolicy, FeederReport, Join, JoinRefusal, Reply};
use super::*;
use crate::stage::Progress;
use crate::{
    Block, BlockTally, Duration, Evidence, Incarnation, MemberState, MicrobatchId, ProcessNumber, Rng, Role,
    WeightsPolicy,
};

const SCRIPTS: u64 = 40;
const STEPS: u64 = 400;
const TOTAL: u64 = 3_000;
const PEERS: u64 = 9;

/// A coordinator that is asked at random, and what its process has made durable.
struct Script {
    rng: Rng,
    now: Time,
    coordinator: Coordinator,
    kept: Facts,
    /// The start of each peer, and the ids that it has as a feeder.
    starts: BTreeMap<u64, u64>,
    tallies: BTreeMap<PeerId, BlockTally>,
    versions: u64,
}

fn config() -> Config {
    let table_interval = Duration::ZERO;
    Config { total: TOTAL, replicas_per_stage: 2, feed: FeedPolicy::First, table_interval, ..Config::new(2) }
}

fn key(index: u64) -> PeerId {
    PeerId([index as u8; 32])
}

impl Script {
    fn new(seed: u64) -> Self {
        Self {
            rng: Rng::new(seed),
            now: Time::default(),
            coordinator: Self::begin(seed),
            kept: Facts::default(),
            starts: BTreeMap::new(),
            tallies: BTreeMap::new(),
            versions: 0,
        }
    }

    /// Every other run begins at a checkpoint.
    fn begin(seed: u64) -> Coordinator {
        let config = Config { launch: 7, ..config() };
        if seed.is_multiple_of(2) {
            return Coordinator::new(config);
        }
        let tally = |block, settled| BlockTally::settled(Block(block), settled);
        let origin = Origin { launch: 6, microbatches: 90 };
        Coordinator::resumed(config, origin, &[tally(0, 60), tally(3, 30)])
    }

    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(self.rng.below(3_000));
        let event = self.draw();
        self.hear(event);
        // The silent sender of the last event has its turn.
        self.hear(Event::Timeout);
        self.check_restart();
    }

    fn hear(&mut self, event: Event) {
        let from = event.sender();
        self.coordinator.handle(self.now, event);
        let mut answered = false;
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                Action::Log(facts) => {
                    assert!(!answered, "facts come before what follows from them");
                    facts.into_iter().for_each(|fact| self.kept.keep(fact));
                }
                Action::Membership(table) => {
                    assert!(self.versions < table.version);
                    self.versions = table.version;
                    answered = true;
                }
                Action::Reply { reply, .. } => {
                    answered = true;
                    self.note_lease(from.expect("a reply has a caller").peer, &reply);
                }
                Action::LateReply { to, reply } => {
                    answered = true;
                    self.note_lease(to.peer, &reply);
                }
                _ => {}
            }
        }
    }

    fn note_lease(&mut self, feeder: PeerId, reply: &Reply) {
        if let Reply::Leased { lease, .. } = reply
            && lease.count > 0
        {
            let block = lease.first.block();
            let first = BlockTally::settled(block, lease.first.index());
            let tally = self.tallies.entry(feeder).or_insert(first);
            let leased = lease.first.index() + lease.count;
            *tally = if tally.block == block {
                BlockTally { leased: leased.max(tally.leased), ..*tally }
            } else {
                BlockTally { leased, ..first }
            };
        }
    }

    fn draw(&mut self) -> Event {
        let index = self.rng.below(PEERS);
        let incarnation = *self.starts.entry(index).or_insert(1);
        let from = Instance::new(key(index), Incarnation(incarnation));
        let feeds = index >= PEERS - 2;
        match self.rng.below(12) {
            0 | 1 => {
                let role = match (feeds, self.rng.chance(1, 8)) {
                    (true, true) => Role::Successor,
                    (true, false) => Role::Feeder,
                    (false, _) => Role::Replica,
                };
                let address = SocketAddr::from(([127, 0, 0, 1], 4_000 + index as u16));
                let holds = self.rng.chance(1, 6).then_some(StageIndex(0)).filter(|_| !feeds);
                let (process, takes_over) = (ProcessNumber(self.rng.below(2)), self.rng.chance(1, 2));
                Event::Join(Join { from, process, takes_over, role, address, holds })
            }
            2 => {
                self.starts.insert(index, incarnation + 1);
                Event::Timeout
            }
            3 if self.rng.chance(1, 3) => Event::Leave { from },
            4 if self.rng.chance(1, 8) => {
                let replica = Instance::new(key(self.rng.below(PEERS)), Incarnation(incarnation));
                Event::Strike { from, replica, evidence: Evidence { false_ones: 40, sound: 0 } }
            }
            5 | 6 if feeds => self.draw_lease(from),
            7 | 8 if feeds => self.draw_report(from),
            9 => {
                let stage = StageIndex(self.rng.below(2) as u16);
                Event::Ready { from, stage, initial: self.rng.chance(1, 2) }
            }
            _ => Event::Heartbeat { from, progress: Progress { done: 3, ..Progress::default() } },
        }
    }

    fn draw_lease(&mut self, from: Instance) -> Event {
        let known = self.tallies.get(&from.peer).copied();
        let next = known.map(|tally| MicrobatchId(tally.block.first().0 + tally.leased));
        let tallies = known.into_iter().collect();
        Event::LeaseRequest { from, next, count: 1 + self.rng.below(60), tallies }
    }

    fn draw_report(&mut self, from: Instance) -> Event {
        if let Some(tally) = self.tallies.get_mut(&from.peer) {
            tally.injected += self.rng.below(tally.leased - tally.injected + 1);
            tally.settled += self.rng.below(tally.injected - tally.settled + 1);
        }
        let tallies = self.tallies.get(&from.peer).copied().into_iter().collect();
        let diverged = self.rng.chance(1, 40).then_some(self.rng.below(TOTAL));
        Event::FeederReport { from, report: FeederReport { tallies, done: self.rng.chance(1, 9), diverged } }
    }

    /// A start that knows the kept facts decides as the coordinator would that lives on.
    fn check_restart(&mut self) {
        let config = Config { launch: 99, ..config() };
        let mut restored = Coordinator::restored(self.now, config, self.kept.clone());
        let [mut here, mut there] = [&self.coordinator, &restored].map(Coordinator::membership);
        assert!(there.version > self.versions, "its table is newer than any before");
        for table in [&mut here, &mut there] {
            table.version = 0;
            // A start awaits replicas that may have weights, and until then no keeper.
            table.awaited.clear();
            table.restorable.clear();
        }
        assert_eq!(here, there);
        assert_eq!(self.coordinator.is_finished(), restored.is_finished());
        assert_eq!(self.coordinator.run_progress(), restored.run_progress());
        let mut lives = self.coordinator.clone();
        for index in 0..PEERS {
            let from = Instance::new(key(index), Incarnation(self.starts.get(&index).copied().unwrap_or(1)));
            let role = if index >= PEERS - 2 { Role::Feeder } else { Role::Replica };
            let address = SocketAddr::from(([127, 0, 0, 1], 9_000));
            // How long a member was silent is no fact.
            let (process, takes_over) = (ProcessNumber(0), true);
            let join = Event::Join(Join { from, process, takes_over, role, address, holds: None });
            let next = self.tallies.get(&from.peer);
            let next = next.map(|tally| MicrobatchId(tally.block.first().0 + tally.leased));
            let lease = Event::LeaseRequest { from, next, count: 20, tallies: Vec::new() };
            for event in [join, lease] {
                let [here, there] = [&mut lives, &mut restored].map(|run| decide(run, self.now, &event));
                assert_eq!(here, there, "to {event:?}");
            }
        }
    }
}

/// What a coordinator replies to a request.
fn decide(run: &mut Coordinator, now: Time, event: &Event) -> Vec<Reply> {
    run.handle(now, event.clone());
    let mut replies = Vec::new();
    while let Some(action) = run.poll_action() {
        replies.extend(match action {
            Action::Reply { reply, .. } | Action::LateReply { reply, .. } => Some(reply),
            _ => None,
        });
    }
    replies
}

#[test]
fn a_coordinator_that_dies_after_any_event_goes_on_where_it_was() {
    for seed in 0..SCRIPTS {
        let mut script = Script::new(seed);
        for _ in 0..STEPS {
            script.step();
        }
        let states = script.coordinator.membership().members;
        assert!(seed > 0 || states.iter().any(|member| member.state != MemberState::Standby), "{states:?}");
    }
}

#[test]
fn members_return_what_an_old_log_does_not_know() {
    let mut script = Script::new(5);
    (0..60).for_each(|_| script.step());
    let old = script.kept.clone();
    while script.coordinator.membership().leases.is_empty() || script.versions < 60 {
        script.step();
    }
    let newest = Membership { version: script.versions, ..script.coordinator.membership() };
    let member = newest.members.first().expect("a member").instance;
    let mut run = Coordinator::restored_from_old(script.now, Config { launch: 99, ..config() }, old);
    let returned = Event::TableReturned { from: member, table: Box::new(newest.clone()) };
    for (after, event) in [(0, returned), (6, Event::Timeout)] {
        run.handle(script.now + Duration::from_secs(after), event);
        while run.poll_action().is_some() {}
    }
    let table = run.membership();
    assert_eq!((table.launch, &table.members), (newest.launch, &newest.members));
    assert!(table.version > newest.version);
    for (here, there) in table.leases.iter().zip(&newest.leases) {
        assert!(here.tally.leased >= there.tally.leased && here.tally.settled >= there.tally.settled);
    }
}

#[test]
fn a_keeper_of_split_weights_keeps_its_stage_after_a_restart() {
    let split = || Config { weights: WeightsPolicy::Split, ..config() };
    let join = |stage| {
        let (from, address) = (Instance::new(key(4), Incarnation(1)), ([127, 0, 0, 1], 4_000).into());
        let (process, role) = (ProcessNumber(0), Role::Keeper(Some(StageIndex(stage))));
        Event::Join(Join { from, process, takes_over: false, role, address, holds: None })
    };
    let mut script = Script { coordinator: Coordinator::new(split()), ..Script::new(0) };
    script.hear(join(0));
    let mut restored = Coordinator::restored(script.now, split(), script.kept);
    let refused = decide(&mut restored, script.now, &join(1));
    assert!(matches!(refused[..], [Reply::JoinRefused(JoinRefusal::KeepsAnother { .. })]), "{refused:?}");
}
