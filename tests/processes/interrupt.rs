//! Ctrl-C, at any moment, to any process.

use swarmline::report::{Event, Incident};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{Swarm, account, last_word, serving};

/// Exit code of a process that was stopped before its work was done.
const INTERRUPTED: i32 = 130;

#[test]
fn a_replica_leaves_before_the_run_begins() {
    let mut swarm = Swarm::coordinate(&Recipe::exact());
    swarm.join(&[]);
    swarm.replicas[0].interrupt();
    assert_eq!(swarm.replicas[0].end(), 0);
    swarm.coordinator.interrupt();
    assert_eq!(swarm.coordinator.end(), INTERRUPTED);
}

#[test]
fn a_replica_leaves_a_run_that_then_holds_until_another_takes_its_stage() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    progress(&mut feeder);
    swarm.replicas[1].interrupt();
    assert_eq!(swarm.replicas[1].end(), 0);
    assert!(last_word(&mut swarm.replicas[1]).done > 0, "it left in the middle of the run");
    hear_that_no_replica_serves(1, &mut feeder);

    let mut successor = swarm.start_replica("successor", &[]);
    assert_eq!(serving(&mut successor), 1);
    progress(&mut feeder);
    let lost = stop(&mut feeder);
    assert_eq!(lost, 0, "the microbatches of the first replica are finished or refused");
    successor.interrupt();
    assert_eq!(successor.end(), 0);
    assert!(last_word(&mut successor).done > 0, "the run went on through it");
}

#[test]
fn a_feeder_accounts_for_everything_and_leaves() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    progress(&mut feeder);
    let lost = stop(&mut feeder);
    assert_eq!(lost, 0, "the microbatches in flight have their outcome");
    swarm.coordinator.interrupt();
    assert_eq!(swarm.coordinator.end(), INTERRUPTED);
}

#[test]
fn a_feeder_stops_although_its_coordinator_is_gone() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    progress(&mut feeder);
    swarm.coordinator.kill();
    assert_eq!(stop(&mut feeder), 0, "the microbatches in flight have their outcome");
}

#[test]
fn a_second_interrupt_ends_a_departure_at_once() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    progress(&mut feeder);
    // The replica waits for outcomes of the microbatches that it holds.
    feeder.suspend();
    let replica = &mut swarm.replicas[0];
    replica.interrupt();
    replica.hear("that it leaves", |event| matches!(event, Event::Leaving { .. }).then_some(()));
    replica.interrupt();
    assert_eq!(replica.end(), INTERRUPTED);
    feeder.resume();
}

#[test]
fn training_in_one_process_stops() {
    let folder = Recipe::endless().write();
    let run_file = folder.run_file();
    let mut train = Process::start("train", ["train", "--run", &run_file, "--threads", "1", "--json"]);
    progress(&mut train);
    train.interrupt();
    assert_eq!(train.end(), INTERRUPTED);
}

#[test]
fn a_demo_takes_all_its_processes_along() {
    let folder = Recipe::exact().write();
    let text = folder.argument("text");
    let mut demo = Process::start("demo", ["demo", "--data", &text, "--steps", "1000000"]);
    demo.hear_error("held-out loss");
    demo.interrupt();
    assert_eq!(demo.end(), INTERRUPTED);
}

/// Waits until training has gone on from now.
fn progress(process: &mut Process) {
    let now = process.moment();
    process.hear_since(now, "progress", |event| matches!(event, Event::Progress(_)).then_some(()));
}

/// Waits until a feeder reports that this stage has no replica.
fn hear_that_no_replica_serves(stage: u16, feeder: &mut Process) {
    feeder.hear("that the run holds", |event| match event {
        Event::Incident(Incident::StagesUnserved { stages }) => (stages == [stage]).then_some(()),
        _ => None,
    });
}

/// Stops a feeder; returns the number of microbatches that it lost.
fn stop(feeder: &mut Process) -> u64 {
    feeder.interrupt();
    assert_eq!(feeder.end(), INTERRUPTED);
    let account = account(feeder);
    let outcomes = account.finished + account.refused + account.lost;
    assert_eq!((account.injected, account.ungranted), (outcomes, 0));
    account.lost
}
