//! Stories of one part, and properties over seeds. A failure names its seed; the seed gives the run again.

use std::collections::BTreeMap;

use super::unreachable::LOST_FOR;
use super::world::{Numbers, Scenario, World, participant};
use super::*;
use crate::Duration;

const SEEDS: u64 = 300;

/// Plays a scenario and checks what holds in every run.
fn check(scenario: Scenario) -> World {
    let seed = scenario.seed;
    println!("{scenario:?}");
    let mut world = World::new(scenario);
    world.run();
    assert!(world.is_quiet(), "seed {seed}: a round did not end");
    let mut agreed: BTreeMap<(GatheringId, PartIndex), Numbers> = BTreeMap::new();
    for replica in &world.replicas {
        for (&part, &mean) in &replica.applied {
            assert!(world.means.contains_key(&mean), "seed {seed}: {part:?} is nobody's mean");
            let first = *agreed.entry(part).or_insert(mean);
            assert_eq!(first, mean, "seed {seed}: two means of {part:?} were applied");
        }
    }
    world
}

fn applied(world: &World) -> u64 {
    world.survivors().map(|replica| replica.averaging.counts().applied).sum()
}

fn totals(worlds: &[World], of: impl Fn(&Counts) -> u64) -> u64 {
    worlds.iter().flat_map(|world| &world.replicas).map(|replica| of(replica.averaging.counts())).sum()
}

#[test]
fn in_a_calm_world_everybody_applies_everything() {
    for seed in 0..SEEDS {
        let replicas = 2 + (seed % 5) as usize;
        let world = check(Scenario { parts_min: (seed % 17) as u32, ..Scenario::new(seed, replicas) });
        for replica in &world.replicas {
            let counts = replica.averaging.counts();
            assert_eq!((counts.rounds, counts.complete), (6, 6), "seed {seed}: {counts:?}");
            let oddities = [counts.reassigned, counts.left_out, counts.refused, counts.given_up];
            assert_eq!(oddities, [0; 4], "seed {seed}: {counts:?}");
            assert_eq!((counts.malformed, counts.strangers, counts.other_members), (0, 0, 0), "seed {seed}");
        }
        assert!(world.means.values().all(|inputs| inputs.len() == replicas), "seed {seed}: all are heard");
    }
}

#[test]
fn a_member_killed_inside_a_round_is_left_out_and_its_part_goes_to_the_next() {
    let mut worlds = Vec::new();
    for seed in 0..SEEDS {
        let inside = Duration::from_millis(60_000 + 7 * seed);
        let scenario = Scenario {
            kills: vec![((seed % 3) as usize, inside)],
            parts_min: if seed % 2 == 0 { 1 } else { 7 },
            is_silent: seed % 3 == 0,
            rounds: 1,
            ..Scenario::new(seed, 3)
        };
        let world = check(scenario);
        for replica in world.survivors() {
            assert_eq!(replica.finished.get(&Round(1)), Some(&true), "seed {seed}: every part was applied");
        }
        worlds.push(world);
    }
    assert!(totals(&worlds, |counts| counts.reassigned) > SEEDS / 4, "owners died");
    assert!(totals(&worlds, |counts| counts.left_out) > SEEDS / 10, "shares were left out");
}

#[test]
fn losses_mistakes_and_deaths_never_give_two_means() {
    let mut worlds = Vec::new();
    for seed in 0..SEEDS {
        let replicas = 2 + (seed % 6) as usize;
        let scenario = Scenario {
            rounds: 12,
            every: Duration::from_secs(1 + seed % 30),
            lost_per_mille: seed % 7 * 20,
            mistaken_per_mille: seed % 5 * 60,
            poisoned_per_mille: seed % 3 * 50,
            parts_min: (seed % 11) as u32,
            delay_max: Duration::from_millis(50 + seed % 4 * 1_500),
            kills: vec![((seed % 7) as usize % replicas, Duration::from_secs(seed % 90))],
            is_silent: seed % 2 == 0,
            ..Scenario::new(seed, replicas)
        };
        worlds.push(check(scenario));
    }
    let reached = [
        totals(&worlds, |counts| counts.complete),
        totals(&worlds, |counts| counts.reassigned),
        totals(&worlds, |counts| counts.left_out),
        totals(&worlds, |counts| counts.refused),
        totals(&worlds, |counts| counts.given_up),
        totals(&worlds, |counts| counts.other_members),
        totals(&worlds, |counts| counts.late),
    ];
    println!("complete, reassigned, left out, refused, given up, other members, late: {reached:?}");
    assert!(reached.iter().all(|&count| count > 100), "every path was taken: {reached:?}");
}

#[test]
fn one_seed_gives_one_run() {
    let run = || {
        let scenario = Scenario { lost_per_mille: 100, mistaken_per_mille: 200, ..Scenario::new(9, 4) };
        check(scenario).replicas.into_iter().map(|replica| replica.applied).collect::<Vec<_>>()
    };
    assert_eq!(run(), run());
}

#[test]
fn shares_that_are_not_finite_are_refused_by_name() {
    let world = check(Scenario { poisoned_per_mille: 300, ..Scenario::new(5, 4) });
    assert!(world.means.values().flatten().all(|numbers| numbers.finite));
    assert!(world.replicas.iter().map(|replica| replica.averaging.counts().refused).sum::<u64>() > 0);
    assert!(applied(&world) > 0);
}

#[test]
fn joiners_take_the_mean_and_add_nothing_to_it() {
    let world = check(Scenario { joiners: 1, ..Scenario::new(3, 3) });
    assert!(world.means.values().all(|inputs| inputs.len() == 2));
    assert!(world.replicas.iter().all(|replica| replica.averaging.counts().complete == 6));

    let world = check(Scenario { joiners: 3, ..Scenario::new(4, 3) });
    assert!(world.means.is_empty() && applied(&world) == 0, "nobody had contributed");
    assert!(world.replicas.iter().all(|replica| replica.averaging.counts().nothing > 0));
    assert!(
        world.replicas.iter().all(|replica| replica.averaging.counts().complete == 6),
        "so they count next time"
    );
}

// --- Stories ------------------------------------------------------------------------------------------------

const SECOND: u64 = 1_000_000_000;

fn machine(index: usize) -> Averaging<u32> {
    Averaging::new(Config { me: participant(index), sets: 20, parts_min: 1 })
}

fn tell(averaging: &mut Averaging<u32>, at: u64, event: Event<u32>) -> Vec<Action<u32>> {
    averaging.handle(Time(at * SECOND), event);
    std::iter::from_fn(|| averaging.poll_action()).collect()
}

/// Replica `me` of `count`, in round 1 with a snapshot: part `i` is `10 me + i`.
fn in_round(me: usize, count: usize) -> (Averaging<u32>, Vec<Action<u32>>) {
    let mut averaging = machine(me);
    tell(&mut averaging, 0, Event::Members((0..count).rev().map(participant).collect()));
    let asked = tell(&mut averaging, 0, Event::Round(Round(1)));
    let parts = count as u32;
    assert_eq!(asked, [Action::Snapshot { round: Round(1), set: SetIndex(1), parts }]);
    let own = (0..parts).map(|part| 10 * me as u32 + part).collect();
    let begun = tell(&mut averaging, 0, Event::Snapshot { round: Round(1), weight: 2, parts: own });
    (averaging, begun)
}

fn message(
    averaging: &Averaging<u32>,
    part: u32,
    attempt: u32,
    content: Content<u32>,
) -> AveragingMessage<u32> {
    let gathering = averaging.current.as_ref().unwrap().gathering.id;
    AveragingMessage { gathering, part: PartIndex(part), attempt: Attempt(attempt), content }
}

fn hear(
    averaging: &mut Averaging<u32>,
    from: usize,
    part: u32,
    attempt: u32,
    content: Content<u32>,
) -> Vec<Action<u32>> {
    let message = message(averaging, part, attempt, content);
    tell(averaging, 1, Event::Received { from: participant(from), message })
}

#[test]
fn one_member_has_nothing_to_do() {
    let mut averaging = machine(0);
    assert_eq!(tell(&mut averaging, 0, Event::Members(vec![participant(0)])), []);
    assert_eq!(tell(&mut averaging, 0, Event::Round(Round(3))), []);
    assert_eq!(averaging.poll_timeout(), None);
    let begun = tell(&mut averaging, 1, Event::Members(vec![participant(0), participant(1)]));
    assert!(matches!(begun[..], [Action::Snapshot { round: Round(3), .. }]), "{begun:?}");
}

#[test]
fn an_owner_reduces_proposes_and_settles() {
    let (mut owner, begun) = in_round(0, 2);
    let share = Content::Share { weight: 2, share: 1 };
    let to_second = Action::Send { to: participant(1).peer, message: message(&owner, 1, 0, share) };
    assert_eq!(begun, [to_second]);

    let reduce = hear(&mut owner, 1, 0, 0, Content::Share { weight: 5, share: 10 });
    let (round, part, attempt) = (Round(1), PartIndex(0), Attempt(0));
    assert_eq!(reduce, [Action::Reduce { round, part, attempt, own: 0, inputs: vec![(2, 0), (5, 10)] }]);

    let proposed = tell(&mut owner, 1, Event::Reduced { round, part, attempt, outcome: Ok(77) });
    let mean = message(&owner, 0, 0, Content::Mean { mean: 77 });
    assert_eq!(proposed, [Action::Send { to: participant(1).peer, message: mean }]);

    let settled = hear(&mut owner, 1, 0, 0, Content::Held);
    let message = message(&owner, 0, 0, Content::Settled);
    assert_eq!(
        settled,
        [
            Action::Send { to: participant(1).peer, message },
            Action::Apply { round: Round(1), part: PartIndex(0), mean: 77 },
        ]
    );
    let counted = tell(&mut owner, 1, Event::Applied { round, part, applied: true });
    assert_eq!(counted, [Action::Counted(Note::Applied(round, part))]);
}

#[test]
fn a_mean_waits_until_it_is_settled_in_whatever_order_the_two_arrive() {
    let (mut member, _) = in_round(0, 3);
    let held = hear(&mut member, 1, 1, 0, Content::Mean { mean: 5 });
    assert!(matches!(&held[..], [Action::Send { message, .. }] if message.content == Content::Held));
    assert_eq!(hear(&mut member, 1, 1, 0, Content::Mean { mean: 5 }), [], "it came twice");
    let applied = hear(&mut member, 1, 1, 0, Content::Settled);
    assert_eq!(applied, [Action::Apply { round: Round(1), part: PartIndex(1), mean: 5 }]);

    assert_eq!(hear(&mut member, 2, 2, 0, Content::Settled), []);
    let applied = hear(&mut member, 2, 2, 0, Content::Mean { mean: 6 });
    assert_eq!(applied, [Action::Apply { round: Round(1), part: PartIndex(2), mean: 6 }]);
}

#[test]
fn the_next_owner_proposes_again_what_may_have_been_settled() {
    // Member 2 has taken the mean of owner 1, who then dies.
    let (mut member, _) = in_round(2, 3);
    hear(&mut member, 1, 1, 0, Content::Mean { mean: 5 });
    let actions = tell(&mut member, 2, Event::PeerLost(participant(1)));
    let proposes = |action: &Action<u32>| matches!(action, Action::Send { message, .. } if message.content == Content::Mean { mean: 5 });
    assert!(!actions.iter().any(proposes), "not before a majority is heard: {actions:?}");
    let actions = hear(&mut member, 0, 1, 1, Content::Share { weight: 3, share: 1 });
    assert!(actions.iter().any(proposes), "{actions:?}");
}

#[test]
fn who_has_turned_to_the_next_owner_takes_nothing_from_the_one_before() {
    let (mut member, _) = in_round(0, 3);
    tell(&mut member, 2, Event::PeerLost(participant(1)));
    let late = hear(&mut member, 1, 1, 0, Content::Mean { mean: 5 });
    assert_eq!(late, [Action::Counted(Note::Late(participant(1)))]);
}

#[test]
fn the_dead_strangers_and_other_lists_are_not_heard() {
    let (mut member, _) = in_round(0, 3);
    let share = |member: &Averaging<u32>| message(member, 0, 0, Content::Share { weight: 1, share: 1 });
    let later = Participant { incarnation: crate::Incarnation(2), ..participant(1) };
    let dead = Event::Received { from: later, message: share(&member) };
    assert_eq!(tell(&mut member, 1, dead), [Action::Counted(Note::Stranger(later))]);

    let mut other = share(&member);
    other.gathering.members ^= 1;
    let answer = absent(&other);
    let other = Event::Received { from: participant(1), message: other };
    let noted = Action::Counted(Note::OtherMembers(participant(1)));
    assert_eq!(
        tell(&mut member, 1, other),
        [noted, Action::Send { to: participant(1).peer, message: answer }]
    );

    let odd = [
        (0, 1, Content::Held),
        (9, 0, Content::Settled),
        (0, u32::MAX, Content::Share { weight: 1, share: 1 }),
        (0, 0, Content::Share { weight: u64::MAX, share: 1 }),
        (0, 0, Content::Kept { of: Attempt(0), mean: 1 }),
        (2, 0, Content::Mean { mean: 1 }),
    ];
    for (part, attempt, content) in odd {
        let heard = hear(&mut member, 1, part, attempt, content.clone());
        assert_eq!(heard, [Action::Counted(Note::Malformed(participant(1)))], "{content:?}");
    }
}

#[test]
fn too_few_left_end_the_round_at_once() {
    let (mut member, _) = in_round(0, 2);
    let actions = tell(&mut member, 1, Event::Members(vec![participant(0)]));
    let finished = Action::Finished { round: Round(1), set: SetIndex(1), complete: false };
    assert_eq!(actions.last(), Some(&finished));
    assert_eq!(member.poll_timeout(), None);
}

#[test]
fn a_newer_round_gives_silent_owners_no_second_chance() {
    let (mut member, _) = in_round(0, 3);
    assert_eq!(tell(&mut member, 1, Event::Round(Round(4))), []);
    for _ in 0..6 {
        if let Some((at, _)) = member.poll_timeout() {
            member.handle(at, Event::Timeout);
        }
        while let Some(action) = member.poll_action() {
            if let Action::Snapshot { round, .. } = action {
                assert_eq!(round, Round(4));
                return;
            }
        }
    }
    panic!("round 4 did not begin");
}

#[test]
fn early_messages_are_kept_but_not_without_end() {
    let (mut member, _) = in_round(0, 2);
    let mut early = message(&member, 0, 0, Content::Share { weight: 1, share: 1 });
    early.gathering.round = Round(2);
    for kept in 0..2 * EARLY_PER_MEMBER {
        let actions = tell(&mut member, 1, Event::Received { from: participant(1), message: early.clone() });
        assert_eq!(actions.is_empty(), kept < EARLY_PER_MEMBER);
    }
    tell(&mut member, 1, Event::Members(vec![participant(0), participant(2)]));
    tell(&mut member, 1, Event::Members(vec![participant(0), participant(1)]));
    assert_eq!(tell(&mut member, 1, Event::Received { from: participant(1), message: early }), []);
    let begun = tell(&mut member, 2, Event::Round(Round(2)));
    assert!(matches!(begun[..], [Action::Snapshot { round: Round(2), .. }]), "{begun:?}");
    let (round, parts) = (Round(2), vec![1, 2]);
    let actions = tell(&mut member, 2, Event::Snapshot { round, weight: 1, parts });
    assert!(actions.iter().any(|action| matches!(action, Action::Reduce { .. })), "{actions:?}");
}

/// The answer of somebody who takes no part.
fn absent(message: &AveragingMessage<u32>) -> AveragingMessage<u32> {
    AveragingMessage { content: Content::Absent, ..message.clone() }
}

#[test]
fn who_is_not_in_a_round_says_so_and_nobody_waits_for_it() {
    // Member 1 has left this round to the others: it joined when they were in it.
    let mut newcomer = machine(1);
    tell(&mut newcomer, 0, Event::Members((0..3).map(participant).collect()));
    let (mut member, begun) = in_round(0, 3);
    let share = begun.into_iter().find_map(|action| match action {
        Action::Send { to, message } if to == participant(1).peer => Some(message),
        _ => None,
    });
    let share = share.unwrap();
    let received = Event::Received { from: participant(0), message: share.clone() };
    assert_eq!(tell(&mut newcomer, 1, received), [], "the round may be called here too");
    let declined = tell(&mut newcomer, 1, Event::Past(Round(1)));
    assert_eq!(declined, [Action::Send { to: participant(0).peer, message: absent(&share) }]);

    let Action::Send { message: answer, .. } = declined[0].clone() else { panic!("{declined:?}") };
    let answered = tell(&mut member, 1, Event::Received { from: participant(1), message: answer.clone() });
    let next = Action::Counted(Note::Reassigned(Round(1), PartIndex(1)));
    assert_eq!(answered.last(), Some(&next), "its part has another owner at once: {answered:?}");
    let last = tell(&mut member, 1, Event::Received { from: participant(2), message: answer });
    let finished = Action::Finished { round: Round(1), set: SetIndex(1), complete: false };
    assert_eq!(last.last(), Some(&finished), "one of three settles nothing");
}

#[test]
fn a_lost_member_is_left_out_from_the_beginning_until_it_speaks() {
    let (mut member, _) = in_round(0, 2);
    tell(&mut member, 1, Event::PeerLost(participant(1)));
    assert_eq!(tell(&mut member, 2, Event::Round(Round(2))), [], "nobody to average with");
    let share = AveragingMessage {
        gathering: GatheringId { round: Round(2), members: 1 },
        part: PartIndex(0),
        attempt: Attempt(0),
        content: Content::Share { weight: 1, share: 1 },
    };
    let heard = tell(&mut member, 3, Event::Received { from: participant(1), message: share.clone() });
    let answer = Action::Send { to: participant(1).peer, message: absent(&share) };
    assert_eq!(heard, [Action::Counted(Note::Late(participant(1))), answer]);
    let begun = tell(&mut member, 3, Event::Round(Round(3)));
    assert!(matches!(begun[..], [Action::Snapshot { round: Round(3), .. }]), "{begun:?}");

    tell(&mut member, 4, Event::PeerLost(participant(1)));
    tell(&mut member, 4, Event::Snapshot { round: Round(3), weight: 1, parts: vec![1, 2] });
    assert_eq!(member.round(), None, "the round is over before it is copied");
    assert_eq!(tell(&mut member, 4, Event::Round(Round(4))), []);
    let later = 4 + LOST_FOR.as_secs();
    let begun = tell(&mut member, later, Event::Round(Round(5)));
    assert!(matches!(begun[..], [Action::Snapshot { round: Round(5), .. }]), "it may live: {begun:?}");
}

#[test]
fn no_snapshot_no_round() {
    let mut member = machine(0);
    tell(&mut member, 0, Event::Members(vec![participant(0), participant(1)]));
    tell(&mut member, 0, Event::Round(Round(1)));
    let (at, reason) = member.poll_timeout().unwrap();
    assert_eq!(reason, Reason::SnapshotExpires);
    member.handle(at, Event::Timeout);
    let over = Action::Finished { round: Round(1), set: SetIndex(1), complete: false };
    assert_eq!(member.poll_action(), Some(over));
}
