//! Tests of the clock of one stage.

use super::*;
use crate::{Incarnation, PeerId};

fn member(key: u8) -> Instance {
    Instance::new(PeerId([key; 32]), Incarnation(1))
}

/// The clock of a stage with these members.
fn rounds(keys: std::ops::RangeInclusive<u8>) -> StageRounds {
    let mut rounds = StageRounds::new(AveragingSchedule { interval: 10, fragments: 2 }, false);
    keys.for_each(|key| rounds.enter(member(key)));
    rounds
}

fn at(finished: u64) -> Training {
    Training { finished, over: false }
}

const OVER: Training = Training { finished: 99, over: true };

/// These members end a round, at a time, and were carried by it.
fn end(rounds: &mut StageRounds, now: Time, keys: std::ops::RangeInclusive<u8>, round: u64) {
    keys.for_each(|key| rounds.ended(now, member(key), Round(round), Some(Round(round))));
}

#[test]
fn a_member_that_is_out_of_reach_for_good_holds_up_the_last_rounds_for_two_minutes_at_most() {
    let mut rounds = rounds(1..=2);
    let mut now = Time(0);
    while !rounds.is_over() {
        if rounds.proceed(now, OVER) {
            let Round(round) = rounds.current();
            end(&mut rounds, now, 1..=1, round);
        }
        now = now + Duration::from_secs(1);
        assert!(now < Time(0) + 2 * ROUND_TIMEOUT, "{:?}", rounds.current());
    }
    assert_eq!(rounds.current(), Round(4), "each fragment had a turn more");
}

#[test]
fn replicas_that_go_on_dying_and_joining_hold_up_the_last_rounds_for_a_limited_time() {
    let mut rounds = rounds(1..=3);
    assert!(rounds.proceed(Time(0), at(10)));
    let second = Duration::from_secs(1);
    let mut now = Time(0) + second;
    end(&mut rounds, now, 1..=3, 1);
    let began = now;
    while !rounds.is_over() {
        rounds.proceed(now, OVER);
        let Round(round) = rounds.current();
        end(&mut rounds, now, 1..=2, round);
        // One of the stage dies, and another replica takes its place before it was averaged.
        let turn = (now.0 / second.as_nanos() as u64 % 200) as u8;
        rounds.leave(member(3 + turn));
        rounds.enter(member(4 + turn));
        now = now + second;
        assert!(now < began + 3 * ROUND_TIMEOUT, "{:?}", rounds.current());
    }
    assert_eq!(rounds.deadline(now), None);
}

#[test]
fn the_next_round_waits_for_microbatches_and_for_the_last_to_end_this_one() {
    let mut rounds = rounds(1..=3);
    assert!(!rounds.proceed(Time(0), at(9)));
    assert!(rounds.proceed(Time(0), at(10)));
    end(&mut rounds, Time(1), 1..=2, 1);
    assert!(!rounds.proceed(Time(1), at(99)));
    end(&mut rounds, Time(2), 3..=3, 1);
    assert!(rounds.proceed(Time(2), at(99)));
    assert_eq!(rounds.current(), Round(2));
    end(&mut rounds, Time(3), 1..=2, 2);
    rounds.leave(member(3));
    assert!(rounds.proceed(Time(3), at(109)), "the other one has left");
}

#[test]
fn no_member_is_waited_for_for_ever() {
    let mut rounds = rounds(1..=2);
    assert!(rounds.proceed(Time(0), at(10)));
    assert_eq!(rounds.deadline(Time(0)), Some(Time(0) + ROUND_TIMEOUT));
    assert!(!rounds.proceed(Time(0) + ROUND_TIMEOUT / 2, at(20)));
    assert!(!rounds.proceed(Time(0) + ROUND_TIMEOUT, at(19)));
    assert_eq!(rounds.deadline(Time(0) + ROUND_TIMEOUT), None);
    assert!(rounds.proceed(Time(1) + ROUND_TIMEOUT, at(20)));
}

#[test]
fn rounds_that_take_long_get_more_time_and_short_ones_less() {
    let (mut rounds, mut now) = (rounds(1..=2), Time(0));
    let mut call = |rounds: &mut StageRounds, lasts: Duration, expected: Duration| {
        assert!(rounds.proceed(now, at(u64::MAX)));
        assert_eq!(rounds.deadline(now), Some(now + expected));
        now = now + lasts;
        if lasts < expected {
            end(rounds, now, 1..=2, rounds.current().0);
        }
        assert!(!rounds.proceed(now, at(0)));
        rounds.finished = 0;
    };
    let long = ROUND_TIMEOUT * 5;
    call(&mut rounds, long, ROUND_TIMEOUT);
    call(&mut rounds, long, ROUND_TIMEOUT * 2);
    call(&mut rounds, long, ROUND_TIMEOUT * 4);
    call(&mut rounds, long, ROUND_TIMEOUT * 8);
    call(&mut rounds, ROUND_TIMEOUT, ROUND_TIMEOUT * 8);
    call(&mut rounds, ROUND_TIMEOUT, ROUND_TIMEOUT * 4);
    call(&mut rounds, ROUND_TIMEOUT / 2, ROUND_TIMEOUT * 4);
    call(&mut rounds, ROUND_TIMEOUT / 60, ROUND_TIMEOUT * 2);
    call(&mut rounds, ROUND_TIMEOUT / 60, ROUND_TIMEOUT);
}

/// Round 1 is called at 0; these members end it at 1.
fn under_way(members: std::ops::RangeInclusive<u8>, ended: std::ops::RangeInclusive<u8>) -> StageRounds {
    let mut rounds = rounds(members);
    assert!(rounds.proceed(Time(0), at(10)));
    end(&mut rounds, Time(1), ended, 1);
    assert!(!rounds.proceed(Time(1), at(99)));
    rounds
}

#[test]
fn when_most_have_ended_the_others_have_a_grace() {
    let (grace, almost) = (Time(1) + ROUND_GRACE, Time(0) + ROUND_GRACE);
    let mut rounds = under_way(1..=4, 1..=3);
    assert_eq!(rounds.deadline(Time(1)), Some(grace));
    assert!(!rounds.proceed(almost, at(99)));
    assert!(!rounds.proceed(grace, at(19)), "not due");
    assert_eq!(rounds.deadline(grace), None, "nothing happens before");
    assert!(rounds.proceed(grace, at(20)));
    assert_eq!(rounds.deadline(grace), Some(grace + ROUND_TIMEOUT));

    let mut half = under_way(1..=4, 1..=2);
    assert_eq!(half.deadline(Time(1)), Some(Time(0) + ROUND_TIMEOUT));
    assert!(!half.proceed(grace, at(99)));
    let late = Time(0) + ROUND_TIMEOUT / 3;
    end(&mut half, late, 3..=3, 1);
    assert!(!half.proceed(late, at(99)));
    assert_eq!(half.deadline(late), Some(late + ROUND_TIMEOUT / 3), "as long as the round took");
}

#[test]
fn a_member_that_was_left_behind_and_lives_is_waited_for_from_then_on() {
    let mut rounds = under_way(1..=3, 1..=2);
    let second = Time(1) + ROUND_GRACE;
    assert!(rounds.proceed(second, at(20)));
    end(&mut rounds, second, 1..=2, 2);
    end(&mut rounds, second, 3..=3, 1);
    assert!(!rounds.proceed(second + ROUND_GRACE, at(99)));
    assert!(!rounds.proceed(second + ROUND_GRACE * 2, at(99)));
    assert_eq!(rounds.deadline(second), Some(second + ROUND_TIMEOUT));
    end(&mut rounds, second + ROUND_GRACE / 2, 3..=3, 2);
    let third = second + ROUND_GRACE * 3;
    assert!(rounds.proceed(third, at(99)));
    end(&mut rounds, third, 1..=2, 3);
    assert!(!rounds.proceed(third, at(199)));
    assert_eq!(rounds.deadline(third), Some(third + ROUND_GRACE), "it was on time");
}

#[test]
fn a_member_that_is_late_every_round_costs_its_stage_less_and_less_until_it_is_on_time_once() {
    let mut rounds = rounds(1..=3);
    let (mut now, mut waits) = (Time(0), Vec::new());
    for round in 1..=9 {
        assert!(rounds.proceed(now, at(u64::MAX)));
        end(&mut rounds, now, 1..=2, round);
        assert!(!rounds.proceed(now, at(u64::MAX)));
        now = rounds.deadline(now).unwrap();
        waits.push(now.since(rounds.called_at).as_secs());
        let reports = if round == 8 { rounds.called_at } else { now };
        end(&mut rounds, reports, 3..=3, round);
        rounds.finished = 0;
    }
    assert_eq!(waits, [3, 60, 30, 15, 7, 3, 3, 3, 3], "seconds");
}

#[test]
fn the_dead_cost_a_grace_each_round() {
    let mut rounds = under_way(1..=3, 1..=2);
    let mut now = Time(1);
    for round in 2..9 {
        assert!(rounds.proceed(now + ROUND_GRACE, at(round * 10)));
        now = now + ROUND_GRACE;
        end(&mut rounds, now, 1..=2, round);
        assert!(!rounds.proceed(now, at(999)));
    }
}

#[test]
fn no_member_is_left_behind_at_the_end() {
    let mut rounds = under_way(1..=3, 1..=2);
    let late = Time(0) + ROUND_TIMEOUT / 2;
    assert!(!rounds.proceed(late, at(19)), "its grace is over, the next round not due");
    for round in 1..=3 {
        assert!(!rounds.proceed(late, OVER));
        assert!(rounds.deadline(late) > Some(late));
        end(&mut rounds, late, 1..=3, round);
        assert_eq!(rounds.proceed(late, OVER), round < 3);
        end(&mut rounds, late, 1..=2, round + 1);
    }
    assert!(rounds.is_over());
}

#[test]
fn at_the_end_each_fragment_is_averaged_once_more() {
    let mut rounds = rounds(1..=2);
    for round in 1..=2 {
        assert!(rounds.proceed(Time(round), OVER) && rounds.closes());
        assert!(!rounds.proceed(Time(round), OVER) && !rounds.is_over());
        end(&mut rounds, Time(round), 1..=2, round);
    }
    assert!(!rounds.proceed(Time(3), OVER) && rounds.is_over());
    assert!(!rounds.proceed(Time(4), OVER));
}

#[test]
fn a_stage_that_averages_in_groups_has_three_turns_at_the_end() {
    let mut rounds = rounds(1..=20);
    for round in 1..=6 {
        assert!(rounds.proceed(Time(round), OVER));
        end(&mut rounds, Time(round), 1..=20, round);
    }
    assert!(!rounds.proceed(Time(9), OVER) && rounds.is_over());
}

#[test]
fn a_member_that_the_last_rounds_have_not_carried_has_a_second_turn_and_no_third() {
    let mut rounds = rounds(1..=2);
    for round in 1..=4 {
        assert!(rounds.proceed(Time(round), OVER), "round {round}");
        end(&mut rounds, Time(round), 1..=1, round);
        rounds.ended(Time(round), member(2), Round(round), None);
    }
    assert!(!rounds.proceed(Time(5), OVER) && rounds.is_over());
}

#[test]
fn a_restarted_feeder_goes_on_after_the_rounds_that_all_members_have_ended() {
    let mut rounds = rounds(1..=2);
    assert!(rounds.proceed(Time(0), at(10)));
    end(&mut rounds, Time(0), 1..=1, 1_000);
    end(&mut rounds, Time(0), 2..=2, 40);
    assert!(rounds.proceed(Time(1), at(20)));
    assert_eq!(rounds.current(), Round(41));
}

#[test]
fn a_replica_alone_has_no_rounds_and_is_over_at_once() {
    let empty = StageRounds::new(AveragingSchedule { interval: 10, fragments: 2 }, false);
    for mut rounds in [empty, rounds(1..=1)] {
        assert!(!rounds.proceed(Time(0), at(90)));
        assert!(!rounds.proceed(Time(0), OVER) && rounds.is_over());
    }
    let mut off = StageRounds::new(AveragingSchedule { interval: 0, fragments: 0 }, false);
    (1..=2).for_each(|key| off.enter(member(key)));
    assert!(!off.proceed(Time(0), at(90)));
    assert!(!off.proceed(Time(0), OVER) && off.is_over());
}

#[test]
fn replicas_that_accumulate_have_a_last_round_in_which_they_step_with_the_rest() {
    let clock = |interval, fragments, members: std::ops::RangeInclusive<u8>| {
        let mut rounds = StageRounds::new(AveragingSchedule { interval, fragments }, true);
        members.for_each(|key| rounds.enter(member(key)));
        rounds
    };
    let (alone, does_not_average) = (clock(10, 2, 1..=1), clock(0, 0, 1..=2));
    for (mut rounds, last) in [(alone, 1), (does_not_average, 2)] {
        assert!(!rounds.proceed(Time(0), at(90)), "none before");
        assert!(rounds.proceed(Time(1), OVER) && rounds.closes());
        assert!(!rounds.proceed(Time(2), OVER) && !rounds.is_over(), "it waits for the steps");
        end(&mut rounds, Time(3), 1..=last, 1);
        assert!(!rounds.proceed(Time(3), OVER) && rounds.is_over(), "one");
    }
    let mut deserted = clock(10, 2, 1..=1);
    assert!(deserted.proceed(Time(1), OVER));
    deserted.leave(member(1));
    assert!(!deserted.proceed(Time(2), OVER) && deserted.is_over(), "no replica is left to wait for");
    let mut averages = clock(10, 2, 1..=2);
    for round in 1..=2 {
        assert!(averages.proceed(Time(round), OVER), "its rounds are no more than those of others");
        end(&mut averages, Time(round), 1..=2, round);
    }
    assert!(!averages.proceed(Time(3), OVER) && averages.is_over());
}
