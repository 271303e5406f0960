//! Stories and properties over seeds. A failure names its seed; the seed gives the run again.

use std::collections::BTreeMap;

use super::scenario::{Measure, Scenario};
use super::*;
use crate::Admission;
use crate::StageIndex;
use crate::feeder::{Carrying, Outcome};
use crate::mutation::Mutation;

const SEEDS: u64 = 40;

/// Plays a scenario and checks what holds in every run: one outcome each, nothing lost, nothing left behind.
fn check(scenario: Scenario) -> World {
    let (seed, total, stops) = (scenario.seed, scenario.total, scenario.stop_at.is_some());
    let mut world = World::new(scenario);
    world.run();
    let judge = &world.judge;
    let total = if stops { judge.injected.len() as u64 } else { total };
    let mut nobody_knew = false;
    for id in judge.injected.keys().filter(|id| !judge.outcomes.contains_key(id)) {
        assert!(judge.unknown(*id), "seed {seed}: {id} has no outcome");
        nobody_knew = true;
    }
    if world.feeders.len() == 1 {
        assert_eq!(judge.outcomes.len() as u64, total, "seed {seed}: an outcome each");
    }
    assert_eq!((world.held(), world.stashes()), (0, 0), "seed {seed}: left behind");
    let counts = world.feeder().counts();
    assert_eq!((counts.in_flight, counts.lost, counts.ungranted), (0, 0, 0), "seed {seed}");
    assert_eq!(counts.finished + counts.refused + counts.inherited, total, "seed {seed}");
    if nobody_knew {
        world.judge.path("nobody knew of it");
    }
    world
}

fn admission(seed: u64) -> Admission {
    if seed.is_multiple_of(2) { Admission::Asynchronous(7) } else { Admission::Synchronous(4) }
}

fn scenario(seed: u64) -> Scenario {
    Scenario::new(
        seed,
        u16::try_from(1 + seed % 4).unwrap(),
        1 + u16::try_from(seed % 3).unwrap(),
        50,
        admission(seed),
    )
}

#[test]
fn a_calm_run_finishes_everything_once() {
    for seed in 0..SEEDS {
        let world = check(scenario(seed));
        let counts = world.feeder().counts();
        assert_eq!(
            (counts.finished, counts.resent, counts.denied, counts.foreign),
            (50, 0, 0, 0),
            "seed {seed}"
        );
        assert_eq!(world.judge.applied.len(), 50 * usize::from(world.scenario.stages), "seed {seed}");
        assert_eq!(world.judge.paths.get("relayed"), None, "seed {seed}");
    }
}

#[test]
fn the_asynchronous_window_fills_and_a_group_is_never_exceeded() {
    let fills = check(Scenario::new(1, 3, 1, 200, Admission::Asynchronous(9)));
    assert_eq!(fills.judge.in_flight_max, 9);
    let groups = check(Scenario::new(1, 3, 2, 202, Admission::Synchronous(5)));
    assert_eq!(groups.judge.in_flight_max, 5);
}

#[test]
fn refusals_are_counted_once() {
    let mut refused = 0;
    for seed in 0..SEEDS {
        let world = check(Scenario { refused_per_mille: 40, ..scenario(seed) });
        refused += world.feeder().counts().refused;
    }
    assert!(refused > SEEDS);
}

#[test]
fn no_layout_of_slots_blocks_a_run() {
    for seed in 0..SEEDS {
        for slots in [vec![1], vec![1, 7], vec![3, 1, 2]] {
            check(Scenario { slots, ..scenario(seed) });
        }
    }
}

#[test]
fn evaluations_hold_training_and_measure_the_same_text_again() {
    for seed in 0..SEEDS {
        let measure = |ms, purpose| Measure { at: Duration::from_millis(ms), count: 12, purpose };
        let evaluations = vec![
            measure(90, Purpose::Evaluate),
            measure(91, Purpose::EvaluateCut),
            measure(400, Purpose::Evaluate),
        ];
        let world = check(Scenario { evaluations, ..scenario(seed) });
        let measured = &world.judge.measured;
        assert_eq!(measured.len(), 3, "seed {seed}");
        for figure in measured {
            assert_eq!((figure.answered, figure.unanswered), (12, 0), "seed {seed}");
            assert_eq!(figure.mean(), Some(2.0), "seed {seed}");
        }
    }
}

#[test]
fn garbage_neither_panics_nor_leaks() {
    for seed in 0..SEEDS {
        check(Scenario { garbage_per_mille: 300, refused_per_mille: 5, ..scenario(seed) });
    }
}

/// Seeds of random faults; `SWARMLINE_SEEDS=first..end` plays others than the slice for every day.
#[test]
fn nothing_is_lost_whatever_happens() {
    let seeds = std::env::var("SWARMLINE_SEEDS").unwrap_or_else(|_| "0..300".to_owned());
    let (first, end) = seeds.split_once("..").expect("SWARMLINE_SEEDS is FIRST..END");
    let (first, end): (u64, u64) = (first.parse().unwrap(), end.parse().unwrap());
    let reached = play_on_all_cores(first..end);
    println!("{} seeds; seeds that reached each path: {reached:#?}", end - first);
    let hundredth = (end - first) / 100;
    for path in PATHS {
        let seeds = reached.get(path).copied().unwrap_or(0);
        assert!(seeds >= hundredth, "only {seeds} seeds reached: {path}");
    }
}

/// The last fault is over after 45 s at the latest; a run ends soon after.
const OVER_BY: Duration = Duration::from_secs(300);

/// Faults that must strike and ways to recover that must be gone, each in a hundredth of the seeds at least.
const PATHS: [&str; 41] = [
    "loud crash",
    "silent crash",
    "leave",
    "loss",
    "wedge",
    "suspension",
    "suspension noticed",
    "delay",
    "broken link",
    "broken feeder link",
    "partition",
    "feeder crash",
    "restarted before it was missed",
    "rejoined",
    "sent again by the feeder",
    "sent again by a replica",
    "restored",
    "found downstream",
    "held told",
    "relayed",
    "claim denied",
    "denied by a holder",
    "busy",
    "asked by the feeder",
    "feeder resumed",
    "revoked",
    "left",
    "refused",
    "succession after a death",
    "succession while the former feeder lives",
    "taken over",
    "continued by a successor",
    "abandoned by a successor",
    "nobody knew of it",
    "yielded to a successor",
    "feeder expelled",
    "resumed by a successor",
    "averaging round",
    "averaged",
    "averaged without a dead member",
    "died in a round",
];

fn play_on_all_cores(seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, u64> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let play = |thread| {
        let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
        for seed in seeds.clone().filter(|seed| seed % threads == thread) {
            let world = check(Scenario::drawn(seed));
            assert!(world.now() < Time(0) + OVER_BY, "seed {seed}: no progress until {:?}", world.now());
            for (name, count) in &world.judge.paths {
                *reached.entry(name).or_default() += u64::from(*count > 0);
            }
        }
        reached
    };
    let mut total: BTreeMap<&str, u64> = BTreeMap::new();
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let play = &play;
                    move || play(thread)
                })
            })
            .collect();
        for worker in workers {
            for (name, count) in worker.join().expect("a seed failed; its number is printed above") {
                *total.entry(name).or_default() += count;
            }
        }
    });
    total
}

/// The first of the drawn seeds in which a broken rule has this symptom, and the whole of it. In others it may have
/// another one first. The rules are about microbatches, so there are no averaging rounds.
fn notice(mutation: Mutation, symptom: &str) -> Option<(u64, String)> {
    (0..MUTATED_SEEDS).find_map(|seed| {
        let scenario = Scenario { mutation: Some(mutation), averaging: None, ..Scenario::drawn(seed) };
        let payload = std::panic::catch_unwind(|| check(scenario)).err()?;
        let message =
            payload.downcast_ref::<String>().map(String::as_str).or(payload.downcast_ref().copied());
        let headline = message.and_then(|message| message.lines().next()).unwrap_or_default().to_owned();
        headline.contains(symptom).then_some((seed, headline))
    })
}

const MUTATED_SEEDS: u64 = 300;

/// Every broken rule is noticed, and by the invariant it is there for.
#[test]
fn broken_rules_are_noticed() {
    let rules = [
        (Mutation::ReleaseEarly, "not over"),
        (Mutation::GrantTwice, "granted twice"),
        (Mutation::SlotEarly, "slots"),
        (Mutation::IgnoreIncarnation, "a start that is gone"),
        (Mutation::OneAttempt, "is sent as"),
        (Mutation::ForwardUnasked, "was not asked"),
    ];
    for (rule, symptom) in rules {
        let (seed, message) = notice(rule, symptom).unwrap_or_else(|| panic!("{rule:?} goes unnoticed"));
        println!("{rule:?} is noticed after {} seeds: {message}", seed + 1);
    }
}

/// Forty minutes of 64 replicas of unequal speed, of which one dies every half minute and comes back minutes later.
fn swarm(seed: u64) -> Scenario {
    let minute = Duration::from_secs(60);
    let mut rng = Rng::new(seed);
    let mut scenario = Scenario::new(seed, 8, 8, 1_000_000, Admission::Asynchronous(200));
    scenario.router = crate::router::Policy::Resident;
    scenario.services = (0..64)
        .map(|_| time_between(&mut rng, Duration::from_millis(100), Duration::from_millis(400)))
        .collect();
    scenario.faults = (1..80)
        .map(|half_minutes| {
            let replica = usize::try_from(rng.below(64)).unwrap();
            let back_after = Some(time_between(&mut rng, minute, 5 * minute));
            let crash = Fault::Crash { replica, loud: rng.chance(1, 2), back_after };
            (half_minutes * minute / 2, crash)
        })
        .collect();
    scenario.lease_count = 1_024;
    scenario.ask_after = Duration::from_secs(30);
    scenario.stop_at = Some(40 * minute);
    scenario.steps_max = 50_000_000;
    scenario
}

/// Microbatches a second the narrowest stage can do.
fn capacity(world: &World) -> f64 {
    let stages = (0..world.scenario.stages).map(|stage| {
        let replicas = world.replicas.iter().filter(|replica| {
            replica.stage.as_ref().is_some_and(|machine| machine.config().stage == StageIndex(stage))
        });
        let rate =
            |replica: &ReplicaNode| 1.0 / (replica.service * executor::FORWARDS_PER_MICROBATCH).as_secs_f64();
        replicas.map(rate).sum::<f64>()
    });
    stages.fold(f64::INFINITY, f64::min)
}

/// The wall time is printed and nothing follows from it.
#[allow(clippy::disallowed_types, clippy::disallowed_methods)]
#[test]
fn a_swarm_of_64_loses_nothing_in_forty_minutes() {
    let began = std::time::Instant::now();
    let world = check(swarm(64));
    let counts = world.feeder().counts();
    let seconds = world.now().since(Time(0)).as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = counts.finished as f64 / seconds;
    let bound = capacity(&world);
    println!(
        "{seconds:.0} s of 64 replicas in {:.1} s, {} steps",
        began.elapsed().as_secs_f64(),
        world.steps
    );
    println!("{rate:.1} microbatches a second, {:.2} of the bound {bound:.1}", rate / bound);
    println!("{counts:?}\n{:#?}", world.judge.paths);
    assert!(seconds >= 2_400.0 && rate > bound / 2.0);
}

#[test]
fn a_seed_gives_the_run_again() {
    let play = |seed| {
        let mut world = World::new(Scenario::drawn(seed));
        world.run();
        (world.now(), world.steps, world.judge.outcomes.clone(), world.judge.applied.clone())
    };
    assert_eq!(play(8), play(8));
    assert_ne!(play(8), play(12));
}

#[test]
fn a_calm_run_ends_the_run() {
    let mut world = check(scenario(2));
    while world.coordinator().state() != RunState::Finished {
        world.step();
    }
    assert!(world.judge.outcomes.values().all(|outcome| matches!(outcome, Outcome::Finished { .. })));
}

#[test]
fn a_calm_run_ends_with_equal_replicas() {
    for seed in 0..SEEDS {
        let averaging = Some(Carrying { every: 5 + seed % 7, sets: 1 + seed % 3 });
        // Slow enough that everybody serves before it is over.
        let services = vec![Duration::from_millis(100)];
        let world = check(Scenario { averaging, services, ..scenario(seed) });
        let agree = (0..world.scenario.stages).all(|stage| world.agree(StageIndex(stage)));
        assert!(agree, "seed {seed}");
        let rounds = world.judge.paths.get("averaged").copied().unwrap_or(0);
        assert_eq!(rounds > 0, world.scenario.replicas > 1, "seed {seed}");
    }
}
