//! Tests of one part, and properties over seeds. A failure names its seed; the seed reproduces the run.

use std::collections::{BTreeMap, BTreeSet};

use super::deferred::NUMBERS_PER_MEMBER;
use super::unreachable::LEFT_OUT_FOR;
use super::world::{Numbers, Scenario, World, copied, digest, member};
use super::*;
use crate::{Attempt, Duration, Incarnation};

const SEEDS: u64 = 300;

/// Runs a scenario and checks the rules of every run.
fn check(scenario: Scenario) -> World {
    let seed = scenario.seed;
    println!("{scenario:?}");
    let mut world = World::new(scenario);
    world.run();
    assert!(world.is_quiet(), "seed {seed}: a round did not end");
    let mut agreed: BTreeMap<(GroupId, PartIndex), Numbers> = BTreeMap::new();
    for (index, replica) in world.replicas.iter().enumerate() {
        for (&part, &mean) in &replica.applied {
            assert!(world.means.contains_key(&mean), "seed {seed}: {part:?} is no mean that was made");
            if world.scenario.liar == Some(index) {
                continue;
            }
            let first = *agreed.entry(part).or_insert(mean);
            assert_eq!(first, mean, "seed {seed}: two means of {part:?} were applied");
        }
    }
    (0..world.replicas.len()).for_each(|index| check_carried(&world, index));
    world
}

/// A round that a replica counts as carried has its contribution in every mean.
fn check_carried(world: &World, index: usize) {
    let replica = &world.replicas[index];
    for (&(group, part), mean) in &replica.applied {
        let counts = replica.finished.get(&group.round) == Some(&true) && world.weight(index) > 0;
        let own = copied(group.round, part, index);
        let carried = world.means[mean].iter().any(|input| input.value == own);
        let seed = world.scenario.seed;
        assert!(carried || !counts, "seed {seed}: replica {index} counts {group:?} {part:?} as carried");
    }
}

fn applied(world: &World) -> u64 {
    world.survivors().map(|replica| replica.averaging.counts().applied).sum()
}

fn totals(worlds: &[World], of: impl Fn(&Counts) -> u64) -> u64 {
    worlds.iter().flat_map(|world| &world.replicas).map(|replica| of(replica.averaging.counts())).sum()
}

#[test]
fn in_a_calm_world_every_member_applies_everything() {
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
        assert!(
            world.means.values().all(|inputs| inputs.len() == replicas),
            "seed {seed}: every contribution counts"
        );
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
    assert!(totals(&worlds, |counts| counts.left_out) > SEEDS / 10, "contributions were left out");
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
fn honest_members_never_apply_two_means_of_one_owner() {
    let (mut told, mut applied) = (0, 0);
    for seed in 0..SEEDS {
        let replicas = 2 + (seed % 8) as usize;
        let scenario = Scenario {
            liar: Some((seed % 11) as usize % replicas),
            rounds: 4,
            parts_min: (seed % 11) as u32,
            delay_max: Duration::from_millis(50 + seed % 4 * 300),
            ..Scenario::new(seed, replicas)
        };
        let (liar, world) = (scenario.liar, check(scenario));
        let honest = (0..replicas).filter(|&index| liar != Some(index));
        for counts in honest.map(|index| *world.replicas[index].averaging.counts()) {
            told += counts.two_means;
            applied += counts.applied;
        }
    }
    println!("{applied} means applied, {told} contradictions noticed");
    assert!(told > SEEDS && applied > 10 * SEEDS, "{told} and {applied}");
}

#[test]
fn a_copy_that_is_ready_late_is_in_every_mean_or_counted_as_not_carried() {
    let on_time = [1, 4, 6, 9, 15].map(|late| (late, 120, 40));
    // Parts that the late member owns wait for it.
    for (late, means, carried) in on_time.into_iter().chain([(25, 40, 0)]) {
        let slow = vec![(2, Duration::from_secs(late))];
        let world = check(Scenario { slow, rounds: 40, ..Scenario::new(late, 3) });
        let (applied, with) = world.shares(2);
        let complete = world.replicas[2].averaging.counts().complete;
        println!("late by {late} s: in {with} of {applied} means, {complete} rounds carried");
        assert_eq!((with, complete), (means, carried), "late by {late} s");
        let others = &world.replicas[0].averaging.counts();
        assert_eq!((others.complete, others.applied), (40, 120), "late by {late} s");
    }
}

#[test]
fn a_slow_joiner_never_turns_nothing_into_a_round() {
    let slow = vec![(0, Duration::from_secs(6))];
    let world = check(Scenario { slow, joiners: 1, rounds: 20, ..Scenario::new(1, 2) });
    assert_eq!(world.shares(0), (40, 40));
    let slow = vec![(0, Duration::from_secs(25))];
    let world = check(Scenario { slow, joiners: 1, rounds: 20, ..Scenario::new(1, 2) });
    let complete = |index: usize| world.replicas[index].averaging.counts().complete;
    assert_eq!((complete(0), complete(1)), (0, 0), "no member counts a round that carried nothing");
}

/// The variance of numbers that move to the mean of their group in each round of a run, before the first round and
/// after each.
fn variances(world: &World) -> Vec<f64> {
    let count = world.replicas.len();
    let mut numbers: Vec<f64> = (0..count).map(|index| ((index * 37) % count) as f64).collect();
    let variance = |numbers: &[f64]| {
        let mean = numbers.iter().sum::<f64>() / count as f64;
        numbers.iter().map(|number| (number - mean).powi(2)).sum::<f64>() / count as f64
    };
    let mut variances = vec![variance(&numbers)];
    for round in (1..=world.scenario.rounds).map(Round) {
        let before = numbers.clone();
        for (replica, number) in world.replicas.iter().zip(&mut numbers) {
            let Some((_, mean)) = replica.applied.iter().find(|((group, _), _)| group.round == round) else {
                continue;
            };
            let members = world.contributors(*mean);
            *number = members.iter().map(|&index| before[index]).sum::<f64>() / members.len() as f64;
        }
        variances.push(variance(&numbers));
    }
    variances
}

#[test]
fn every_replica_of_a_wide_stage_averages_and_the_spread_shrinks_by_the_size_of_a_group() {
    let world = check(Scenario { steps_max: 500_000, ..Scenario::new(7, 200) });
    for replica in &world.replicas {
        let counts = replica.averaging.counts();
        assert_eq!((counts.complete, counts.given_up, counts.other_members), (6, 0, 0), "{counts:?}");
    }
    let variances = variances(&world);
    println!("variance after each round: {variances:.6?}");
    for round in 1..variances.len() {
        let is_of = |group: &GroupId| group.round == Round(round as u64);
        let groups: BTreeSet<GroupId> = world
            .replicas
            .iter()
            .flat_map(|replica| replica.applied.keys())
            .map(|(group, _)| *group)
            .filter(is_of)
            .collect();
        let expected = (groups.len() - 1) as f64 / (world.replicas.len() - 1) as f64;
        let left = variances[round] / variances[round - 1];
        assert!(left < 2.0 * expected, "round {round}: {left:.3} is left, expected {expected:.3}");
    }
}

#[test]
fn lists_of_a_wide_stage_that_differ_cost_the_groups_that_they_concern() {
    let mut worlds = Vec::new();
    for seed in 0..6 {
        let scenario = Scenario {
            rounds: 4,
            mistaken_per_mille: 20,
            kills: vec![(3, Duration::from_secs(90)), (50, Duration::from_secs(120))],
            lost_per_mille: 5,
            steps_max: 1_000_000,
            ..Scenario::new(seed, 60)
        };
        worlds.push(check(scenario));
    }
    let complete = totals(&worlds, |counts| counts.complete);
    let rounds = totals(&worlds, |counts| counts.rounds);
    println!("{complete} of {rounds} rounds complete");
    assert!(complete * 10 > rounds * 8, "{complete} of {rounds}");
}

/// One fragment of 10^9 parameters, which is 600 MB, over links of 20 Mbit/s and 150 ms.
fn large(replicas: usize) -> Scenario {
    Scenario {
        rounds: 1,
        parts_min: 573,
        part_bytes: 1 << 20,
        link: 2_500_000,
        delay_min: Duration::from_millis(150),
        delay_max: Duration::from_millis(160),
        steps_max: 5_000_000,
        ..Scenario::new(3, replicas)
    }
}

#[test]
fn a_round_of_a_large_stage_completes_over_thin_and_long_links() {
    for replicas in [2, 3, 8, 16] {
        let scenario = large(replicas);
        let world = check(scenario.clone());
        let bytes = f64::from(scenario.parts_min) * scenario.part_bytes as f64;
        let sent = 2.0 * bytes * (replicas - 1) as f64 / replicas as f64;
        let least = sent / scenario.link as f64;
        let last = world.replicas.iter().map(|replica| replica.finished_at).max().unwrap();
        let took = last.since(Time(0) + scenario.every).as_secs_f64();
        println!("{replicas} replicas: {took:.0} s; the links alone take {least:.0} s");
        for replica in &world.replicas {
            let counts = replica.averaging.counts();
            let oddities = [counts.left_out, counts.reassigned, counts.given_up, counts.not_carried];
            assert_eq!((counts.complete, oddities), (1, [0; 4]), "{replicas} replicas: {counts:?}");
        }
        assert!(took < 1.1 * least, "{replicas} replicas: {took} s of {least} s");
    }
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
fn contributions_that_are_not_finite_are_refused_by_name() {
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
    assert!(world.means.is_empty() && applied(&world) == 0, "no member had contributed");
    assert!(world.replicas.iter().all(|replica| replica.averaging.counts().empty > 0));
    assert!(
        world.replicas.iter().all(|replica| replica.averaging.counts().complete == 6),
        "so they count next time"
    );
}

// --- Single parts -------------------------------------------------------------------------------------------

const SECOND: u64 = 1_000_000_000;

/// A mean with the contributions of the first three members.
const ACCEPT: Content = Content::Accept { contributors: MemberSet(0b111) };

/// A member has accepted this mean with these contributions.
fn vote(contributors: u64, mean: u32) -> Content {
    let contributors = MemberSet(contributors);
    Content::Accepted { mean: MeanId { contributors, digest: digest(u64::from(mean)) } }
}

fn machine(index: usize) -> Averaging<u32> {
    let digest = |numbers: &u32| (4, digest(u64::from(*numbers)));
    Averaging::new(Config { me: member(index), fragments: 20, size: FragmentSize::default(), digest })
}

fn tell(averaging: &mut Averaging<u32>, at: u64, event: Event<u32>) -> Vec<Action<u32>> {
    averaging.handle(Time(at * SECOND), event);
    let actions = std::iter::from_fn(|| averaging.poll_action());
    actions.filter(|action| !is_copying(action)).collect()
}

/// The news that a copy is under way: it precedes every snapshot.
fn is_copying(action: &Action<u32>) -> bool {
    matches!(action, Action::Send { message, .. } if message.content == Content::Copying)
}

fn reply(reply: Reply<u32>) -> Event<u32> {
    Event::Replied(reply)
}

/// Replica `me` of `count`, in round 1 with a snapshot: part `i` is `10 me + i`.
fn in_round(me: usize, count: usize) -> (Averaging<u32>, Vec<Action<u32>>) {
    let mut averaging = machine(me);
    tell(&mut averaging, 0, Event::Members((0..count).rev().map(member).collect()));
    let wanted = tell(&mut averaging, 0, Event::Round(Round(1)));
    let parts = count as u32;
    let snapshot = Job::Snapshot { round: Round(1), fragment: FragmentIndex(1), parts };
    assert_eq!(wanted, [Action::Execute(snapshot)]);
    let own = (0..parts).map(|part| 10 * me as u32 + part).collect();
    let begun = tell(
        &mut averaging,
        0,
        reply(Reply::Snapshot { round: Round(1), uncarried: 2, weight: 2, parts: own }),
    );
    (averaging, begun)
}

/// The job that drops the snapshot of round 1.
fn finish() -> Action<u32> {
    Action::Execute(Job::Finish { round: Round(1), fragment: FragmentIndex(1), complete: false })
}

fn begins(actions: &[Action<u32>], expected: Round) -> bool {
    matches!(actions, [Action::Execute(Job::Snapshot { round, .. })] if *round == expected)
}

fn message(averaging: &Averaging<u32>, part: u32, attempt: u32, content: Content) -> AveragingMessage {
    let group = averaging.current.as_ref().unwrap().group.id;
    AveragingMessage { group, part: PartIndex(part), attempt: Attempt(attempt), content }
}

fn send(to: usize, message: AveragingMessage, payload: u32) -> Action<u32> {
    Action::Send { to: member(to).peer, message, payload }
}

fn received(from: usize, message: &AveragingMessage, payload: u32) -> Event<u32> {
    Event::Received { from: member(from), message: message.clone(), payload }
}

/// `averaging` receives a message of a member, with these numbers if the content has a payload.
fn hear(
    averaging: &mut Averaging<u32>,
    from: usize,
    (part, attempt): (u32, u32),
    content: Content,
    numbers: u32,
) -> Vec<Action<u32>> {
    let payload = if content.has_payload() { numbers } else { 0 };
    let message = message(averaging, part, attempt, content);
    tell(averaging, 1, received(from, &message, payload))
}

#[test]
fn one_member_has_nothing_to_do() {
    let mut averaging = machine(0);
    assert_eq!(tell(&mut averaging, 0, Event::Members(vec![member(0)])), []);
    assert_eq!(tell(&mut averaging, 0, Event::Round(Round(3))), []);
    assert_eq!(averaging.poll_timeout(), None);
    let begun = tell(&mut averaging, 1, Event::Members(vec![member(0), member(1)]));
    assert!(begins(&begun, Round(3)), "{begun:?}");
}

#[test]
fn an_owner_reduces_proposes_and_chooses() {
    let (mut owner, begun) = in_round(0, 2);
    let contribution = Content::Contribution { weight: 2 };
    assert_eq!(begun, [send(1, message(&owner, 1, 0, contribution), 1)]);

    let reduce = hear(&mut owner, 1, (0, 0), Content::Contribution { weight: 5 }, 10);
    let (round, part, attempt) = (Round(1), PartIndex(0), Attempt(0));
    let inputs = vec![(2, 0), (5, 10)];
    assert_eq!(reduce, [Action::Execute(Job::Reduce { round, part, attempt, own: 0, inputs })]);

    let proposed = tell(&mut owner, 1, reply(Reply::Reduced { round, part, attempt, outcome: Ok(77) }));
    let accept = Content::Accept { contributors: MemberSet(0b11) };
    assert_eq!(proposed, [send(1, message(&owner, 0, 0, accept), 77)]);

    let chosen = hear(&mut owner, 1, (0, 0), vote(0b11, 77), 0);
    let apply =
        Action::Execute(Job::Apply { round: Round(1), part: PartIndex(0), mean: 77, contributed: true });
    assert_eq!(chosen, [apply]);
    let counted = tell(&mut owner, 1, reply(Reply::Applied { round, part, applied: true }));
    assert_eq!(counted, [Action::Counted(Note::Applied(round, part))]);
}

/// The votes that a replica sends to the others of a group.
fn votes(averaging: &Averaging<u32>, to: &[usize], part: u32, mean: u32) -> Vec<Action<u32>> {
    to.iter().map(|&to| send(to, message(averaging, part, 0, vote(0b111, mean)), 0)).collect()
}

#[test]
fn a_member_weighs_no_more_than_feeders_have_confirmed() {
    let mut owner = machine(0);
    tell(&mut owner, 0, Event::Members(vec![member(0), member(1)]));
    let weights = vec![(member(0).peer, 9), (member(1).peer, 3)];
    tell(&mut owner, 0, Event::Weights(weights));
    tell(&mut owner, 0, Event::Round(Round(1)));
    let parts = vec![5, 6];
    tell(&mut owner, 0, reply(Reply::Snapshot { round: Round(1), uncarried: 2, weight: 2, parts }));
    let reduce = hear(&mut owner, 1, (0, 0), Content::Contribution { weight: WEIGHT_MAX }, 10);
    let (round, part, attempt) = (Round(1), PartIndex(0), Attempt(0));
    let inputs = vec![(2, 5), (3, 10)];
    assert_eq!(reduce, [Action::Execute(Job::Reduce { round, part, attempt, own: 5, inputs })]);
}

#[test]
fn a_mean_waits_until_it_is_chosen_in_any_order_of_arrival() {
    let apply = |part, mean| {
        Action::Execute(Job::Apply { round: Round(1), part: PartIndex(part), mean, contributed: true })
    };
    let (mut averaging, _) = in_round(0, 3);
    let accepted = hear(&mut averaging, 1, (1, 0), ACCEPT, 5);
    assert_eq!(accepted, votes(&averaging, &[1, 2], 1, 5), "the third has not voted");
    assert_eq!(hear(&mut averaging, 1, (1, 0), ACCEPT, 5), [], "it came twice");
    assert_eq!(hear(&mut averaging, 2, (1, 0), vote(0b111, 5), 0), [apply(1, 5)]);

    assert_eq!(hear(&mut averaging, 1, (2, 0), vote(0b111, 6), 0), []);
    let accepted = hear(&mut averaging, 2, (2, 0), ACCEPT, 6);
    assert_eq!(accepted, [votes(&averaging, &[1, 2], 2, 6), vec![apply(2, 6)]].concat());
}

#[test]
fn a_majority_is_enough_once_the_others_are_gone_or_silent_for_long() {
    let applies = |actions: &[Action<u32>]| actions.iter().any(|action| matches!(action, Action::Execute(_)));
    let (mut averaging, _) = in_round(0, 3);
    hear(&mut averaging, 1, (1, 0), ACCEPT, 5);
    assert!(applies(&tell(&mut averaging, 2, Event::PeerLost(member(2)))), "gone");

    let (mut averaging, _) = in_round(0, 3);
    hear(&mut averaging, 1, (1, 0), ACCEPT, 5);
    let waits = TIMEOUT_FIRST.as_secs();
    assert!(!applies(&tell(&mut averaging, waits, Event::Timeout)));
    assert!(applies(&tell(&mut averaging, waits + 1, Event::Timeout)), "silent");
}

#[test]
fn a_mean_is_not_applied_if_a_member_has_accepted_another_of_its_owner() {
    let (mut averaging, _) = in_round(0, 3);
    hear(&mut averaging, 1, (1, 0), ACCEPT, 5);
    let heard = hear(&mut averaging, 2, (1, 0), vote(0b111, 6), 0);
    let divided = Note::TwoMeans { owner: member(1), voter: member(2) };
    assert_eq!(
        heard,
        [divided, Note::GivenUp(Round(1), PartIndex(1))].map(Action::Counted),
        "no vote changes"
    );
    while let Some((at, _)) = averaging.poll_timeout() {
        averaging.handle(at, Event::Timeout);
        while let Some(action) = averaging.poll_action() {
            assert!(!matches!(action, Action::Execute(Job::Apply { .. })), "{action:?}");
        }
    }
    assert_eq!(averaging.round(), None);
}

#[test]
fn the_next_owner_proposes_a_mean_again_that_may_have_been_chosen() {
    // Member 3 has accepted the mean of owner 1, which then dies. Member 4 is late.
    let (mut averaging, _) = in_round(2, 5);
    let actions = tell(&mut averaging, 2, Event::PeerLost(member(1)));
    let accept = |content: &Content| matches!(content, Content::Accept { .. });
    let proposes = |action: &Action<u32>| match action {
        Action::Send { message, payload: 5, .. } => accept(&message.content),
        _ => false,
    };
    assert!(!actions.iter().any(proposes));
    hear(&mut averaging, 0, (1, 1), Content::Contribution { weight: 3 }, 1);
    let promise = Content::Promise { of: Attempt(0), contributors: MemberSet(0b111) };
    let actions = hear(&mut averaging, 3, (1, 1), promise, 5);
    assert!(!actions.iter().any(proposes), "not before all that are there are heard: {actions:?}");
    let actions = tell(&mut averaging, 2, Event::PeerLost(member(4)));
    assert!(actions.iter().any(proposes), "{actions:?}");

    // So does an owner that has accepted it itself.
    let (mut averaging, _) = in_round(2, 5);
    hear(&mut averaging, 1, (1, 0), ACCEPT, 5);
    tell(&mut averaging, 2, Event::PeerLost(member(1)));
    let actions = tell(&mut averaging, 60, Event::Timeout);
    assert!(actions.iter().any(proposes), "{actions:?}");
}

#[test]
fn a_member_that_has_turned_to_the_next_owner_accepts_nothing_from_the_former_owner() {
    let (mut averaging, _) = in_round(0, 3);
    tell(&mut averaging, 2, Event::PeerLost(member(1)));
    let late = hear(&mut averaging, 1, (1, 0), ACCEPT, 5);
    assert_eq!(late, [Action::Counted(Note::Late(member(1)))]);
}

#[test]
fn the_dead_strangers_and_other_lists_are_not_heard() {
    let (mut averaging, _) = in_round(0, 3);
    let contribution = message(&averaging, 0, 0, Content::Contribution { weight: 1 });
    let later = Instance::new(member(1).peer, Incarnation(2));
    let dead = Event::Received { from: later, message: contribution.clone(), payload: 1 };
    assert_eq!(tell(&mut averaging, 1, dead), [Action::Counted(Note::Stranger(later))]);

    let mut other = contribution;
    other.group.members ^= 1;
    let noted = Action::Counted(Note::OtherMembers(member(1)));
    let heard = tell(&mut averaging, 1, received(1, &other, 1));
    assert_eq!(heard, [noted, send(1, not_a_member(&other), 0)]);

    let odd = [
        (0, 9, vote(1, 1)),
        (9, 0, vote(1, 1)),
        (0, u32::MAX, Content::Contribution { weight: 1 }),
        (0, 0, Content::Contribution { weight: u64::MAX }),
        (0, 0, Content::Promise { of: Attempt(0), contributors: MemberSet::default() }),
        (2, 0, ACCEPT),
    ];
    for (part, attempt, content) in odd {
        let heard = hear(&mut averaging, 1, (part, attempt), content.clone(), 1);
        assert_eq!(heard, [Action::Counted(Note::Malformed(member(1)))], "{content:?}");
    }
}

#[test]
fn too_few_left_end_the_round_at_once() {
    let (mut averaging, _) = in_round(0, 2);
    let actions = tell(&mut averaging, 1, Event::Members(vec![member(0)]));
    assert_eq!(actions.last(), Some(&finish()));
    assert_eq!(averaging.poll_timeout(), None);
}

#[test]
fn a_newer_round_gives_silent_owners_no_second_chance() {
    let (mut averaging, _) = in_round(0, 3);
    assert_eq!(tell(&mut averaging, 1, Event::Round(Round(4))), []);
    for _ in 0..6 {
        if let Some((at, _)) = averaging.poll_timeout() {
            averaging.handle(at, Event::Timeout);
        }
        while let Some(action) = averaging.poll_action() {
            if let Action::Execute(Job::Snapshot { round, .. }) = action {
                assert_eq!(round, Round(4));
                return;
            }
        }
    }
    panic!("round 4 did not begin");
}

#[test]
fn early_messages_are_kept_but_not_without_end() {
    let (mut averaging, _) = in_round(0, 2);
    let mut early = message(&averaging, 0, 0, Content::Contribution { weight: 1 });
    early.group.round = Round(2);
    for kept in 0..2 * NUMBERS_PER_MEMBER {
        let actions = tell(&mut averaging, 1, received(1, &early, 1));
        assert_eq!(actions.is_empty(), kept < NUMBERS_PER_MEMBER);
    }
    tell(&mut averaging, 1, Event::Members(vec![member(0), member(2)]));
    tell(&mut averaging, 1, Event::Members(vec![member(0), member(1)]));
    assert_eq!(tell(&mut averaging, 1, received(1, &early, 1)), []);
    let begun = tell(&mut averaging, 2, Event::Round(Round(2)));
    assert!(begins(&begun, Round(2)), "{begun:?}");
    let (round, parts) = (Round(2), vec![1, 2]);
    let actions = tell(&mut averaging, 2, reply(Reply::Snapshot { round, uncarried: 1, weight: 1, parts }));
    let reduces = |action: &Action<u32>| matches!(action, Action::Execute(Job::Reduce { .. }));
    assert!(actions.iter().any(reduces), "{actions:?}");
}

#[test]
fn messages_of_rounds_far_ahead_take_no_room() {
    let (mut averaging, _) = in_round(0, 2);
    let mut ahead = message(&averaging, 0, 0, Content::Contribution { weight: 1 });
    for round in 2..20 {
        ahead.group.round = Round(round);
        let actions = tell(&mut averaging, 1, received(1, &ahead, 1));
        assert_eq!(actions.is_empty(), round <= 1 + ROUNDS_AHEAD_MAX, "round {round}");
    }
}

/// The answer of a replica that takes no part in the group.
fn not_a_member(message: &AveragingMessage) -> AveragingMessage {
    AveragingMessage { content: Content::NotAMember, ..message.clone() }
}

#[test]
fn a_replica_that_is_not_in_a_round_says_so_and_no_member_waits_for_it() {
    // Member 1 takes no part in this round: it joined after the round had begun.
    let mut joiner = machine(1);
    tell(&mut joiner, 0, Event::Members((0..3).map(member).collect()));
    let (mut averaging, begun) = in_round(0, 3);
    let contribution = begun.into_iter().find_map(|action| match action {
        Action::Send { to, message, .. } if to == member(1).peer => Some(message),
        _ => None,
    });
    let contribution = contribution.unwrap();
    let heard = tell(&mut joiner, 1, received(0, &contribution, 1));
    assert_eq!(heard, [], "the round may be called here too");
    let declined = tell(&mut joiner, 1, Event::Past(Round(1)));
    let answer = not_a_member(&contribution);
    assert_eq!(declined, [send(0, answer.clone(), 0)]);

    let answered = tell(&mut averaging, 1, received(1, &answer, 0));
    let next = Action::Counted(Note::Reassigned(Round(1), PartIndex(1)));
    assert_eq!(answered.last(), Some(&next), "its part has another owner at once: {answered:?}");
    let last = tell(&mut averaging, 1, received(2, &answer, 0));
    assert_eq!(last.last(), Some(&finish()), "one of three chooses nothing");
}

#[test]
fn a_lost_member_is_left_out_from_the_beginning_until_it_speaks() {
    let (mut averaging, _) = in_round(0, 2);
    tell(&mut averaging, 1, Event::PeerLost(member(1)));
    assert_eq!(tell(&mut averaging, 2, Event::Round(Round(2))), [], "there is no member to average with");
    let contribution = AveragingMessage {
        group: GroupId { round: Round(2), members: 1 },
        part: PartIndex(0),
        attempt: Attempt(0),
        content: Content::Contribution { weight: 1 },
    };
    let heard = tell(&mut averaging, 3, received(1, &contribution, 1));
    let late = Action::Counted(Note::Late(member(1)));
    assert_eq!(heard, [late, send(1, not_a_member(&contribution), 0)]);
    let begun = tell(&mut averaging, 3, Event::Round(Round(3)));
    assert!(begins(&begun, Round(3)), "{begun:?}");

    tell(&mut averaging, 4, Event::PeerLost(member(1)));
    tell(
        &mut averaging,
        4,
        reply(Reply::Snapshot { round: Round(3), uncarried: 1, weight: 1, parts: vec![1, 2] }),
    );
    assert_eq!(averaging.round(), None, "the round is over before it is copied");
    assert_eq!(tell(&mut averaging, 4, Event::Round(Round(4))), []);
    let later = 4 + LEFT_OUT_FOR.as_secs();
    let begun = tell(&mut averaging, later, Event::Round(Round(5)));
    assert!(begins(&begun, Round(5)), "it may live: {begun:?}");
}

#[test]
fn no_snapshot_no_round() {
    let mut averaging = machine(0);
    tell(&mut averaging, 0, Event::Members(vec![member(0), member(1)]));
    tell(&mut averaging, 0, Event::Round(Round(1)));
    let (at, reason) = averaging.poll_timeout().unwrap();
    assert_eq!(reason, Reason::SnapshotExpires);
    averaging.handle(at, Event::Timeout);
    assert_eq!(averaging.poll_action(), Some(finish()));
}

/// A round of `parts` parts of 3 members, in which member 2 says nothing and member 1 says what `says` makes of the
/// second. Returns the second in which the round is over, at most 3,600.
fn round_with(parts: u32, says: impl Fn(u64) -> (u32, Content)) -> u64 {
    let digest = |numbers: &u32| (4, digest(u64::from(*numbers)));
    let size = FragmentSize { bytes: 0, parts_min: parts };
    let mut averaging = Averaging::new(Config { me: member(0), fragments: 20, size, digest });
    tell(&mut averaging, 0, Event::Members((0..3).map(member).collect()));
    tell(&mut averaging, 0, Event::Round(Round(1)));
    let copies = (0..parts).collect();
    let mut actions = tell(
        &mut averaging,
        0,
        reply(Reply::Snapshot { round: Round(1), uncarried: 2, weight: 2, parts: copies }),
    );
    for second in 1..3_600 {
        let done = actions.into_iter().filter_map(|action| match action {
            Action::Execute(Job::Reduce { round, part, attempt, .. }) => {
                Some(reply(Reply::Reduced { round, part, attempt, outcome: Ok(7) }))
            }
            Action::Execute(Job::Apply { round, part, .. }) => {
                Some(reply(Reply::Applied { round, part, applied: true }))
            }
            _ => None,
        });
        let done: Vec<_> = done.collect();
        actions = done.into_iter().flat_map(|event| tell(&mut averaging, second, event)).collect();
        if averaging.round().is_none() {
            return second;
        }
        let (part, content) = says(second);
        let said = message(&averaging, part, 0, content);
        actions.extend(tell(&mut averaging, second, received(1, &said, 5)));
        actions.extend(tell(&mut averaging, second, Event::Timeout));
    }
    3_600
}

#[test]
fn a_member_that_repeats_its_numbers_holds_up_no_round() {
    let contribution = Content::Contribution { weight: 1 };
    let repeated = [(0, contribution), (1, ACCEPT)];
    for (part, content) in repeated {
        let over = round_with(3, |_| (part, content.clone()));
        assert!(over < 120, "{content:?} is repeated for {over} s");
    }
}

#[test]
fn a_member_that_sends_its_numbers_drop_by_drop_holds_up_no_round() {
    // It contributes to another part that this replica owns every 4 s, and makes no mean of its own parts.
    let over = round_with(600, |second| (3 * (second / 4) as u32 % 600, Content::Contribution { weight: 1 }));
    assert!(over < 1_200, "{over} s");
}
