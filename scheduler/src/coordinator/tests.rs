//! Tests of a run, by requests and replies.

mod displacement;
mod keeping;
mod resuming;
mod same_key;

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::eviction::EVICTED_MAX;
use super::holders::HOLDERS_AWAITED;
use super::restart::RETURN_WITHIN;
use super::*;
use crate::{
    Block, BlockTally, Duration, Evidence, Incarnation, Lease, Member, MicrobatchId, ProcessNumber, Role,
};

const FEEDER: PeerId = PeerId([9; 32]);
const TOTAL: u64 = 10;

fn key(index: u8) -> PeerId {
    PeerId([index; 32])
}

/// A request to join, from the one process that each peer has in most tests.
fn join(peer: PeerId, incarnation: u64, role: Role) -> Join {
    let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
    let from = Instance::new(peer, Incarnation(incarnation));
    Join { from, process: ProcessNumber(0), takes_over: false, role, address, holds: None }
}

/// The first start of a peer.
fn start(peer: PeerId) -> Instance {
    Instance::new(peer, Incarnation(1))
}

struct Harness {
    coordinator: Coordinator,
    now: Time,
    published: Vec<Membership>,
    facts: Facts,
    late: Vec<(Instance, Reply)>,
    evicted: Vec<PeerId>,
    displaced: Vec<(PeerId, Displacement)>,
    /// Stages restored from a keeper: its microbatches, and those since.
    restored: Vec<(StageIndex, u64, u64)>,
    /// Trained stages that began with initial weights.
    reset: Vec<StageIndex>,
    /// Times that the last keeper fell silent.
    keeper_silent: u32,
    finished: u32,
    ended: u32,
}

impl Harness {
    fn new(stages: u16) -> Self {
        Self::with(Config::new(stages))
    }

    /// Each change makes a table at once.
    fn with(config: Config) -> Self {
        Self::as_it_is(Config { table_interval: Duration::ZERO, ..config })
    }

    fn as_it_is(config: Config) -> Self {
        Self {
            coordinator: Coordinator::new(config),
            now: Time(0),
            published: Vec::new(),
            facts: Facts::default(),
            late: Vec::new(),
            evicted: Vec::new(),
            displaced: Vec::new(),
            restored: Vec::new(),
            reset: Vec::new(),
            keeper_silent: 0,
            finished: 0,
            ended: 0,
        }
    }

    fn hear(&mut self, event: Event) -> Option<Reply> {
        let sender = event.sender().map(|from| from.peer);
        self.coordinator.handle(self.now, event);
        let mut replies = Vec::new();
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                Action::Reply { to, reply } => {
                    assert_eq!(Some(to), sender);
                    if matches!(reply, Reply::Joined(_)) {
                        let table = self.published.last().expect("a table comes before the reply");
                        assert!(table.members.iter().any(|member| member.instance.peer == to));
                    }
                    replies.push(reply);
                }
                Action::Log(facts) => {
                    assert!(replies.is_empty(), "facts come before what follows from them");
                    facts.into_iter().for_each(|fact| self.facts.keep(fact));
                }
                Action::LateReply { to, reply } => self.late.push((to, reply)),
                Action::Membership(membership) => self.published.push(membership),
                Action::Evicted { replica, .. } => self.evicted.push(replica),
                Action::Displaced { replica, reason, .. } => self.displaced.push((replica, reason)),
                Action::Restored { stage, kept, lost } => self.restored.push((stage, kept, lost)),
                Action::Reset { stage } => self.reset.push(stage),
                Action::KeeperSilent => self.keeper_silent += 1,
                Action::Finished => self.finished += 1,
                Action::End => self.ended += 1,
            }
        }
        assert!(replies.len() <= 1);
        replies.pop()
    }

    fn join(&mut self, peer: PeerId, incarnation: u64, role: Role) -> Reply {
        self.join_with(peer, incarnation, role, None)
    }

    /// A replica comes back with the weights of a stage.
    fn return_with(&mut self, peer: PeerId, incarnation: u64, stage: u16) -> Reply {
        self.join_with(peer, incarnation, Role::Replica, Some(StageIndex(stage)))
    }

    fn join_with(&mut self, peer: PeerId, incarnation: u64, role: Role, holds: Option<StageIndex>) -> Reply {
        self.hear(Event::Join(Join { holds, ..join(peer, incarnation, role) })).unwrap()
    }

    /// The coordinator is started again, and has forgotten the run.
    fn restart(&mut self) {
        let config = self.coordinator.config().clone();
        let config = Config { launch: config.launch + 1, ..config };
        self.coordinator = Coordinator::restarted(config);
    }

    fn return_table(&mut self, peer: PeerId, table: &Membership) -> Reply {
        self.hear(Event::TableReturned { from: start(peer), table: Box::new(table.clone()) }).unwrap()
    }

    /// A feeder has caught this replica lying.
    fn strike(&mut self, feeder: PeerId, replica: PeerId, false_ones: u32) {
        let (from, replica) = (start(feeder), start(replica));
        self.hear(Event::Strike { from, replica, evidence: Evidence { false_ones, sound: 20 } });
    }

    /// The replica has the state of the stage that it is placed on.
    fn ready(&mut self, peer: PeerId) -> Reply {
        let stage = self.state(peer).and_then(MemberState::stage);
        self.ready_for(peer, stage.unwrap_or(StageIndex(0)))
    }

    fn ready_for(&mut self, peer: PeerId, stage: StageIndex) -> Reply {
        self.hear(Event::Ready { from: start(peer), stage, initial: false }).unwrap()
    }

    fn beat(&mut self, peer: PeerId) -> Reply {
        let progress = Progress { done: 3, ..Progress::default() };
        self.hear(Event::Heartbeat { from: start(peer), progress }).unwrap()
    }

    /// These members send a heartbeat a second; the others are silent.
    fn pass(&mut self, seconds: u64, members: &[PeerId]) {
        for _ in 0..seconds {
            self.now = self.now + Duration::from_secs(1);
            for &peer in members {
                self.beat(peer);
            }
        }
    }

    fn lease(&mut self, peer: PeerId, count: u64) -> Reply {
        self.lease_from(peer, None, count)
    }

    /// The feeder has the ids below `next`.
    fn lease_from(&mut self, peer: PeerId, next: Option<MicrobatchId>, count: u64) -> Reply {
        self.hear(Event::LeaseRequest { from: start(peer), next, count, tallies: Vec::new() }).unwrap()
    }

    /// The ranges of ids as the newest table names them, and their feeders.
    fn leases(&self) -> Vec<(Lease, PeerId)> {
        let table = self.published.last().unwrap();
        table.leases.iter().map(|leased| (leased.lease, leased.feeder)).collect()
    }

    /// The feeder has injected and settled all but `open` of the first `injected` ids of a block.
    fn report(&mut self, peer: PeerId, block: u32, (injected, open): (u64, u64), done: bool) -> Reply {
        let tally = BlockTally { block: Block(block), leased: injected, injected, settled: injected - open };
        let report = FeederReport { tallies: vec![tally], done, diverged: None };
        self.hear(Event::FeederReport { from: start(peer), report }).unwrap()
    }

    /// The feeder says that training has diverged after three microbatches.
    fn diverge(&mut self, peer: PeerId) {
        let report = FeederReport { diverged: Some(3), ..FeederReport::default() };
        self.hear(Event::FeederReport { from: start(peer), report });
    }

    /// The feeder gets a run of ten microbatches, and settles them.
    fn feed(&mut self) -> Reply {
        self.lease(FEEDER, 10);
        self.report(FEEDER, 0, (10, 0), true)
    }

    /// A run of ten microbatches, with two stages that are served and a feeder.
    fn running() -> Self {
        let mut harness = Self::with(Config { total: TOTAL, ..Config::new(2) });
        for index in [0, 1] {
            assert_eq!(harness.join(key(index), 1, Role::Replica), loading(index));
            assert_eq!(
                harness.ready(key(index)),
                Reply::Noted(MemberState::Serving(StageIndex(index.into())))
            );
        }
        harness.join(FEEDER, 1, Role::Feeder);
        assert_eq!(harness.coordinator.state(), RunState::Running);
        harness
    }

    fn state(&self, peer: PeerId) -> Option<MemberState> {
        let membership = self.coordinator.membership();
        membership.members.iter().find(|member| member.instance.peer == peer).map(|member| member.state)
    }
}

/// The reply with `count` ids of a block, from `index` on, when no other feeder has come anywhere.
fn leased(block: u32, index: u64, count: u64) -> Reply {
    let first = MicrobatchId(Block(block).first().0 + index);
    Reply::Leased { lease: Lease { first, count, epoch: 0 }, others: RunTally::default() }
}

impl Reply {
    fn with_others(self, injected: u64, settled: u64) -> Self {
        let Self::Leased { lease, .. } = self else { return self };
        Self::Leased { lease, others: RunTally { injected, settled } }
    }
}

/// The refusal of a start that is no later than this one.
fn former(key: PeerId, known: u64) -> Reply {
    Reply::JoinRefused(JoinRefusal::Former { key, known: Incarnation(known) })
}

fn loading(stage: u8) -> Reply {
    Reply::Joined(MemberState::Loading(StageIndex(stage.into())))
}

#[test]
fn a_run_waits_runs_and_finishes() {
    let mut harness = Harness::running();
    let versions: Vec<_> = harness.published.iter().map(|membership| membership.version).collect();
    assert_eq!(versions, [1, 2, 3, 4, 5]);
    assert_eq!(harness.published.last(), Some(&harness.coordinator.membership()));
    assert_eq!(harness.join(key(2), 1, Role::Replica), Reply::Joined(MemberState::Standby));
    assert_eq!(harness.feed(), Reply::Reported { others: RunTally::default() });
    harness.feed();
    assert_eq!((harness.finished, harness.coordinator.state()), (1, RunState::Finished));
    assert_eq!(harness.join(key(3), 1, Role::Replica), Reply::JoinRefused(JoinRefusal::Finished));
    assert_eq!(harness.lease(FEEDER, 1), Reply::LeaseRefused(LeaseRefusal::Finished));
}

#[test]
fn a_run_that_has_diverged_is_over_on_the_word_of_a_feeder_that_holds_ids() {
    let mut harness = Harness::with(Config { feed: FeedPolicy::First, ..Config::new(1) });
    harness.join(FEEDER, 1, Role::Feeder);
    harness.diverge(FEEDER);
    assert_eq!(harness.finished, 0, "a stranger may join as a feeder before any ids are given out");
    harness.lease(FEEDER, 10);
    harness.diverge(FEEDER);
    assert_eq!((harness.finished, harness.coordinator.diverged()), (1, Some(3)));
    let refused = Reply::JoinRefused(JoinRefusal::Diverged { at: 3 });
    assert_eq!(harness.join(key(1), 1, Role::Replica), refused);
}

#[test]
fn a_run_that_any_member_may_feed_has_diverged_when_every_feeder_says_so() {
    let mut harness = Harness::running();
    let other = key(5);
    harness.join(other, 1, Role::Feeder);
    harness.lease(FEEDER, 2);
    harness.lease(other, 2);
    harness.diverge(other);
    assert_eq!((harness.finished, harness.coordinator.diverged()), (0, None));
    harness.diverge(FEEDER);
    assert_eq!((harness.finished, harness.coordinator.diverged()), (1, Some(3)));
}

#[test]
fn a_feeder_that_is_gone_with_nothing_open_keeps_no_run_from_finishing() {
    let mut harness = Harness::running();
    let other = key(5);
    harness.join(other, 1, Role::Feeder);
    harness.lease(FEEDER, 4);
    assert_eq!(harness.lease(other, 100), leased(1, 0, 3), "half of what is left");
    harness.report(other, 1, (3, 0), false);
    harness.hear(Event::Leave { from: start(other) });
    assert_eq!(harness.coordinator.run_progress(), RunTally { injected: 3, settled: 3 });
    let others = RunTally { injected: 3, settled: 3 };
    let next = Some(MicrobatchId(4));
    let lease = Lease { first: MicrobatchId(4), count: 3, epoch: 0 };
    assert_eq!(harness.lease_from(FEEDER, next, 100), Reply::Leased { lease, others });
    harness.report(FEEDER, 0, (7, 0), true);
    assert_eq!((harness.finished, harness.coordinator.state()), (1, RunState::Finished));
}

#[test]
fn a_feeder_that_is_done_ends_no_run_while_another_with_work_is_away() {
    let mut harness = Harness::running();
    let other = key(5);
    harness.join(other, 1, Role::Feeder);
    harness.lease(other, 3);
    harness.report(other, 1, (3, 2), false);
    harness.pass(16, &[key(0), key(1), FEEDER]);
    assert_eq!(harness.state(other), None);
    harness.report(FEEDER, 0, (0, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Running, "microbatches are open");
    assert!(matches!(harness.lease(FEEDER, 100), Reply::Leased { .. }));
    harness.report(FEEDER, 1, (7, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Running);
}

#[test]
fn a_feeder_that_asks_when_nothing_is_left_takes_over_from_the_gone() {
    let mut harness = Harness::running();
    let other = key(5);
    harness.join(other, 1, Role::Feeder);
    harness.lease(other, 3);
    harness.report(other, 0, (2, 1), false);
    harness.pass(16, &[key(0), key(1), FEEDER]);
    assert_eq!(harness.lease(FEEDER, 7), leased(1, 0, 7).with_others(2, 1));
    let next = MicrobatchId(Block(1).first().0 + 7);
    harness.lease_from(FEEDER, Some(next), 100);
    let lease = Lease { first: MicrobatchId(0), count: 3, epoch: 1 };
    assert_eq!(harness.leases()[0], (lease, FEEDER));
    harness.report(FEEDER, 0, (2, 0), false);
    let lease = Lease { first: next, count: 1, epoch: 0 };
    let one = Reply::Leased { lease, others: RunTally::default() };
    assert_eq!(harness.lease_from(FEEDER, Some(next), 100), one, "one id was never injected");
    harness.report(FEEDER, 1, (8, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Finished);
}

#[test]
fn a_feeder_that_gets_no_ids_while_the_run_has_some_takes_nothing_over() {
    let mut harness = Harness::running();
    let other = key(5);
    harness.join(other, 1, Role::Feeder);
    harness.lease(other, 3);
    harness.pass(16, &[key(0), key(1), FEEDER]);
    harness.lease(FEEDER, 5);
    let foreign = MicrobatchId(Block(7).first().0 + 4);
    assert_eq!(harness.lease_from(FEEDER, Some(foreign), 1), leased(1, 5, 0));
    assert_eq!(harness.leases()[0].1, other);
}

#[test]
fn a_newer_start_replaces_an_older_one_on_its_stage() {
    let mut harness = Harness::running();
    assert_eq!(harness.join(key(1), 1, Role::Replica), Reply::Joined(MemberState::Serving(StageIndex(1))));
    assert_eq!(harness.join(key(1), 3, Role::Replica), loading(1));
    assert_eq!(harness.join(key(1), 2, Role::Replica), former(key(1), 3));
    assert_eq!(harness.ready(key(1)), Reply::NotAMember);
    assert_eq!(harness.coordinator.state(), RunState::Waiting { unserved: vec![StageIndex(1)] });
}

#[test]
fn a_replica_with_the_state_of_another_stage_does_not_serve() {
    let mut harness = Harness::new(2);
    assert_eq!(harness.join(key(1), 1, Role::Replica), loading(0));
    assert_eq!(harness.ready_for(key(1), StageIndex(1)), Reply::Noted(MemberState::Loading(StageIndex(0))));
    assert_eq!(harness.ready_for(key(1), StageIndex(0)), Reply::Noted(MemberState::Serving(StageIndex(0))));
}

#[test]
fn the_policy_decides_which_peers_join() {
    let policy = Policy::Keys(BTreeSet::from([key(1)]));
    let mut harness = Harness::with(Config { policy, members_max: 1, ..Config::new(1) });
    let refusal = JoinRefusal::NotListed { key: key(2) };
    assert_eq!(harness.join(key(2), 1, Role::Replica), Reply::JoinRefused(refusal));
    assert!(refusal.to_string().contains(&key(2).to_string()), "the caller learns which key to have listed");
    assert_eq!(harness.join(key(1), 1, Role::Replica), loading(0));
    let mut harness = Harness::with(Config { members_max: 0, ..Config::new(1) });
    assert_eq!(harness.join(key(1), 1, Role::Replica), Reply::JoinRefused(JoinRefusal::Full { limit: 0 }));
}

#[test]
fn the_policy_decides_which_peers_feed_and_succeed() {
    let (listed, other) = (key(1), key(2));
    let mut harness =
        Harness::with(Config { feed: FeedPolicy::Keys(BTreeSet::from([listed])), ..Config::new(1) });
    assert_eq!(harness.join(other, 1, Role::Replica), loading(0));
    for role in [Role::Feeder, Role::Successor] {
        let refusal = JoinRefusal::MayNotFeed { key: key(3) };
        assert_eq!(harness.join(key(3), 1, role), Reply::JoinRefused(refusal));
        assert!(refusal.to_string().contains(&key(3).to_string()), "{refusal}");
    }
    assert_eq!(harness.join(listed, 1, Role::Feeder), Reply::Joined(MemberState::Feeding));
}

#[test]
fn an_open_run_belongs_to_its_first_feeder_even_while_that_is_away() {
    let mut harness = Harness::with(Config { feed: FeedPolicy::First, ..Config::new(1) });
    harness.join(key(1), 1, Role::Feeder);
    harness.hear(Event::Leave { from: start(key(1)) });
    harness.join(FEEDER, 1, Role::Feeder);
    harness.join(key(2), 1, Role::Feeder);
    harness.hear(Event::LeaseRequest { from: start(FEEDER), next: None, count: 1, tallies: Vec::new() });
    assert_eq!(
        harness.lease(key(2), 1),
        Reply::LeaseRefused(LeaseRefusal::FedByAnother { first: FEEDER }),
        "it joined before the run had its feeder"
    );
    harness.hear(Event::Leave { from: start(FEEDER) });
    let refusal = JoinRefusal::FedByAnother { key: key(1), first: FEEDER };
    for role in [Role::Feeder, Role::Successor] {
        assert_eq!(harness.join(key(1), 1, role), Reply::JoinRefused(refusal));
    }
    assert!(refusal.to_string().contains("--identity"), "{refusal}");
    assert_eq!(harness.join(FEEDER, 2, Role::Feeder), Reply::Joined(MemberState::Feeding));
}

#[test]
fn silence_removes_a_member_and_heartbeats_keep_it() {
    let mut harness = Harness::running();
    harness.pass(14, &[key(0), FEEDER]);
    let version = harness.coordinator.membership().version;
    assert_eq!(
        harness.coordinator.poll_timeout().unwrap(),
        (Time(0) + Duration::from_secs(15), Reason::MemberExpires)
    );
    harness.now = Time(0) + Duration::from_secs(15);
    assert_eq!(harness.hear(Event::Timeout), None);
    assert_eq!(harness.coordinator.membership().version, version + 1);
    assert_eq!(harness.coordinator.state(), RunState::Waiting { unserved: vec![StageIndex(1)] });
    assert_eq!(harness.beat(key(1)), Reply::Unknown);
    assert_eq!(harness.join(key(1), 1, Role::Replica), former(key(1), 1), "its neighbours have given it up");
    assert_eq!(harness.join(key(1), 2, Role::Replica), loading(1));
}

#[test]
fn a_late_heartbeat_is_a_sign_of_life() {
    let mut harness = Harness::running();
    harness.pass(14, &[FEEDER]);
    harness.now = Time(0) + Duration::from_secs(15);
    assert_eq!(harness.beat(key(0)), Reply::Noted(MemberState::Serving(StageIndex(0))));
    assert_eq!(harness.state(key(1)), None);
}

#[test]
fn an_outage_of_the_coordinator_removes_no_member() {
    let mut harness = Harness::running();
    harness.pass(3, &[key(0), key(1), FEEDER]);
    let version = harness.coordinator.membership().version;
    harness.now = Time(0) + Duration::from_secs(60);
    assert_eq!(harness.hear(Event::Timeout), None);
    assert_eq!(harness.coordinator.poll_timeout(), None, "no lease ends while no member is heard");
    harness.pass(10, &[FEEDER]);
    assert_eq!(harness.coordinator.membership().version, version);
    assert_eq!(harness.beat(key(0)), Reply::Noted(MemberState::Serving(StageIndex(0))));
    harness.pass(6, &[key(0), FEEDER]);
    assert_eq!(harness.state(key(1)), None, "its lease goes on where it stood");
}

#[test]
fn a_coordinator_that_stood_still_waits_for_a_member_and_not_for_a_lease() {
    let mut run = Harness::new(1);
    run.join(key(1), 1, Role::Replica);
    run.join(key(2), 1, Role::Replica);
    run.pass(14, &[key(1)]);
    let (expires, _) = run.coordinator.poll_timeout().expect("a member is silent");
    run.now = expires + Duration::from_secs(60);
    run.hear(Event::Timeout);
    let next = run.coordinator.poll_timeout().map(|(at, _)| at);
    assert!(next.is_none_or(|at| at > run.now), "{next:?} is over");
    run.beat(key(1));
    assert!(run.state(key(2)).is_some(), "its heartbeats wait to be read");
}

#[test]
fn a_standby_takes_a_place_that_becomes_free_before_the_run_and_in_it() {
    let mut harness = Harness::new(2);
    for index in [0, 1, 2] {
        harness.join(key(index), 1, Role::Replica);
    }
    harness.ready(key(0));
    harness.hear(Event::Leave { from: start(key(1)) });
    assert_eq!(harness.beat(key(2)), Reply::Noted(MemberState::Loading(StageIndex(1))));

    let mut harness = Harness::running();
    harness.join(key(2), 1, Role::Replica);
    let left = harness.hear(Event::Leave { from: start(key(1)) });
    assert_eq!(left, Some(Reply::Left));
    assert_eq!(harness.state(key(2)), Some(MemberState::Loading(StageIndex(1))));
}

#[test]
fn feeders_get_ids_of_their_own_and_no_more_than_the_run_has() {
    let mut harness = Harness::running();
    harness.join(key(8), 1, Role::Feeder);
    assert_eq!(harness.lease(FEEDER, 4), leased(0, 0, 4));
    assert_eq!(harness.lease(key(8), 5), leased(1, 0, 3));
    assert_eq!(harness.lease_from(FEEDER, Some(MicrobatchId(4)), 9), leased(0, 4, 2));
    assert_eq!(harness.lease(key(0), 1), Reply::LeaseRefused(LeaseRefusal::NotAFeeder));
    assert_eq!(harness.lease(key(7), 1), Reply::Unknown);
    let feeders: Vec<_> = harness.published.last().unwrap().leases.iter().map(|one| one.feeder).collect();
    assert_eq!(feeders, [FEEDER, key(8)]);
    let version = harness.coordinator.membership().version;
    harness.lease_from(key(8), Some(MicrobatchId(Block(1).first().0 + 3)), 1);
    assert_eq!(harness.coordinator.membership().version, version, "a table names blocks");
    harness.report(FEEDER, 0, (6, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Running);
    harness.report(key(8), 1, (4, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Finished);
}

#[test]
fn a_reader_takes_no_place_gets_no_ids_and_holds_up_no_end() {
    let mut run = Harness::running();
    assert_eq!(run.join(key(5), 1, Role::Reader), Reply::Joined(MemberState::Reading));
    assert_eq!(run.lease(key(5), 4), Reply::LeaseRefused(LeaseRefusal::NotAFeeder));
    run.feed();
    assert_eq!((run.finished, run.coordinator.state()), (1, RunState::Finished));
}

#[test]
fn only_a_feeder_can_end_a_run() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 10);
    assert_eq!(harness.report(key(0), 0, (10, 0), true), Reply::NotAMember);
    assert_eq!(harness.report(key(5), 0, (10, 0), true), Reply::Unknown);
    assert_eq!((harness.finished, harness.coordinator.state()), (0, RunState::Running));
}

#[test]
fn a_successor_gets_the_ranges_of_a_dead_feeder_and_the_table_names_it() {
    let mut harness = Harness::running();
    let successor = key(8);
    assert!(matches!(harness.lease(FEEDER, 40), Reply::Leased { .. }));
    let lives = JoinRefusal::FeederLives { feeder: FEEDER, lease: harness.coordinator.config().lease };
    assert_eq!(harness.join(successor, 1, Role::Successor), Reply::JoinRefused(lives));
    harness.report(FEEDER, 0, (10, 4), false);
    harness.hear(Event::Leave { from: start(FEEDER) });
    assert_eq!(harness.join(successor, 1, Role::Successor), Reply::Joined(MemberState::Feeding));
    let lease = Lease { first: MicrobatchId(0), count: 10, epoch: 1 };
    assert_eq!(harness.leases(), [(lease, successor)]);
    assert_eq!(
        harness.join(successor, 1, Role::Successor),
        Reply::Joined(MemberState::Feeding),
        "the same start again"
    );
    assert_eq!(harness.leases(), [(lease, successor)]);
    harness.report(successor, 0, (10, 0), true);
    assert_eq!(harness.coordinator.state(), RunState::Finished);
}

#[test]
fn a_successor_that_was_started_again_with_its_journal_takes_nothing_over_twice() {
    for knows in [true, false] {
        let mut harness = Harness::running();
        let successor = key(8);
        harness.lease(FEEDER, 6);
        harness.report(FEEDER, 0, (6, 4), false);
        harness.hear(Event::Leave { from: start(FEEDER) });
        harness.join(successor, 1, Role::Successor);
        harness.report(successor, 0, (6, 3), false);
        harness.join(successor, 2, Role::Feeder);
        let from = Instance::new(successor, Incarnation(2));
        let tally = BlockTally { block: Block(0), leased: 6, injected: 6, settled: 3 };
        let tallies = if knows { vec![tally] } else { Vec::new() };
        harness.hear(Event::LeaseRequest { from, next: None, count: 9, tallies });
        assert_eq!(harness.leases()[0].0.epoch, if knows { 1 } else { 2 });
    }
}

#[test]
fn a_successor_that_finds_nothing_to_take_over_feeds_the_rest_of_the_run() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 6);
    harness.report(FEEDER, 0, (4, 0), false);
    harness.hear(Event::Leave { from: start(FEEDER) });
    assert_eq!(harness.join(key(8), 1, Role::Successor), Reply::Joined(MemberState::Feeding));
    assert_eq!(harness.lease(key(8), 100), leased(1, 0, 6).with_others(4, 4));
}

#[test]
fn the_table_names_the_trained_stages() {
    let mut harness = Harness::running();
    assert_eq!(harness.coordinator.membership().trained, []);
    harness.beat(key(1));
    assert_eq!(harness.published.last().unwrap().trained, [StageIndex(1)]);
    let version = harness.coordinator.membership().version;
    harness.beat(key(1));
    harness.beat(FEEDER);
    assert_eq!(harness.coordinator.membership().version, version, "noted once, and for stages only");
    harness.hear(Event::Leave { from: start(key(1)) });
    assert_eq!(harness.published.last().unwrap().trained, [StageIndex(1)], "a stage stays trained");
}

#[test]
fn a_finished_run_ends_when_its_members_have_left_or_had_their_time() {
    let mut harness = Harness::running();
    harness.feed();
    for peer in [key(0), key(1)] {
        harness.hear(Event::Leave { from: start(peer) });
    }
    assert_eq!(harness.ended, 0);
    harness.hear(Event::Leave { from: start(FEEDER) });
    assert_eq!(harness.ended, 1);

    let mut harness = Harness::running();
    harness.feed();
    let farewell = harness.coordinator.config().farewell;
    while harness.ended == 0 {
        assert!(harness.now < Time(0) + farewell, "members that stay are not waited for without end");
        harness.now = harness.coordinator.poll_timeout().unwrap().0.min(harness.now + Duration::from_secs(1));
        for peer in [key(0), key(1), FEEDER] {
            harness.beat(peer);
        }
        harness.hear(Event::Timeout);
    }
    assert_eq!(harness.now, Time(0) + farewell);
}

#[test]
fn changes_within_a_second_make_one_table_and_joiners_are_answered_with_it() {
    let mut config = Config::new(1);
    config.replicas_per_stage = 100;
    let mut run = Harness::as_it_is(config);
    assert!(matches!(run.join(key(1), 1, Role::Replica), Reply::Joined(_)), "the first change comes at once");
    for index in 2..90 {
        run.now = run.now + Duration::from_millis(10);
        assert_eq!(run.hear(Event::Join(join(key(index), 1, Role::Replica))), None);
    }
    assert_eq!((run.published.len(), run.late.len()), (1, 0));
    let (at, reason) = run.coordinator.poll_timeout().unwrap();
    assert_eq!((at, reason), (Time(0) + Duration::from_secs(1), Reason::TableDue));
    run.now = at;
    run.hear(Event::Timeout);
    assert_eq!((run.published.len(), run.published[1].members.len(), run.late.len()), (2, 89, 88));
    assert!(run.late.iter().all(|(_, reply)| matches!(reply, Reply::Joined(MemberState::Loading(_)))));
    run.now = at + Duration::from_secs(3);
    run.hear(Event::Leave { from: start(key(5)) });
    assert_eq!(run.published.len(), 3, "a departure after a quiet second is known at once");
}

#[test]
fn a_trained_stage_waits_for_the_replicas_that_fell_silent_with_its_weights() {
    let mut harness = Harness::running();
    harness.pass(1, &[key(0), key(1), FEEDER]);
    harness.pass(15, &[key(0), FEEDER]);
    assert_eq!(harness.state(key(1)), None);
    assert_eq!(harness.published.last().unwrap().awaited, [StageIndex(1)]);
    harness.join(key(2), 1, Role::Replica);
    harness.pass(25, &[key(0), key(2), FEEDER]);
    assert_eq!(harness.return_with(key(1), 2, 1), loading(1), "it is placed where its weights are missed");
    harness.pass(14, &[key(0), key(2), FEEDER]);
    assert_eq!(
        harness.published.last().unwrap().awaited,
        [StageIndex(1)],
        "it needs time to build its shard"
    );
    harness.hear(Event::Ready {
        from: Instance::new(key(1), Incarnation(2)),
        stage: StageIndex(1),
        initial: false,
    });
    assert_eq!(harness.published.last().unwrap().awaited, []);
}

#[test]
fn the_wait_for_weights_has_an_end() {
    let mut harness = Harness::running();
    harness.pass(1, &[key(0), key(1), FEEDER]);
    harness.pass(15, &[key(0), FEEDER]);
    let ends = harness.now + HOLDERS_AWAITED;
    harness.pass(29, &[key(0), FEEDER]);
    assert_eq!(harness.coordinator.membership().awaited, [StageIndex(1)]);
    harness.now = ends;
    harness.beat(FEEDER);
    assert_eq!(harness.published.last().unwrap().awaited, []);
}

#[test]
fn a_liar_that_comes_back_again_and_again_holds_up_a_stage_for_a_minute_at_most() {
    let mut harness = Harness::running();
    harness.pass(1, &[key(0), key(1), FEEDER]);
    harness.pass(15, &[key(0), FEEDER]);
    let (joiner, liar) = (key(2), key(5));
    harness.join(joiner, 1, Role::Replica);
    let begin = |harness: &mut Harness| {
        harness.hear(Event::Ready { from: start(joiner), stage: StageIndex(1), initial: true }).unwrap()
    };
    for turn in 0..3 {
        assert_eq!(begin(&mut harness), Reply::Noted(MemberState::Loading(StageIndex(1))));
        harness.join(liar, 2 * turn, Role::Replica);
        harness.return_with(liar, 2 * turn + 1, 1);
        harness.pass(20, &[key(0), joiner, FEEDER]);
    }
    harness.join(liar, 6, Role::Replica);
    harness.return_with(liar, 7, 1);
    assert_eq!(harness.published.last().unwrap().awaited, []);
    assert_eq!(begin(&mut harness), Reply::Noted(MemberState::Serving(StageIndex(1))));

    harness.pass(15, &[key(0), FEEDER]);
    assert_eq!(
        harness.published.last().unwrap().awaited,
        [StageIndex(1)],
        "the next replica is awaited again"
    );
}

#[test]
fn a_peer_that_comes_with_weights_while_its_stage_is_served_shortens_no_later_wait() {
    let mut harness = Harness::running();
    harness.pass(1, &[key(0), key(1), FEEDER]);
    harness.return_with(key(5), 1, 1);
    harness.pass(100, &[key(0), key(1), FEEDER]);
    harness.pass(15, &[key(0), FEEDER]);
    assert_eq!(harness.published.last().unwrap().awaited, [StageIndex(1)]);
}

#[test]
fn a_replica_that_lost_its_weights_is_not_awaited() {
    for untrained in [false, true] {
        let mut harness = Harness::running();
        if !untrained {
            harness.pass(1, &[key(0), key(1), FEEDER]);
        }
        harness.pass(15, &[FEEDER]);
        assert_eq!(harness.coordinator.membership().awaited.is_empty(), untrained);
        harness.join(key(0), 2, Role::Replica);
        harness.join(key(1), 2, Role::Replica);
        assert_eq!(harness.published.last().unwrap().awaited, []);
    }
}

#[test]
fn a_feeder_that_was_expelled_goes_on_with_its_ids() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 4);
    harness.pass(15, &[key(0), key(1)]);
    assert_eq!(harness.state(FEEDER), None);
    assert_eq!(harness.beat(FEEDER), Reply::Unknown);
    assert_eq!(harness.join(FEEDER, 1, Role::Feeder), Reply::Joined(MemberState::Feeding));
    assert_eq!(harness.published.last().unwrap().leases[0].feeder, FEEDER);
    assert_eq!(harness.lease_from(FEEDER, Some(MicrobatchId(4)), 1), leased(0, 4, 1));
}

#[test]
fn a_coordinator_that_was_started_again_goes_on_where_its_newest_table_stood() {
    let mut harness = Harness::running();
    harness.pass(1, &[key(0), key(1), FEEDER]);
    let (older, newest) = (harness.published[3].clone(), harness.coordinator.membership());
    harness.restart();
    assert_eq!(harness.beat(key(0)), Reply::Unknown);
    assert_eq!(harness.return_table(key(0), &older), Reply::Noted(MemberState::Serving(StageIndex(0))));
    assert_eq!(harness.beat(FEEDER), Reply::Unknown, "the older table does not name it");
    assert_eq!(harness.return_table(FEEDER, &newest), Reply::Noted(MemberState::Feeding));
    let table = harness.coordinator.membership();
    assert_eq!((&table.members, &table.trained), (&newest.members, &newest.trained));
    assert_eq!(table.launch, newest.launch);
    assert!(table.version > newest.version, "members ignore tables that are not newer");
    let version = table.version;
    assert_eq!(harness.return_table(key(1), &older), Reply::Noted(MemberState::Serving(StageIndex(1))));
    assert_eq!(harness.coordinator.membership().version, version);
    harness.pass(14, &[FEEDER]);
    assert!(harness.state(key(0)).is_some(), "every member has a lease to be heard again");
    harness.pass(1, &[FEEDER]);
    assert_eq!(harness.coordinator.membership().awaited, [StageIndex(0), StageIndex(1)]);
}

#[test]
fn a_coordinator_that_was_started_again_begins_nothing_before_its_members_had_time_to_return() {
    let mut harness = Harness::running();
    let table = harness.coordinator.membership();
    harness.restart();
    assert_eq!(harness.join(key(7), 1, Role::Replica), Reply::Joined(MemberState::Standby));
    harness.join(key(8), 1, Role::Feeder);
    assert_eq!(harness.lease(key(8), 1), Reply::Unknown);
    assert_eq!(harness.return_table(FEEDER, &table), Reply::Noted(MemberState::Feeding));
    assert_eq!(harness.coordinator.membership().members, table.members);
    assert_eq!(harness.beat(key(7)), Reply::Unknown, "it joined another run, as it were");
}

#[test]
fn a_table_of_the_new_start_tells_a_coordinator_nothing_of_the_run_before() {
    let mut harness = Harness::running();
    let table = harness.coordinator.membership();
    harness.restart();
    harness.join(key(7), 1, Role::Replica);
    let own = harness.published.last().unwrap().clone();
    assert_eq!(own.version, 1);
    harness.return_table(key(8), &own);
    assert_eq!(harness.state(key(7)), Some(MemberState::Standby), "the wait for members goes on");
    assert_eq!(harness.return_table(FEEDER, &table), Reply::Noted(MemberState::Feeding));
}

#[test]
fn a_table_that_comes_back_after_ids_are_leased_comes_too_late() {
    let mut harness = Harness::running();
    let table = harness.coordinator.membership();
    harness.restart();
    harness.join(key(8), 1, Role::Feeder);
    harness.now = harness.now + RETURN_WITHIN;
    harness.lease(key(8), 1);
    let launch = harness.coordinator.membership().launch;
    harness.return_table(FEEDER, &table);
    assert_eq!((harness.state(FEEDER), harness.coordinator.membership().launch), (None, launch));
}

#[test]
fn a_coordinator_that_was_started_again_publishes_nothing_before_newer_tables_had_time_to_return() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 4);
    harness.pass(1, &[key(0), key(1), FEEDER]);
    let (older, newest) = (harness.published[3].clone(), harness.coordinator.membership());
    harness.restart();
    let published = harness.published.len();
    harness.return_table(key(0), &older);
    assert_eq!(harness.beat(key(1)), Reply::Unknown, "it may have a newer table");
    assert_eq!(harness.return_table(key(1), &newest), Reply::Noted(MemberState::Serving(StageIndex(1))));
    assert_eq!(harness.beat(key(1)), Reply::Noted(MemberState::Serving(StageIndex(1))));
    assert_eq!(harness.published.len(), published, "a member with a newer table would lose it");
    harness.now = harness.now + RETURN_WITHIN;
    harness.hear(Event::Timeout);
    let table = harness.published.last().unwrap();
    assert_eq!((table.leases.clone(), table.launch), (newest.leases, newest.launch));
}

#[test]
fn strangers_that_return_an_old_table_keep_no_member_from_being_asked_for_a_newer_one() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 4);
    harness.pass(1, &[key(0), key(1), FEEDER]);
    let (older, newest) = (harness.published[3].clone(), harness.coordinator.membership());
    harness.restart();
    for stranger in 100..200 {
        assert_eq!(harness.return_table(key(stranger), &older), Reply::Unknown);
    }
    assert_eq!(harness.beat(key(1)), Reply::Unknown, "it may have a newer table");
    assert_eq!(harness.return_table(key(1), &newest), Reply::Noted(MemberState::Serving(StageIndex(1))));
    assert_eq!(harness.coordinator.membership().leases, newest.leases);
}

#[test]
fn a_coordinator_that_was_started_again_waits_for_the_tables_of_callers_that_speak_as_members() {
    let mut harness = Harness::running();
    let table = harness.coordinator.membership();
    harness.restart();
    harness.now = harness.now + Duration::from_secs(100);
    harness.join(key(8), 1, Role::Feeder);
    harness.now = harness.now + Duration::from_millis(4_999);
    assert_eq!(harness.beat(FEEDER), Reply::Unknown);
    harness.now = harness.now + Duration::from_secs(9);
    assert_eq!(harness.lease(key(8), 1), Reply::Unknown, "the table may be on its way");
    assert_eq!(harness.return_table(FEEDER, &table), Reply::Noted(MemberState::Feeding));
}

#[test]
fn a_coordinator_that_no_member_tells_of_its_run_leases_other_ids() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 4);
    harness.restart();
    harness.join(key(8), 1, Role::Feeder);
    harness.now = harness.now + RETURN_WITHIN;
    let Reply::Leased { lease, .. } = harness.lease(key(8), 4) else { panic!("no lease") };
    assert!(lease.first.block().0 > 1_000, "{lease:?}");
}

#[test]
fn the_tables_of_a_later_start_are_newer_than_every_table_that_a_member_has() {
    let mut harness = Harness::new(1);
    harness.restart();
    harness.join(key(1), 1, Role::Replica);
    let empty = harness.published.last().unwrap().clone();
    harness.restart();
    harness.join(key(2), 1, Role::Replica);
    assert_eq!(harness.return_table(key(1), &empty), Reply::Unknown);
    assert_eq!(harness.published.last().unwrap().version, 1, "a table of the run may come yet");
    harness.now = harness.now + Duration::from_secs(60);
    harness.hear(Event::Timeout);
    let table = harness.published.last().unwrap();
    assert!(table.version > empty.version && table.launch != empty.launch, "{table:?}");
    assert_eq!(table.get(start(key(1))), None, "a table without a run tells of none");
}

#[test]
fn no_replica_begins_with_initial_weights_where_a_process_may_have_trained_ones() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 4);
    let begin = |harness: &mut Harness, peer| {
        let ready = Event::Ready { from: start(peer), stage: StageIndex(1), initial: true };
        harness.hear(ready).unwrap()
    };
    harness.pass(15, &[key(0), FEEDER]);
    assert_eq!(harness.join(key(2), 1, Role::Replica), loading(1));
    assert_eq!(
        begin(&mut harness, key(2)),
        Reply::Noted(MemberState::Loading(StageIndex(1))),
        "one is awaited"
    );
    harness.pass(30, &[key(0), key(2), FEEDER]);
    assert_eq!(begin(&mut harness, key(2)), Reply::Noted(MemberState::Serving(StageIndex(1))));
    harness.hear(Event::Leave { from: start(key(0)) });
    harness.join(key(3), 1, Role::Replica);
    harness.hear(Event::Ready { from: start(key(3)), stage: StageIndex(0), initial: false });
    assert_eq!(begin(&mut harness, key(2)), Reply::Noted(MemberState::Serving(StageIndex(1))), "said again");
}

#[test]
fn a_stage_without_a_replica_goes_to_the_standby_that_has_its_weights() {
    let mut harness = Harness::running();
    harness.lease(FEEDER, 4);
    harness.join(key(2), 1, Role::Replica);
    harness.return_with(key(3), 1, 1);
    assert_eq!([key(2), key(3)].map(|peer| harness.state(peer)), [Some(MemberState::Standby); 2]);
    harness.hear(Event::Leave { from: start(key(1)) });
    let states = [key(2), key(3)].map(|peer| harness.state(peer).unwrap());
    assert_eq!(states, [MemberState::Standby, MemberState::Loading(StageIndex(1))]);
}

#[test]
fn the_time_before_the_first_members_lengthens_no_lease() {
    let mut harness = Harness::new(2);
    harness.now = harness.now + Duration::from_secs(1_000);
    for member in 0..3 {
        harness.join(key(member), 1, Role::Replica);
    }
    harness.pass(15, &[key(0), key(1)]);
    assert_eq!(harness.state(key(2)), None);
}

#[test]
fn a_run_that_begins_with_a_known_key_waits_a_while_for_members() {
    let mut harness = Harness::running();
    harness.restart();
    harness.join(key(7), 1, Role::Replica);
    let ends = (harness.now + RETURN_WITHIN, Reason::ReturnEnds);
    assert_eq!(harness.coordinator.poll_timeout(), Some(ends));
    harness.now = ends.0;
    harness.hear(Event::Timeout);
    assert_eq!(harness.state(key(7)), Some(MemberState::Loading(StageIndex(0))));
}

#[test]
fn a_replica_that_a_feeder_convicts_is_evicted_and_may_not_come_back() {
    let mut run = Harness::with(Config { feed: FeedPolicy::First, ..Config::new(1) });
    run.join(key(1), 1, Role::Replica);
    run.join(key(2), 1, Role::Replica);
    run.join(FEEDER, 1, Role::Feeder);
    run.strike(FEEDER, key(1), 30);
    assert_eq!(run.evicted, [], "it holds no ids, so no replica can have lied to it");
    run.lease(FEEDER, 1);
    run.strike(FEEDER, key(1), 20);
    run.strike(key(2), key(1), 30);
    run.strike(FEEDER, key(2), 30);
    run.strike(FEEDER, FEEDER, 30);
    assert_eq!(
        run.evicted,
        [],
        "as much is sound; a replica reports; a standby was handed nothing; a feeder too"
    );
    run.strike(FEEDER, key(1), 30);
    run.strike(FEEDER, key(1), 30);
    assert_eq!(run.evicted, [key(1)]);
    let table = run.published.last().unwrap();
    assert_eq!(table.get(start(key(1))), None);
    assert_eq!(run.state(key(2)), Some(MemberState::Loading(StageIndex(0))), "the standby takes its place");
    assert_eq!(run.beat(key(1)), Reply::Unknown);
    for incarnation in [1, 2] {
        let refused = Reply::JoinRefused(JoinRefusal::Evicted { key: key(1) });
        assert_eq!(run.join(key(1), incarnation, Role::Replica), refused);
    }
}

#[test]
fn a_run_that_any_member_may_feed_evicts_no_replica_and_another_no_more_than_a_limit() {
    let mut run = Harness::new(1);
    run.join(key(1), 1, Role::Replica);
    run.join(FEEDER, 1, Role::Feeder);
    run.lease(FEEDER, 1);
    run.strike(FEEDER, key(1), 30);
    assert_eq!(run.evicted, []);
    let mut run = Harness::with(Config { feed: FeedPolicy::First, ..Config::new(1) });
    run.join(FEEDER, 1, Role::Feeder);
    run.lease(FEEDER, 1);
    for index in 0..=EVICTED_MAX {
        let mut replica = [0; 32];
        replica[..8].copy_from_slice(&index.to_le_bytes());
        run.join(PeerId(replica), 1, Role::Replica);
        run.strike(FEEDER, PeerId(replica), 30);
    }
    assert_eq!(run.evicted.len(), EVICTED_MAX);
}
