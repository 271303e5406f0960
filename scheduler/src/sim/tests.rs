//! Stories and properties over seeds. A failure names its seed; the seed gives the run again.

use super::scenario::{Kill, Measure};
use super::*;
use crate::coordinator::RunState;
use crate::feeder::Outcome;

const SEEDS: u64 = 40;

/// Plays a scenario and checks what holds in every run: one outcome each, nothing held, nothing stashed.
fn check(scenario: Scenario) -> World {
    let (seed, total) = (scenario.seed, scenario.total);
    println!("{scenario:?}");
    let mut world = World::new(scenario);
    world.run();
    let record = world.record();
    assert!(record.outcomes.values().all(|outcomes| outcomes.len() == 1), "seed {seed}: two outcomes");
    let training = record.outcomes.keys().filter(|id| !id.is_evaluation()).count() as u64;
    assert_eq!(training, total, "seed {seed}: an outcome each");
    assert!(
        record.sent.iter().all(|id| record.outcomes.contains_key(id)),
        "seed {seed}: sent without outcome"
    );
    assert_eq!((world.held(), world.stashes()), (0, 0), "seed {seed}: leaked");
    assert_eq!((record.done, record.finished), (1, 1), "seed {seed}: the end is said once");
    let counts = world.feeder().counts();
    assert_eq!(counts.in_flight, 0, "seed {seed}");
    assert_eq!(counts.finished + counts.refused + counts.lost, total, "seed {seed}");
    world
}

fn admission(seed: u64) -> Admission {
    if seed.is_multiple_of(2) { Admission::Asynchronous(7) } else { Admission::Synchronous(4) }
}

fn scenario(seed: u64) -> Scenario {
    Scenario::new(seed, u16::try_from(1 + seed % 4).unwrap(), 50, admission(seed))
}

#[test]
fn a_calm_run_finishes_everything_once() {
    for seed in 0..SEEDS {
        let world = check(scenario(seed));
        let counts = world.feeder().counts();
        assert_eq!(
            (counts.finished, counts.duplicates, counts.late, counts.foreign),
            (50, 0, 0, 0),
            "seed {seed}"
        );
        for stage in world.stages() {
            assert_eq!((stage.counts().done, stage.counts().refused), (50, 0), "seed {seed}");
        }
        assert_eq!(world.coordinator().state(), RunState::Finished);
    }
}

#[test]
fn the_asynchronous_window_fills_and_a_group_is_never_exceeded() {
    let fills = check(Scenario::new(1, 3, 200, Admission::Asynchronous(9)));
    assert_eq!(fills.record().in_flight_max, 9);
    let groups = check(Scenario::new(1, 3, 202, Admission::Synchronous(5)));
    assert_eq!(groups.record().in_flight_max, 5);
}

#[test]
fn a_refusal_is_counted_once_everywhere_it_was_held() {
    let mut total = 0;
    for seed in 0..SEEDS {
        let world = check(Scenario { refused_per_mille: 80, ..scenario(seed) });
        let refused = world.feeder().counts().refused;
        // A job refused after its microbatch was refused already changes nothing, so there may be more jobs.
        assert!(refused <= world.refused_by_executors(), "seed {seed}");
        total += refused;
        assert_eq!(world.feeder().counts().duplicates, 0, "seed {seed}");
        for stage in world.stages() {
            let counts = stage.counts();
            assert!(counts.refused <= refused, "seed {seed}: {counts:?}");
            assert!(counts.done + counts.refused <= 50, "seed {seed}: {counts:?}");
            assert_eq!(counts.unexpected, 0, "seed {seed}");
        }
        let first = world.stages().find(|stage| stage.config().stage == StageIndex(0)).unwrap().counts();
        assert_eq!((first.done, first.refused), (50 - refused, refused), "seed {seed}");
    }
    assert!(total > SEEDS, "{total}");
}

#[test]
fn too_few_slots_refuse_as_busy_and_leak_nothing() {
    let mut busy = 0;
    for seed in 0..SEEDS {
        let world = check(Scenario { slots: 2, ..scenario(seed) });
        busy += world.stages().map(|stage| stage.counts().busy).sum::<u64>();
    }
    assert!(busy > 0);
}

#[test]
fn a_lost_replica_gives_outcomes_to_all_and_its_next_start_serves_again() {
    let mut refused = 0;
    for seed in 0..SEEDS {
        let kills = vec![Kill {
            replica: usize::try_from(seed % 3).unwrap(),
            at: Duration::from_millis(200 + 13 * seed),
            back_after: Some(Duration::from_millis(100 * (seed % 9) + 40)),
        }];
        let world = check(Scenario { kills, ..Scenario::new(seed, 3, 80, admission(seed)) });
        let counts = world.feeder().counts();
        assert_eq!((counts.lost, counts.duplicates), (0, 0), "seed {seed}");
        assert!(counts.finished > 0, "seed {seed}");
        refused += counts.refused;
    }
    assert!(refused > 0);
}

#[test]
fn a_standby_takes_the_stage_of_a_replica_that_never_served() {
    for seed in 0..SEEDS {
        // Killed before the table can tell it what to load.
        let kills = vec![Kill { replica: 1, at: Duration::from_millis(41), back_after: None }];
        let slow = Duration::from_secs(1);
        let scenario = Scenario::new(seed, 2, 10, admission(seed));
        let world = check(Scenario { kills, spares: 1, delay_max: slow, ..scenario });
        assert_eq!(world.feeder().counts().finished, 10, "seed {seed}");
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
        let mut world = World::new(Scenario { evaluations, ..scenario(seed) });
        world.run();
        let measured = &world.record().measured;
        assert_eq!(measured.len(), 3, "seed {seed}");
        for figure in measured {
            assert_eq!((figure.answered, figure.unanswered), (12, 0), "seed {seed}");
            assert_eq!(figure.mean(), Some(2.0), "seed {seed}");
        }
        let evaluated = world.record().outcomes.iter().filter(|(id, _)| id.is_evaluation());
        assert_eq!(evaluated.map(|(_, outcomes)| outcomes.len()).sum::<usize>(), 36, "seed {seed}");
        assert_eq!((world.feeder().counts().finished, world.held()), (50, 0), "seed {seed}");
    }
}

#[test]
fn garbage_neither_panics_nor_leaks() {
    for seed in 0..SEEDS {
        check(Scenario { garbage_per_mille: 500, refused_per_mille: 20, ..scenario(seed) });
    }
}

#[test]
fn everything_at_once() {
    for seed in 0..SEEDS {
        let kill = |replica, ms| Kill {
            replica,
            at: Duration::from_millis(ms),
            back_after: Some(Duration::from_millis(700)),
        };
        let kills = vec![kill(0, 300 + seed), kill(2, 350), kill(1, 9_000)];
        let world = check(Scenario {
            garbage_per_mille: 100,
            refused_per_mille: 30,
            kills,
            ..Scenario::new(seed, 3, 120, admission(seed))
        });
        assert!(world.record().outcomes.values().flatten().any(|o| matches!(o, Outcome::Finished { .. })));
    }
}

#[test]
fn a_seed_gives_the_run_again() {
    let play = |seed| {
        let mut world = World::new(Scenario { refused_per_mille: 50, ..scenario(seed) });
        world.run().clone()
    };
    assert_eq!(play(8), play(8));
    assert_ne!(play(8), play(12));
}
