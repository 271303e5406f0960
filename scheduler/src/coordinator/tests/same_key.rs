//! Two processes with one key, and the starts of one process.

use super::super::admission::SILENT_AFTER;
use super::super::members::Entry;
use super::*;

/// Another process with the key of a member.
const OTHER: ProcessNumber = ProcessNumber(7);

/// The refusal of another process while this start of the key lives.
fn already_runs(key: PeerId, since: u64) -> Reply {
    let Join { address, .. } = join(key, since, Role::Replica);
    Reply::JoinRefused(JoinRefusal::AlreadyRuns { key, address, since: Incarnation(since) })
}

impl Harness {
    /// Another process asks to join with the key of a peer.
    fn join_beside(&mut self, peer: PeerId, incarnation: u64, role: Role) -> Reply {
        self.hear(Event::Join(Join { process: OTHER, ..join(peer, incarnation, role) })).unwrap()
    }

    /// It asks for the place of a process that lives.
    fn take_over(&mut self, peer: PeerId, incarnation: u64, role: Role) -> Reply {
        let request = Join { process: OTHER, takes_over: true, ..join(peer, incarnation, role) };
        self.hear(Event::Join(request)).unwrap()
    }
}

#[test]
fn another_process_with_the_key_of_a_member_is_refused_while_the_member_lives() {
    let mut run = Harness::running();
    run.join(key(3), 1, Role::Keeper(None));
    let members = [key(0), key(1), key(3), FEEDER];
    run.pass(1, &members);
    let version = run.coordinator.membership().version;
    for _ in 0..20 {
        run.pass(1, &members);
        for (peer, role) in [(key(0), Role::Replica), (key(3), Role::Keeper(None)), (FEEDER, Role::Feeder)] {
            assert_eq!(run.join_beside(peer, 2, role), already_runs(peer, 1));
        }
        assert_eq!(run.join_beside(FEEDER, 2, Role::Successor), already_runs(FEEDER, 1));
    }
    assert_eq!(run.coordinator.membership().version, version, "no member was disturbed");
}

#[test]
fn a_process_that_is_started_again_after_a_crash_gets_its_place_when_the_former_one_is_silent() {
    let mut run = Harness::running();
    run.pass(3, &[key(0), key(1), FEEDER]);
    let heard = run.now;
    while run.now < heard + SILENT_AFTER {
        assert_eq!(run.join_beside(key(0), 2, Role::Replica), already_runs(key(0), 1));
        run.now = run.now + Duration::from_millis(500);
    }
    assert_eq!(run.join_beside(key(0), 2, Role::Replica), loading(0));
    assert_eq!(run.beat(key(0)), Reply::NotAMember, "the former start, should it live, ends");
}

#[test]
fn where_every_process_has_crashed_each_gets_its_place_all_the_same() {
    let mut run = Harness::running();
    run.pass(1, &[key(0), key(1), FEEDER]);
    run.now = run.now + Duration::from_secs(60);
    let asked = run.now;
    while run.join_beside(key(0), 2, Role::Replica) == already_runs(key(0), 1) {
        assert!(run.now < asked + SILENT_AFTER + Duration::from_secs(1));
        run.now = run.now + Duration::from_millis(500);
    }
    assert_eq!(run.join_beside(FEEDER, 2, Role::Feeder), Reply::Joined(MemberState::Feeding));
}

#[test]
fn a_process_that_is_told_to_take_over_gets_the_place_of_one_that_lives() {
    let mut run = Harness::running();
    run.pass(1, &[key(0), key(1), FEEDER]);
    assert_eq!(run.take_over(key(0), 2, Role::Replica), loading(0));
    assert_eq!(run.beat(key(0)), Reply::NotAMember);
    assert_eq!(run.join(key(0), 3, Role::Replica), already_runs(key(0), 2), "the former process ends");
}

#[test]
fn a_process_takes_the_place_of_its_own_former_start_at_once() {
    let mut run = Harness::running();
    run.pass(1, &[key(0), key(1), FEEDER]);
    assert_eq!(run.join(key(0), 2, Role::Replica), loading(0), "the reply to its first request was lost");
}

#[test]
fn a_start_whose_clock_went_back_learns_the_latest_start_of_its_key_and_joins_as_a_later_one() {
    let mut run = Harness::with(Config::new(1));
    assert_eq!(run.join(key(0), 1_000, Role::Replica), loading(0));
    assert_eq!(run.join_beside(key(0), 400, Role::Replica), already_runs(key(0), 1_000), "it lives");
    run.now = run.now + SILENT_AFTER;
    assert_eq!(run.join_beside(key(0), 400, Role::Replica), former(key(0), 1_000));
    assert_eq!(run.join_beside(key(0), 1_001, Role::Replica), loading(0));
    let left = Instance::new(key(0), Incarnation(1_001));
    run.hear(Event::Leave { from: left });
    for role in [Role::Replica, Role::Feeder, Role::Keeper(None)] {
        assert_eq!(run.join_beside(key(0), 500, role), former(key(0), 1_001));
    }
    assert_eq!(run.join_beside(key(0), 1_002, Role::Replica), loading(0));
}

#[test]
fn a_coordinator_that_is_started_again_knows_which_process_a_member_is() {
    let mut run = Harness::running();
    let config = run.coordinator.config().clone();
    run.coordinator = Coordinator::restored(run.now, config, run.facts.clone());
    assert_eq!(run.join_beside(key(0), 2, Role::Replica), already_runs(key(0), 1));
    assert_eq!(run.join(key(0), 2, Role::Replica), loading(0));
}

#[test]
fn a_member_that_only_a_table_tells_of_is_no_process_in_particular() {
    let entry = |instance| {
        let Join { address, .. } = join(key(0), 1, Role::Replica);
        Entry::restored(Member { instance, state: MemberState::Standby, address })
    };
    let request = join(key(0), 1, Role::Replica);
    assert!(entry(request.from).is(&request), "the same start may be asking again");
    assert!(!entry(request.from).is_of(request.process), "a later start may be of another process");
}
