//! The keeper of a coordinator: what a run says at its end without it, and after a coordinator that died with it.

use swarmline::report::{Event, Incident};

use crate::keep::{coordinate, work};
use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::Swarm;

/// Exit codes.
const FAILED: i32 = 1;
const WRONG_USE: i32 = 2;

#[test]
fn a_run_whose_keeper_cannot_write_ends_in_a_failure_that_says_why_no_model_is_left() {
    let _turn = Swarm::turn();
    let folder = Recipe { steps: 5, ..Recipe::exact() }.write();
    std::fs::create_dir(folder.file("run.run")).unwrap();
    std::fs::write(folder.file("run.run/checkpoints"), "a file is in the way").unwrap();
    let (mut coordinator, invite) = coordinate(&folder, &[]);
    let (mut replicas, mut feeder) = work(&invite);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    replicas.iter_mut().for_each(|replica| assert_eq!(replica.end(), 0, "{}", replica.errors()));
    assert_eq!(coordinator.end(), FAILED, "{}", coordinator.errors());
    let last = coordinator.errors();
    for part in ["its final states are not kept", "check path, free space", "no checkpoint either"] {
        assert!(last.contains(part), "{last}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn the_keeper_of_a_coordinator_takes_the_place_of_the_one_that_died_with_the_coordinator_before() {
    use crate::keep::{keeper_in, kept, kill};

    let _turn = Swarm::turn();
    let folder = Recipe::endless().write();
    let (mut coordinator, invite) = coordinate(&folder, &["--keep-every", "1s"]);
    let _work = work(&invite);
    let before = coordinator.hear("a checkpoint with a loss", |event| match event {
        Event::Kept(kept) if kept.heldout_loss.is_some() => Some(kept),
        _ => None,
    });
    assert_eq!(before.heldout_after, Some(0), "the feeder has measured at its start only: {before:?}");
    kill(keeper_in(&folder).expect("its keeper runs"));
    coordinator.kill();
    let (mut coordinator, again) = coordinate(&folder, &["--keep-every", "1s"]);
    assert_eq!(again, invite);
    assert!(kept(&mut coordinator).microbatches > before.microbatches);
    let is_own_key = |line: &String| {
        let event = serde_json::from_str(line).ok();
        matches!(event, Some(Event::Incident(Incident::KeyInUse { .. } | Incident::KeeperDied { .. })))
    };
    assert!(!coordinator.lines().iter().any(is_own_key), "{:?}", coordinator.lines());
}

#[test]
fn the_coordinator_of_weights_that_stay_split_says_how_their_stages_are_kept() {
    let _turn = Swarm::turn();
    let more = "[policy]\nweights = \"split\"".to_owned();
    let folder = Recipe { more, ..Recipe::endless() }.write();
    let (mut coordinator, _) = coordinate(&folder, &[]);
    let (last, command) = coordinator.hear("how stages are kept", |event| match event {
        Event::WeightsStaySplit { last_stage, command } => Some((last_stage, command)),
        _ => None,
    });
    assert_eq!(last, 3);
    let target = folder.argument("kept");
    let command = command.replace("FOLDER", &target).replace("--stage S", "--stage 1");
    let arguments = command.split(' ').skip(1).chain(["--json", "--leash"]);
    let mut keeper = Process::start("keeper", arguments);
    let stages = keeper.hear("that it keeps", |event| match event {
        Event::Keeping(keeping) => Some(keeping.stages),
        _ => None,
    });
    assert_eq!(stages, [1]);
}

#[test]
fn an_interval_of_checkpoints_without_a_keeper_is_refused() {
    let folder = Recipe::endless().write();
    let run = folder.run_file();
    let mut refused =
        Process::start("coordinator", ["coordinator", "--run", &run, "--no-keeper", "--keep-every", "5s"]);
    assert_eq!(refused.end(), WRONG_USE);
    assert!(refused.errors().contains("--keep-every"), "{}", refused.errors());
}
