//! Stories and properties over seeds. A failure names its seed; the seed gives the run again.

use std::collections::BTreeMap;

use super::scenario::{Measure, Scenario};
use super::*;
use crate::Admission;
use crate::feeder::Outcome;

const SEEDS: u64 = 40;

/// Plays a scenario and checks what holds in every run: one outcome each, nothing lost, nothing left behind.
fn check(scenario: Scenario) -> World {
    let (seed, total) = (scenario.seed, scenario.total);
    let mut world = World::new(scenario);
    world.run();
    let judge = &world.judge;
    assert_eq!(judge.outcomes.len() as u64, total, "seed {seed}: an outcome each");
    assert!(judge.injected.iter().all(|id| judge.outcomes.contains_key(id)), "seed {seed}: no outcome");
    assert_eq!((world.held(), world.stashes()), (0, 0), "seed {seed}: left behind");
    let counts = world.feeder().counts();
    assert_eq!((counts.in_flight, counts.lost, counts.ungranted), (0, 0, 0), "seed {seed}");
    assert_eq!(counts.finished + counts.refused, total, "seed {seed}");
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

/// Ways to recover that random faults must reach, each in a hundredth of the seeds at least.
const PATHS: [&str; 14] = [
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
];

fn play_on_all_cores(seeds: std::ops::Range<u64>) -> BTreeMap<&'static str, u64> {
    let threads = std::thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
    let play = |thread| {
        let mut reached: BTreeMap<&str, u64> = BTreeMap::new();
        for seed in seeds.clone().filter(|seed| seed % threads == thread) {
            let world = check(Scenario::drawn(seed));
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
