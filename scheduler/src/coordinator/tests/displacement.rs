//! Replicas that make no use of their places, and standbys.

use super::super::displacement::{OTHERS_FINISHED, STALLED_AFTER};
use super::*;

const LOADING_MAX: Duration = Duration::from_secs(40);

/// A stage with places for two: one replica serves, one loads, or serves too.
fn pair(both_serve: bool) -> Harness {
    let config = Config { replicas_per_stage: 2, loading_max: LOADING_MAX, ..Config::new(1) };
    let mut run = Harness::with(config);
    run.join(key(0), 1, Role::Replica);
    run.ready(key(0));
    run.join(key(1), 1, Role::Replica);
    if both_serve {
        run.ready(key(1));
    }
    run
}

impl Harness {
    /// A second passes. The first replica has done one microbatch more, and of the second so many wait.
    fn work(&mut self, done: u64, waiting: (u32, Duration)) -> Reply {
        self.now = self.now + Duration::from_secs(1);
        for peer in [key(2), FEEDER] {
            self.beat(peer);
        }
        let progress = Progress { done, ..Progress::default() };
        self.hear(Event::Heartbeat { from: start(key(0)), progress });
        let (queued, oldest) = waiting;
        let progress = Progress { done: 5, queued, oldest, ..Progress::default() };
        self.hear(Event::Heartbeat { from: start(key(1)), progress }).unwrap()
    }
}

#[test]
fn a_replica_that_loads_for_too_long_gives_its_place_to_a_standby_and_may_come_back() {
    let mut run = pair(false);
    run.pass(LOADING_MAX.as_secs() + 5, &[key(0), key(1)]);
    assert_eq!(run.displaced, [], "no replica waits for the place");
    assert_eq!(run.join(key(2), 1, Role::Replica), Reply::Joined(MemberState::Standby));
    assert_eq!(run.beat(key(1)), Reply::NotAMember);
    assert_eq!(run.state(key(2)), Some(MemberState::Loading(StageIndex(0))));
    let [(replica, Displacement::Loading(took))] = run.displaced[..] else { panic!("{:?}", run.displaced) };
    assert!(replica == key(1) && took >= LOADING_MAX, "{took:?}");
    assert_eq!(run.join(key(1), 2, Role::Replica), Reply::Joined(MemberState::Standby));
    run.pass(LOADING_MAX.as_secs() / 2, &[key(0), key(2)]);
    assert_eq!(run.displaced.len(), 1, "the next one has its own time");
}

#[test]
fn a_replica_that_finishes_nothing_while_others_of_its_stage_do_gives_its_place_to_a_standby() {
    let mut run = pair(true);
    run.join(key(2), 1, Role::Replica);
    let stalled = (4, STALLED_AFTER * 2);
    for second in 0..STALLED_AFTER.as_secs() {
        run.work(second, stalled);
        assert_eq!(run.displaced, [], "after {second} s");
    }
    assert_eq!(run.work(STALLED_AFTER.as_secs(), stalled), Reply::NotAMember);
    assert_eq!(run.state(key(2)), Some(MemberState::Loading(StageIndex(0))));
    assert!(matches!(run.displaced[..], [(replica, Displacement::Stalled(_))] if replica == key(1)));
}

#[test]
fn a_replica_that_has_nothing_to_do_or_is_as_slow_as_its_stage_keeps_its_place() {
    for (pace, waiting) in [(1, (0, Duration::ZERO)), (0, (4, STALLED_AFTER * 9))] {
        let mut run = pair(true);
        run.join(key(2), 1, Role::Replica);
        for second in 0..4 * STALLED_AFTER.as_secs() {
            run.work(pace * second + OTHERS_FINISHED - 1, waiting);
        }
        assert_eq!(run.displaced, []);
    }
}

#[test]
fn the_only_replica_of_a_stage_keeps_its_place_and_one_that_waits_for_a_donor_too() {
    let mut run = pair(false);
    run.join(key(2), 1, Role::Replica);
    for second in 0..4 * STALLED_AFTER.as_secs() {
        run.now = run.now + Duration::from_secs(1);
        run.beat(key(1));
        run.beat(key(2));
        let progress = Progress { done: 1, queued: 4, oldest: Duration::from_secs(second), refused: 0 };
        run.hear(Event::Heartbeat { from: start(key(0)), progress });
    }
    assert!(run.displaced.iter().all(|(replica, _)| *replica != key(0)), "{:?}", run.displaced);

    let mut alone = Harness::with(Config { loading_max: LOADING_MAX, ..Config::new(1) });
    alone.join(key(0), 1, Role::Replica);
    alone.join(key(1), 1, Role::Replica);
    alone.pass(3 * LOADING_MAX.as_secs(), &[key(0), key(1)]);
    assert_eq!(alone.displaced, [], "another would wait for a donor likewise");
}
