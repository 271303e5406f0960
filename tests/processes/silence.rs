//! A coordinator that does not reply, a terminal that closes, a pipe that nothing reads: no process waits for ever.

use std::time::{Duration, Instant};

use swarmline::report::{Event, Incident};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{STAGES, Swarm, account};

const FAILED: i32 = 1;
/// Exit code of a process that was stopped before its work was done.
const INTERRUPTED: i32 = 130;

fn hear_silence(process: &mut Process) {
    process.hear("that the coordinator is silent", |event| {
        matches!(event, Event::Incident(Incident::CoordinatorSilent { .. })).then_some(())
    });
}

fn progress(process: &mut Process) {
    let now = process.moment();
    process.hear_since(now, "progress", |event| matches!(event, Event::Progress(_)).then_some(()));
}

#[test]
fn members_say_that_the_coordinator_is_silent_and_that_it_is_back_and_go_on_meanwhile() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    progress(&mut feeder);
    swarm.coordinator.suspend();
    hear_silence(&mut feeder);
    swarm.replicas.iter_mut().for_each(hear_silence);
    progress(&mut feeder);
    swarm.coordinator.resume();
    for process in swarm.replicas.iter_mut().chain([&mut feeder]) {
        process.hear("that the coordinator is back", |event| {
            matches!(event, Event::Incident(Incident::CoordinatorBack { .. })).then_some(())
        });
    }
}

#[test]
fn members_of_a_coordinator_that_never_returns_end_with_their_state_kept() {
    let mut swarm = Swarm::coordinate(&Recipe::endless());
    let journal =
        ["--identity", &swarm.folder.argument("f.key"), "--journal", &swarm.folder.argument("f.log")];
    for stage in 0..STAGES {
        let save = swarm.folder.argument(format!("stage-{stage}.safetensors"));
        swarm.join(&["--save", &save, "--patience", "4s"]);
    }
    let mut feeder = swarm.start_feeder(&[&journal[..], &["--patience", "2s"]].concat());
    progress(&mut feeder);
    swarm.coordinator.kill();
    assert_eq!(feeder.end(), FAILED, "{}", feeder.errors());
    assert!(
        feeder.errors().contains("--patience") && feeder.errors().contains("--journal"),
        "{}",
        feeder.errors()
    );
    let report = account(&mut feeder);
    assert_eq!((report.lost, report.ungranted), (0, 0));
    for (stage, replica) in swarm.replicas.iter_mut().enumerate() {
        assert_eq!(replica.end(), FAILED, "{}", replica.errors());
        assert!(replica.errors().contains("its weights are saved"), "{}", replica.errors());
        assert!(swarm.folder.file(format!("stage-{stage}.safetensors")).is_file());
    }
}

#[test]
fn a_feeder_that_has_finished_and_cannot_say_so_ends_well() {
    // One lease has all ids of such a run.
    let mut swarm = Swarm::serve(&Recipe { steps: 32, ..Recipe::asynchronous() });
    swarm.coordinator.hear("that every stage is served", |event| match event {
        Event::Members { serving, .. } => serving.iter().all(|&count| count == 1).then_some(()),
        _ => None,
    });
    let journal = swarm.folder.argument("f.log");
    swarm.replicas[3].suspend();
    let key = swarm.folder.argument("f.key");
    let mut feeder = swarm.start_feeder(&["--identity", &key, "--journal", &journal, "--patience", "3s"]);
    feeder.hear("its text", |event| matches!(event, Event::Corpus { .. }).then_some(()));
    wait_for_the_lease(&journal);
    swarm.coordinator.suspend();
    swarm.replicas[3].resume();
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    feeder.hear("that its end is not reported", |event| {
        matches!(event, Event::Incident(Incident::EndUnreported)).then_some(())
    });
    swarm.coordinator.resume();
}

/// Waits until the journal of a feeder has more than the name of its launch.
fn wait_for_the_lease(journal: &str) {
    const NAMED: u64 = 96;
    let deadline = Instant::now() + Duration::from_secs(40);
    while std::fs::metadata(journal).unwrap().len() <= NAMED {
        assert!(Instant::now() < deadline, "no lease has come");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_closed_terminal_ends_a_replica_and_a_feeder_as_ctrl_c_does() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    progress(&mut feeder);
    feeder.hang_up();
    assert_eq!(feeder.end(), INTERRUPTED);
    assert_eq!(account(&mut feeder).lost, 0);
    swarm.replicas[0].hang_up();
    assert_eq!(swarm.replicas[0].end(), 0);
}

#[test]
fn a_process_that_was_started_to_outlive_its_terminal_does() {
    let swarm = Swarm::coordinate(&Recipe::endless());
    let replica = ["join", &swarm.invite, "--json", "--threads", "1"];
    let mut replica = Process::start_under(&["nohup"], "replica", replica);
    crate::swarm::serving(&mut replica);
    replica.hang_up();
    replica.interrupt();
    assert_eq!(replica.end(), 0);
}

#[test]
fn ctrl_c_ends_a_feeder_and_a_training_that_read_their_text() {
    let swarm = Swarm::coordinate(&Recipe::endless());
    let text = swarm.folder.file("text/long.txt");
    std::fs::write(text, "the words of a long text are read for a while\n".repeat(3_000_000)).unwrap();
    let run = swarm.folder.run_file();
    let feed = ["feed", &swarm.invite, "--json"];
    let train = ["train", "--run", &run, "--json"];
    for arguments in [&feed[..], &train[..]] {
        let mut process = Process::start(arguments[0], arguments.iter().copied());
        process.hear("its first line", |event| {
            matches!(event, Event::Key { .. } | Event::Computing { .. }).then_some(())
        });
        let asked = Instant::now();
        process.interrupt();
        assert_eq!(process.end(), INTERRUPTED, "{}", process.errors());
        assert!(asked.elapsed() < Duration::from_secs(2), "{} took {:?}", arguments[0], asked.elapsed());
        let has_read = process.lines().iter().any(|line| line.contains("\"corpus\""));
        assert!(!has_read, "the text was read already: {:?}", process.lines());
    }
}
