//! The folder of a run at its coordinator: what a later start goes on from, and what it refuses.

use swarmline::report::{Event, Incident};

use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};
use crate::swarm::{Swarm, spawn_coordinator, start_coordinator};

/// Exit code of a command line or a run file that is wrong.
const USAGE: i32 = 2;

/// Replaces a line of the run file.
fn edit(folder: &RunFolder, from: &str, to: &str) {
    let text = std::fs::read_to_string(folder.run_file()).unwrap();
    assert!(text.contains(from), "{text}");
    std::fs::write(folder.run_file(), text.replace(from, to)).unwrap();
}

/// A coordinator that ends at once.
fn refused(folder: &RunFolder, more: &[&str]) -> (i32, String) {
    let mut coordinator = spawn_coordinator(folder, more);
    let code = coordinator.end();
    (code, coordinator.errors())
}

fn resumed(coordinator: &mut Process) -> (usize, u64, bool) {
    coordinator.hear("that the run goes on", |event| match event {
        Event::Resumed { members, done, finished } => Some((members, done, finished)),
        _ => None,
    })
}

#[test]
fn a_run_goes_on_with_another_policy_and_with_no_other_setting() {
    let _turn = Swarm::turn();
    let folder = Recipe::asynchronous().write();
    let (mut coordinator, invite) = start_coordinator(&folder, &[]);
    coordinator.kill();
    edit(&folder, "steps = 200", "steps = 300");
    edit(&folder, "rank = 8", "rank = 4");
    let (code, errors) = refused(&folder, &[]);
    assert_eq!(code, USAGE, "{errors}");
    for part in ["optimizer.steps is 200 in the run and 300 in the file", "boundary.rank", "--state"] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
    let (mut other, another) = start_coordinator(&folder, &["--state", &folder.argument("other")]);
    assert_ne!(another, invite, "another folder has another key");
    other.kill();
    edit(&folder, "steps = 300", "steps = 200");
    edit(&folder, "rank = 4", "rank = 8");
    edit(&folder, "paths = [\"text\"]", "paths = [\"text\", \"text/0.txt\"]");
    let policy = std::fs::read_to_string(folder.run_file()).unwrap() + "\n[policy]\nfeed = \"members\"\n";
    std::fs::write(folder.run_file(), policy).unwrap();
    let (mut coordinator, again) = start_coordinator(&folder, &[]);
    assert_eq!(again, invite);
    coordinator.kill();
}

#[test]
fn a_run_has_one_coordinator_and_one_key() {
    let _turn = Swarm::turn();
    let folder = Recipe::asynchronous().write();
    let (mut coordinator, _) = start_coordinator(&folder, &[]);
    let (code, errors) = refused(&folder, &[]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("another coordinator of this run is running"), "{errors}");
    coordinator.kill();
    let (code, errors) = refused(&folder, &["--identity", &folder.argument("another.key")]);
    assert_eq!(code, USAGE, "{errors}");
    assert!(errors.contains("start with that key"), "{errors}");
}

#[test]
fn a_log_that_is_no_log_is_refused_and_a_missing_one_begins_the_run() {
    let _turn = Swarm::turn();
    let folder = Recipe::asynchronous().write();
    let (mut coordinator, invite) = start_coordinator(&folder, &[]);
    coordinator.kill();
    let log = folder.file("run.run/log.redb");
    std::fs::write(&log, "this is no log").unwrap();
    let (code, errors) = refused(&folder, &[]);
    assert_eq!(code, 1, "{errors}");
    assert!(errors.contains("log.redb") && errors.contains("move it away and start again"), "{errors}");
    std::fs::remove_file(log).unwrap();
    let (mut coordinator, again) = start_coordinator(&folder, &[]);
    assert_eq!(again, invite, "the key is not lost");
    coordinator.kill();
}

#[test]
fn a_run_that_is_finished_says_so_to_a_later_start_and_ends() {
    let recipe = Recipe { steps: 12, ..Recipe::asynchronous() };
    let mut swarm = Swarm::serve(&recipe);
    let mut feeder = swarm.start_feeder(&[]);
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    swarm.end();
    let mut coordinator = spawn_coordinator(&swarm.folder, &[]);
    let (_, done, finished) = resumed(&mut coordinator);
    assert_eq!((done, finished), (12, true));
    assert_eq!(coordinator.end(), 0, "{}", coordinator.errors());
}

#[test]
fn a_coordinator_that_dies_at_the_end_tells_the_members_after_its_return() {
    let mut swarm = Swarm::serve(&Recipe::asynchronous());
    let mut feeder = swarm.start_feeder(&[]);
    feeder.hear("the loss at the end", |event| match event {
        Event::Evaluation { done: 200, .. } => Some(()),
        _ => None,
    });
    swarm.coordinator.kill();
    swarm.start_coordinator_again();
    assert_eq!(feeder.end(), 0, "{}", feeder.errors());
    for report in swarm.end() {
        assert!(report.done > 0, "{report:?}");
    }
}

#[test]
fn a_log_that_cannot_be_written_stops_no_run() {
    let mut swarm = Swarm::serve(&Recipe::endless());
    let mut feeder = swarm.start_feeder(&[]);
    let trained = |feeder: &mut Process| {
        let now = feeder.moment();
        let mut first = None;
        feeder.hear_since(now, "progress", |event| match event {
            Event::Progress(report) => (report.done >= *first.get_or_insert(report.done) + 32).then_some(()),
            _ => None,
        });
    };
    trained(&mut feeder);
    swarm.coordinator.kill();
    swarm.start_coordinator_again_under(&["bash", "-c", "trap '' XFSZ; exec \"$@\"", "bash"]);
    swarm.coordinator.limit_files(0);
    swarm.coordinator.hear("that its log is behind", |event| match event {
        Event::Incident(Incident::LogBehind { fault }) => Some(fault),
        _ => None,
    });
    trained(&mut feeder);
    let behind = swarm.coordinator.moment();
    swarm.coordinator.limit_files(libc::RLIM_INFINITY);
    swarm.coordinator.hear_since(behind, "that its log is complete", |event| {
        matches!(event, Event::Incident(Incident::LogComplete)).then_some(())
    });
    swarm.coordinator.limit_files(0);
    let behind = swarm.coordinator.moment();
    swarm.coordinator.hear_since(behind, "that its log is behind again", |event| {
        matches!(event, Event::Incident(Incident::LogBehind { .. })).then_some(())
    });
    swarm.coordinator.kill();
    swarm.start_coordinator_again();
    trained(&mut feeder);
    for replica in &mut swarm.replicas {
        replica.moment();
        assert!(!replica.lines().join("\n").contains("expelled"), "{:?}", replica.lines());
    }
}
