//! One feeder of two lies. The microbatches of the other end all the same, each once, and replicas keep little.

use super::check;
use crate::sim::{Fault, FeederAct, Scenario, World};
use crate::{Admission, Duration, Feeder, Time};

const SECOND: Duration = Duration::from_secs(1);

/// The first feeder of two lies from second 4 on, for so long.
fn lying(seed: u64, act: FeederAct, total: u64, lasts: Duration) -> Scenario {
    let mut scenario = Scenario::new(seed, 3, 2, total, Admission::Asynchronous(8))
        .with_service_times(vec![Duration::from_millis(50)])
        .with_averaging(20, 2)
        .with_fault(4 * SECOND, Fault::LyingFeeder { act, lasts });
    scenario.more_feeders = 1;
    scenario.steps_max = 4_000_000;
    scenario
}

#[test]
fn a_feeder_that_lies_costs_the_others_no_microbatch_whatever_it_says() {
    for (act, seed) in FeederAct::ALL.into_iter().flat_map(|act| (0..4).map(move |seed| (act, seed))) {
        let (world, report) = check(lying(seed, act, 300, 20 * SECOND));
        assert!(report.paths.contains_key(act.name()), "{act:?}, seed {seed}");
        let honest = world.model.injected.values().filter(|by| **by > 0).count();
        assert!(honest > 50, "{act:?}, seed {seed}: {honest} microbatches of the honest feeder");
    }
}

/// Microbatches of the honest feeder that finish in a minute, while the other lies, and the most that a replica holds.
fn minute_with_a_liar(act: FeederAct, seed: u64) -> (u64, usize) {
    let mut world = World::new(lying(seed, act, 1_000_000, 3_600 * SECOND)).unwrap();
    let finished = |world: &World| {
        world.feeders[1].machine.as_ref().map(Feeder::counts).map_or(0, |counts| counts.finished)
    };
    let (mut before, mut held_max) = (0, 0);
    while world.now() < Time(0) + 70 * SECOND {
        world.step().unwrap_or_else(|violation| panic!("{violation}"));
        if world.now() < Time(0) + 10 * SECOND {
            before = finished(&world);
        }
        let stages = world.replicas.iter().filter_map(|process| process.replica.as_ref());
        held_max = stages.map(|replica| replica.stage().held()).max().unwrap_or(0).max(held_max);
    }
    (finished(&world) - before, held_max)
}

#[test]
fn what_waits_for_a_lying_feeder_holds_up_no_other() {
    for act in FeederAct::ALL {
        let (finished, held) = minute_with_a_liar(act, 3);
        println!("{act:?}: the other feeder finishes {finished} in a minute, a replica holds {held} at most");
        assert!(finished > 300, "{act:?}: {finished} in a minute");
        assert!(act == FeederAct::NoOutcomes || held < 500, "{act:?}: a replica holds {held}");
    }
}
