//! Stories of a run, told by requests and answers.

use std::collections::BTreeSet;

use super::*;
use crate::{Duration, Lease, MicrobatchId};

const FEEDER: PeerId = PeerId([9; 32]);

fn key(index: u8) -> PeerId {
    PeerId([index; 32])
}

struct Story {
    coordinator: Coordinator,
    now: Time,
    published: Vec<Membership>,
    finished: u32,
}

impl Story {
    fn new(stages: u16) -> Self {
        Self::with(Config::new(stages))
    }

    fn with(config: Config) -> Self {
        Self { coordinator: Coordinator::new(config), now: Time(0), published: Vec::new(), finished: 0 }
    }

    fn hear(&mut self, event: Event) -> Option<Answer> {
        self.coordinator.handle(self.now, event);
        let mut answers = Vec::new();
        while let Some(action) = self.coordinator.poll_action() {
            match action {
                Action::Answer { to, answer } => {
                    assert_eq!(Some(to), event.sender());
                    answers.push(answer);
                }
                Action::Membership(membership) => self.published.push(membership),
                Action::Finished => self.finished += 1,
            }
        }
        assert!(answers.len() <= 1);
        answers.pop()
    }

    fn join(&mut self, peer: PeerId, incarnation: u64, role: Role) -> Answer {
        let address = SocketAddr::from(([127, 0, 0, 1], 4_000));
        self.hear(Event::Join { peer, incarnation: Incarnation(incarnation), role, address }).unwrap()
    }

    fn ready(&mut self, peer: PeerId) -> Answer {
        self.hear(Event::Ready { peer, incarnation: Incarnation(1) }).unwrap()
    }

    fn beat(&mut self, peer: PeerId) -> Answer {
        let progress = Progress { done: 3, ..Progress::default() };
        self.hear(Event::Heartbeat { peer, incarnation: Incarnation(1), progress }).unwrap()
    }

    fn lease(&mut self, peer: PeerId, count: u64) -> Answer {
        self.hear(Event::LeaseRequest { peer, incarnation: Incarnation(1), count }).unwrap()
    }

    /// Two stages that serve and a feeder.
    fn running() -> Self {
        let mut story = Self::new(2);
        for index in [0, 1] {
            assert_eq!(story.join(key(index), 1, Role::Replica), loading(index));
            assert_eq!(story.ready(key(index)), Answer::Noted(Standing::Serving(StageIndex(index.into()))));
        }
        story.join(FEEDER, 1, Role::Feeder);
        assert_eq!(story.coordinator.state(), RunState::Running);
        story
    }

    fn standing(&self, peer: PeerId) -> Option<Standing> {
        let membership = self.coordinator.membership();
        membership.members.iter().find(|member| member.peer == peer).map(|member| member.standing)
    }
}

fn loading(stage: u8) -> Answer {
    Answer::Joined(Standing::Loading(StageIndex(stage.into())))
}

#[test]
fn a_run_waits_runs_and_finishes() {
    let mut story = Story::running();
    let versions: Vec<_> = story.published.iter().map(|membership| membership.version).collect();
    assert_eq!(versions, [1, 2, 3, 4, 5]);
    assert_eq!(story.published.last(), Some(&story.coordinator.membership()));
    assert_eq!(story.join(key(2), 1, Role::Replica), Answer::Joined(Standing::Standby));
    let done = Event::FeederDone { peer: FEEDER, incarnation: Incarnation(1) };
    assert_eq!(story.hear(done), Some(Answer::Noted(Standing::Feeding)));
    story.hear(done);
    assert_eq!((story.finished, story.coordinator.state()), (1, RunState::Finished));
    assert_eq!(story.join(key(3), 1, Role::Replica), Answer::JoinRefused(JoinRefusal::Finished));
    assert_eq!(story.lease(FEEDER, 1), Answer::LeaseRefused(LeaseRefusal::Finished));
}

#[test]
fn a_newer_start_replaces_an_older_one_on_its_stage() {
    let mut story = Story::running();
    assert_eq!(story.join(key(1), 1, Role::Replica), Answer::Joined(Standing::Serving(StageIndex(1))));
    assert_eq!(story.join(key(1), 3, Role::Replica), loading(1));
    let known = Incarnation(3);
    assert_eq!(story.join(key(1), 2, Role::Replica), Answer::JoinRefused(JoinRefusal::Superseded { known }));
    assert_eq!(story.ready(key(1)), Answer::NotAMember);
    assert_eq!(story.coordinator.state(), RunState::Waiting { unserved: vec![StageIndex(1)] });
}

#[test]
fn the_policy_decides_who_joins() {
    let policy = Policy::Keys(BTreeSet::from([key(1)]));
    let mut story = Story::with(Config { policy, members_max: 1, ..Config::new(1) });
    let refused = story.join(key(2), 1, Role::Replica);
    assert_eq!(refused, Answer::JoinRefused(JoinRefusal::NotListed));
    assert!(JoinRefusal::NotListed.to_string().contains("listed keys only"));
    assert_eq!(story.join(key(1), 1, Role::Replica), loading(0));
    let mut story = Story::with(Config { members_max: 0, ..Config::new(1) });
    assert_eq!(story.join(key(1), 1, Role::Replica), Answer::JoinRefused(JoinRefusal::Full { limit: 0 }));
}

#[test]
fn silence_removes_a_member_and_heartbeats_keep_it() {
    let mut story = Story::running();
    story.now = Time(0) + Duration::from_secs(3);
    for peer in [key(0), FEEDER] {
        story.beat(peer);
    }
    assert_eq!(story.coordinator.progress(key(0)).unwrap().done, 3);
    assert_eq!(
        story.coordinator.poll_timeout().unwrap(),
        (Time(0) + Duration::from_secs(15), Reason::MemberExpires)
    );
    let version = story.coordinator.membership().version;
    story.now = Time(0) + Duration::from_secs(15);
    assert_eq!(story.hear(Event::Timeout), None);
    assert_eq!(story.coordinator.membership().version, version + 1);
    assert_eq!(story.coordinator.state(), RunState::Waiting { unserved: vec![StageIndex(1)] });
    assert_eq!(story.beat(key(1)), Answer::NotAMember);
    assert_eq!(story.join(key(1), 2, Role::Replica), loading(1));
}

#[test]
fn a_late_heartbeat_is_a_sign_of_life() {
    let mut story = Story::running();
    story.now = Time(0) + Duration::from_secs(60);
    assert_eq!(story.beat(key(0)), Answer::Noted(Standing::Serving(StageIndex(0))));
    assert_eq!(story.standing(key(1)), None);
}

#[test]
fn a_standby_takes_a_place_that_becomes_free_before_the_run_and_in_it() {
    let mut story = Story::new(2);
    for index in [0, 1, 2] {
        story.join(key(index), 1, Role::Replica);
    }
    story.ready(key(0));
    story.hear(Event::Leave { peer: key(1), incarnation: Incarnation(1) });
    assert_eq!(story.beat(key(2)), Answer::Noted(Standing::Loading(StageIndex(1))));

    let mut story = Story::running();
    story.join(key(2), 1, Role::Replica);
    let left = story.hear(Event::Leave { peer: key(1), incarnation: Incarnation(1) });
    assert_eq!(left, Some(Answer::Left));
    assert_eq!(story.standing(key(2)), Some(Standing::Loading(StageIndex(1))));
}

#[test]
fn feeders_get_ranges_that_never_overlap() {
    let mut story = Story::running();
    story.join(key(8), 1, Role::Feeder);
    let leased = |first, count| Answer::Leased(Lease { first: MicrobatchId(first), count, epoch: 0 });
    assert_eq!(story.lease(FEEDER, 10), leased(0, 10));
    assert_eq!(story.lease(key(8), 5), leased(10, 5));
    assert_eq!(story.lease(FEEDER, 1), leased(15, 1));
    assert_eq!(story.lease(key(0), 1), Answer::LeaseRefused(LeaseRefusal::NotAFeeder));
    assert_eq!(story.lease(key(7), 1), Answer::LeaseRefused(LeaseRefusal::NotAFeeder));
    assert_eq!(story.coordinator.leases().len(), 3);
    story.hear(Event::FeederDone { peer: FEEDER, incarnation: Incarnation(1) });
    assert_eq!(story.coordinator.state(), RunState::Running);
    story.hear(Event::FeederDone { peer: key(8), incarnation: Incarnation(1) });
    assert_eq!(story.coordinator.state(), RunState::Finished);
}

#[test]
fn only_a_feeder_can_end_a_run() {
    let mut story = Story::running();
    story.hear(Event::FeederDone { peer: key(0), incarnation: Incarnation(1) });
    story.hear(Event::FeederDone { peer: key(5), incarnation: Incarnation(1) });
    assert_eq!((story.finished, story.coordinator.state()), (0, RunState::Running));
}

#[test]
fn a_successor_gets_what_the_dead_left_and_the_table_says_so() {
    let mut story = Story::running();
    let heir = key(8);
    assert!(matches!(story.lease(FEEDER, 40), Answer::Leased(_)));
    let lives = JoinRefusal::FeederLives { feeder: FEEDER, lease: story.coordinator.config().lease };
    assert_eq!(story.join(heir, 1, Role::Successor), Answer::JoinRefused(lives));
    story.hear(Event::Leave { peer: FEEDER, incarnation: Incarnation(1) });
    assert_eq!(story.join(heir, 1, Role::Successor), Answer::Joined(Standing::Feeding));
    let lease = Lease { first: MicrobatchId(0), count: 40, epoch: 1 };
    let succession = crate::Succession { lease, feeder: heir };
    assert_eq!(story.published.last().unwrap().successions, [succession]);
    assert_eq!(
        story.join(heir, 1, Role::Successor),
        Answer::Joined(Standing::Feeding),
        "the same start again"
    );
    assert_eq!(story.coordinator.membership().successions, [succession]);
    story.hear(Event::FeederDone { peer: heir, incarnation: Incarnation(1) });
    assert_eq!(story.coordinator.membership().successions, []);
}

#[test]
fn there_must_be_something_to_take_over() {
    let mut story = Story::running();
    let refused = Answer::JoinRefused(JoinRefusal::NothingToSucceed);
    assert_eq!(story.join(key(8), 1, Role::Successor), refused);
}
