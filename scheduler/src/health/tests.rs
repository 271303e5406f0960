//! Stories of neighbours that live, fall silent and die.

use proptest::prelude::*;

use super::*;

const START: Incarnation = Incarnation(1);
const A: PeerId = PeerId([1; 32]);
const B: PeerId = PeerId([2; 32]);
const C: PeerId = PeerId([3; 32]);

fn at(millis: u64) -> Time {
    Time(0) + Duration::from_millis(millis)
}

fn beat(counter: u64) -> Beat {
    Beat {
        counter,
        queued: 1,
        oldest: Duration::from_secs(60),
        service: Some(Duration::from_millis(100)),
        credit: 0,
    }
}

struct Story {
    health: Health,
}

impl Story {
    fn watching(peers: &[PeerId]) -> Self {
        let mut health = Health::new();
        peers.iter().for_each(|&peer| health.watch(at(0), peer, START));
        Self { health }
    }

    /// These send a heartbeat each second, from `seconds.start` on, and get on with their work.
    fn beats(&mut self, peers: &[PeerId], seconds: std::ops::Range<u64>) {
        for second in seconds {
            peers.iter().for_each(|&peer| self.health.heard(at(1_000 * second), peer, START, beat(second)));
        }
    }

    fn verdict(&self, millis: u64, peer: PeerId) -> Verdict {
        self.health.verdict(at(millis), peer, START)
    }
}

#[test]
fn silence_makes_suspect_then_dead_then_a_word_makes_healthy() {
    let mut story = Story::watching(&[A, B]);
    story.beats(&[A, B], 0..20);
    story.beats(&[B], 20..30);
    assert_eq!(story.verdict(19_000 + 2_683, A), Verdict::Healthy);
    assert_eq!(story.verdict(19_000 + 2_684, A), Verdict::Suspect);
    assert_eq!(story.verdict(19_000 + 3_110, A), Verdict::Suspect);
    assert_eq!(story.verdict(19_000 + 3_111, A), Verdict::Dead);
    assert_eq!(story.verdict(30_000, B), Verdict::Healthy);
    story.health.message(at(30_000), A, START);
    assert_eq!(story.verdict(30_000, A), Verdict::Healthy);
}

#[test]
fn any_message_is_a_sign_of_life_but_not_of_the_rhythm() {
    let mut story = Story::watching(&[A, B]);
    for millis in (0..20_000).step_by(100) {
        story.health.message(at(millis), A, START);
        if millis % 1_000 == 0 {
            story.health.heard(at(millis), A, START, beat(millis));
            story.health.heard(at(millis), B, START, beat(millis));
        }
    }
    assert_eq!(story.verdict(22_000, A), Verdict::Healthy);
    story.health.reached(at(21_000));
    assert_eq!(story.verdict(22_583, A), Verdict::Healthy);
    assert_eq!(story.verdict(22_584, A), Verdict::Suspect);
}

#[test]
fn a_lost_connection_is_death_at_once_until_it_speaks_again() {
    let mut story = Story::watching(&[A, B]);
    story.beats(&[A, B], 0..5);
    story.health.lost(at(4_100), A, START);
    assert_eq!((story.verdict(4_100, A), story.verdict(4_100, B)), (Verdict::Dead, Verdict::Healthy));
    story.health.heard(at(4_200), A, START, beat(9));
    assert_eq!(story.verdict(4_200, A), Verdict::Healthy);
}

#[test]
fn work_without_progress_is_wedged() {
    let mut story = Story::watching(&[A, B]);
    for second in 0..=10 {
        story.health.heard(at(1_000 * second), A, START, beat(3));
        story.health.heard(at(1_000 * second), B, START, beat(second));
        let expected = if second < 5 { Verdict::Healthy } else { Verdict::Wedged };
        assert_eq!(story.verdict(1_000 * second, A), expected);
        assert_eq!(story.verdict(1_000 * second, B), Verdict::Healthy);
    }
    story.health.heard(at(11_000), A, START, beat(4));
    assert_eq!(story.verdict(11_000, A), Verdict::Healthy);
}

#[test]
fn nobody_is_judged_while_the_own_link_is_down() {
    let mut story = Story::watching(&[A, B, C]);
    story.beats(&[A, B, C], 0..10);
    story.beats(&[A, B], 10..20);
    let silent = |story: &Story, millis| {
        assert_eq!(
            [A, B, C].map(|peer| story.verdict(millis, peer)),
            [Verdict::Healthy, Verdict::Healthy, Verdict::Dead]
        );
    };
    silent(&story, 21_500);
    silent(&story, 60_000);
    story.health.lost(at(25_000), A, START);
    silent(&story, 25_000);
    // The link is back: what nobody could hear is nobody's silence.
    story.beats(&[B], 60..62);
    silent(&story, 60_500);
    assert_eq!(story.verdict(60_000 + 2_683, A), Verdict::Healthy);
    assert_eq!(story.verdict(60_000 + 2_684, A), Verdict::Suspect);
}

#[test]
fn one_alone_is_judged_and_so_are_all_with_a_witness() {
    let mut story = Story::watching(&[A]);
    story.beats(&[A], 0..5);
    assert_eq!(story.verdict(7_200, A), Verdict::Dead);
    let mut story = Story::watching(&[A, B]);
    story.beats(&[A, B], 0..5);
    (5..8).for_each(|second| story.health.reached(at(1_000 * second)));
    assert_eq!([A, B].map(|peer| story.verdict(7_200, peer)), [Verdict::Dead; 2]);
}

#[test]
fn a_newcomer_has_time_for_its_first_beat() {
    let mut story = Story::watching(&[A, B]);
    story.beats(&[B], 0..9);
    assert_eq!(story.verdict(6_600, A), Verdict::Healthy);
    assert_eq!(story.verdict(6_700, A), Verdict::Suspect);
    assert_eq!(story.verdict(7_200, A), Verdict::Dead);
}

#[test]
fn starts_are_told_apart_and_strangers_are_not_kept() {
    let mut story = Story::watching(&[A, B]);
    story.beats(&[B], 0..9);
    story.health.heard(at(8_000), A, Incarnation(2), beat(1));
    assert_eq!(story.verdict(8_000, A), Verdict::Dead);
    assert_eq!(story.health.verdict(at(8_000), A, Incarnation(2)), Verdict::Healthy);
    assert_eq!(story.health.service(A, Incarnation(2)), None);
    assert_eq!(story.health.service(B, START), Some(Duration::from_millis(100)));
    story.health.forget(A, START);
    assert_eq!(story.health.watched.len(), 1);
}

#[test]
fn changes_are_told_once() {
    let mut story = Story::watching(&[A, B]);
    story.beats(&[A, B], 0..5);
    assert_eq!(story.health.changes(at(4_000)), []);
    story.health.lost(at(4_100), A, START);
    assert_eq!(story.health.changes(at(4_100)), [(A, START, Verdict::Dead)]);
    assert_eq!(story.health.changes(at(4_200)), []);
    story.health.message(at(4_300), A, START);
    assert_eq!(story.health.changes(at(4_300)), [(A, START, Verdict::Healthy)]);
}

#[derive(Clone, Copy, Debug)]
enum Heard {
    Beat(u64),
    Message,
    Lost,
    Reached,
    Watch,
    Forget,
}

fn heard() -> impl Strategy<Value = (u64, PeerId, Heard)> {
    let what = prop_oneof![
        8 => (0_u64..2).prop_map(Heard::Beat),
        2 => Just(Heard::Message),
        1 => Just(Heard::Lost),
        1 => Just(Heard::Reached),
        2 => Just(Heard::Watch),
        1 => Just(Heard::Forget),
    ];
    let pause = prop_oneof![9 => 0_u64..1_200, 1 => 0_u64..9_000];
    (pause, prop::sample::select(vec![A, B, C]), what)
}

proptest! {
    /// Whatever happened: until `next_change` no verdict changes, and there is one as long as somebody may yet fall
    /// silent.
    #[test]
    fn nothing_changes_before_it_was_foretold(history in prop::collection::vec(heard(), 1..80)) {
        let mut story = Story::watching(&[A, B]);
        let mut millis = 0;
        for (pause, peer, what) in history {
            millis += pause;
            let now = at(millis);
            match what {
                Heard::Beat(counter) => story.health.heard(now, peer, START, beat(counter)),
                Heard::Message => story.health.message(now, peer, START),
                Heard::Lost => story.health.lost(now, peer, START),
                Heard::Reached => story.health.reached(now),
                Heard::Watch => story.health.watch(now, peer, START),
                Heard::Forget => story.health.forget(peer, START),
            }
            let judge = |now| [A, B, C].map(|peer| story.health.verdict(now, peer, START));
            let before = judge(now);
            let change = story.health.next_change(now);
            prop_assert!(change.is_none_or(|change| change > now));
            let end = change.unwrap_or_else(|| now + Duration::from_secs(100));
            let last = Time(end.0 - 1);
            let halfway = Time(now.0 / 2 + last.0 / 2);
            prop_assert_eq!(judge(last), before);
            prop_assert_eq!(judge(halfway), before);
        }
    }
}
