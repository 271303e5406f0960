//! Tests of neighbours that live, fall silent and die.

use proptest::prelude::*;

use super::*;
use crate::{Incarnation, PeerId};

const A: Instance = peer(1);
const B: Instance = peer(2);
const C: Instance = peer(3);

const fn peer(key: u8) -> Instance {
    Instance::new(PeerId([key; 32]), Incarnation(1))
}

fn at(millis: u64) -> Time {
    Time(0) + Duration::from_millis(millis)
}

fn beat(counter: u64) -> Heartbeat {
    Heartbeat {
        counter,
        queued: 1,
        oldest: Duration::from_secs(60),
        service: Some(Duration::from_millis(100)),
        credit: 0,
    }
}

struct Harness {
    health: Health,
}

impl Harness {
    fn watching(peers: &[Instance]) -> Self {
        let mut health = Health::new();
        peers.iter().for_each(|&peer| health.watch(at(0), peer));
        Self { health }
    }

    /// `peers` send a heartbeat with progress each second of `seconds`.
    fn beats(&mut self, peers: &[Instance], seconds: std::ops::Range<u64>) {
        for second in seconds {
            peers.iter().for_each(|&peer| self.health.heard(at(1_000 * second), peer, beat(second)));
        }
    }

    fn verdict(&self, millis: u64, peer: Instance) -> Verdict {
        self.health.verdict(at(millis), peer)
    }
}

#[test]
fn silence_makes_suspect_then_dead_then_a_message_makes_healthy() {
    let mut harness = Harness::watching(&[A, B]);
    harness.beats(&[A, B], 0..20);
    harness.beats(&[B], 20..30);
    assert_eq!(harness.verdict(19_000 + 2_683, A), Verdict::Healthy);
    assert_eq!(harness.verdict(19_000 + 2_684, A), Verdict::Suspect);
    assert_eq!(harness.verdict(19_000 + 3_110, A), Verdict::Suspect);
    assert_eq!(harness.verdict(19_000 + 3_111, A), Verdict::Dead);
    assert_eq!(harness.verdict(30_000, B), Verdict::Healthy);
    harness.health.message(at(30_000), A);
    assert_eq!(harness.verdict(30_000, A), Verdict::Healthy);
}

#[test]
fn any_message_ends_a_silence_but_does_not_count_for_the_rhythm() {
    let mut harness = Harness::watching(&[A, B]);
    for millis in (0..20_000).step_by(100) {
        harness.health.message(at(millis), A);
        if millis % 1_000 == 0 {
            harness.health.heard(at(millis), A, beat(millis));
            harness.health.heard(at(millis), B, beat(millis));
        }
    }
    assert_eq!(harness.verdict(22_000, A), Verdict::Healthy);
    harness.health.reached(at(21_000));
    assert_eq!(harness.verdict(22_583, A), Verdict::Healthy);
    assert_eq!(harness.verdict(22_584, A), Verdict::Suspect);
}

#[test]
fn a_lost_connection_is_death_at_once_until_it_speaks_again() {
    let mut harness = Harness::watching(&[A, B]);
    harness.beats(&[A, B], 0..5);
    harness.health.lost(at(4_100), A);
    assert_eq!((harness.verdict(4_100, A), harness.verdict(4_100, B)), (Verdict::Dead, Verdict::Healthy));
    harness.health.heard(at(4_200), A, beat(9));
    assert_eq!(harness.verdict(4_200, A), Verdict::Healthy);
}

#[test]
fn work_without_progress_is_stalled() {
    let mut harness = Harness::watching(&[A, B]);
    for second in 0..=10 {
        harness.health.heard(at(1_000 * second), A, beat(3));
        harness.health.heard(at(1_000 * second), B, beat(second));
        let expected = if second < 5 { Verdict::Healthy } else { Verdict::Stalled };
        assert_eq!(harness.verdict(1_000 * second, A), expected);
        assert_eq!(harness.verdict(1_000 * second, B), Verdict::Healthy);
    }
    harness.health.heard(at(11_000), A, beat(4));
    assert_eq!(harness.verdict(11_000, A), Verdict::Healthy);
}

#[test]
fn no_verdict_changes_while_the_own_link_is_down() {
    let mut harness = Harness::watching(&[A, B, C]);
    harness.beats(&[A, B, C], 0..10);
    harness.beats(&[A, B], 10..20);
    let silent = |harness: &Harness, millis| {
        assert_eq!(
            [A, B, C].map(|peer| harness.verdict(millis, peer)),
            [Verdict::Healthy, Verdict::Healthy, Verdict::Dead]
        );
    };
    silent(&harness, 21_500);
    silent(&harness, 60_000);
    harness.health.lost(at(25_000), A);
    silent(&harness, 25_000);
    // The link is back: the time it was down counts as silence of no peer.
    harness.beats(&[B], 60..62);
    silent(&harness, 60_500);
    assert_eq!(harness.verdict(60_000 + 2_683, A), Verdict::Healthy);
    assert_eq!(harness.verdict(60_000 + 2_684, A), Verdict::Suspect);
}

#[test]
fn a_single_peer_is_judged_and_so_are_all_with_other_evidence() {
    let mut harness = Harness::watching(&[A]);
    harness.beats(&[A], 0..5);
    assert_eq!(harness.verdict(7_200, A), Verdict::Dead);
    let mut harness = Harness::watching(&[A, B]);
    harness.beats(&[A, B], 0..5);
    (5..8).for_each(|second| harness.health.reached(at(1_000 * second)));
    assert_eq!([A, B].map(|peer| harness.verdict(7_200, peer)), [Verdict::Dead; 2]);
}

#[test]
fn a_new_peer_has_time_for_its_first_beat() {
    let mut harness = Harness::watching(&[A, B]);
    harness.beats(&[B], 0..9);
    assert_eq!(harness.verdict(6_600, A), Verdict::Healthy);
    assert_eq!(harness.verdict(6_700, A), Verdict::Suspect);
    assert_eq!(harness.verdict(7_200, A), Verdict::Dead);
}

#[test]
fn starts_are_told_apart_and_strangers_are_not_kept() {
    let mut harness = Harness::watching(&[A, B]);
    harness.beats(&[B], 0..9);
    let restarted = Instance::new(A.peer, Incarnation(2));
    harness.health.heard(at(8_000), restarted, beat(1));
    assert_eq!(harness.verdict(8_000, A), Verdict::Dead);
    assert_eq!(harness.health.verdict(at(8_000), restarted), Verdict::Healthy);
    assert_eq!(harness.health.service(restarted), None);
    assert_eq!(harness.health.service(B), Some(Duration::from_millis(100)));
    harness.health.forget(A);
    assert_eq!(harness.health.watched.len(), 1);
}

#[test]
fn changes_are_told_once() {
    let mut harness = Harness::watching(&[A, B]);
    harness.beats(&[A, B], 0..5);
    assert_eq!(harness.health.changes(at(4_000)), []);
    harness.health.lost(at(4_100), A);
    assert_eq!(harness.health.changes(at(4_100)), [(A, Verdict::Dead)]);
    assert_eq!(harness.health.changes(at(4_200)), []);
    harness.health.message(at(4_300), A);
    assert_eq!(harness.health.changes(at(4_300)), [(A, Verdict::Healthy)]);
}

#[derive(Clone, Copy, Debug)]
enum Heard {
    Heartbeat(u64),
    Message,
    Lost,
    Reached,
    Watch,
    Forget,
}

fn heard() -> impl Strategy<Value = (u64, Instance, Heard)> {
    let heard = prop_oneof![
        8 => (0_u64..2).prop_map(Heard::Heartbeat),
        2 => Just(Heard::Message),
        1 => Just(Heard::Lost),
        1 => Just(Heard::Reached),
        2 => Just(Heard::Watch),
        1 => Just(Heard::Forget),
    ];
    let pause = prop_oneof![9 => 0_u64..1_200, 1 => 0_u64..9_000];
    (pause, prop::sample::select(vec![A, B, C]), heard)
}

proptest! {
    /// After any history no verdict changes before `next_change`.
    #[test]
    fn no_verdict_changes_before_the_predicted_time(history in prop::collection::vec(heard(), 1..80)) {
        let mut harness = Harness::watching(&[A, B]);
        let mut millis = 0;
        for (pause, peer, heard) in history {
            millis += pause;
            let now = at(millis);
            match heard {
                Heard::Heartbeat(counter) => harness.health.heard(now, peer, beat(counter)),
                Heard::Message => harness.health.message(now, peer),
                Heard::Lost => harness.health.lost(now, peer),
                Heard::Reached => harness.health.reached(now),
                Heard::Watch => harness.health.watch(now, peer),
                Heard::Forget => harness.health.forget(peer),
            }
            harness.health.changes(now);
            let judge = |now| [A, B, C].map(|peer| harness.health.verdict(now, peer));
            let before = judge(now);
            let change = harness.health.next_change(now);
            prop_assert!(change.is_none_or(|change| change > now));
            let end = change.unwrap_or_else(|| now + Duration::from_secs(100));
            let last = Time(end.0 - 1);
            let halfway = Time(now.0 / 2 + last.0 / 2);
            prop_assert_eq!(judge(last), before);
            prop_assert_eq!(judge(halfway), before);
        }
    }
}
