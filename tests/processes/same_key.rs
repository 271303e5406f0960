//! Two processes with one key: the second waits for the end of the first, or ends it when it is told to.

use std::time::{Duration, Instant};

use swarmline::report::{Event, Incident};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{Swarm, account, serving};

const FAILED: i32 = 1;
const REFUSED: i32 = 3;

/// Waits until the feeder has finished so many further microbatches.
fn progress(feeder: &mut Process, microbatches: u64) {
    let (now, mut first) = (feeder.moment(), None);
    feeder.hear_since(now, "progress", |event| match event {
        Event::Progress(report) => {
            (report.done >= *first.get_or_insert(report.done) + microbatches).then_some(())
        }
        _ => None,
    });
}

/// A member that is told that the key is in use, and ends.
fn is_refused(mut second: Process) {
    second.hear("that the key is in use", |event| {
        matches!(event, Event::Incident(Incident::KeyInUse { .. })).then_some(())
    });
    assert_eq!(second.end(), REFUSED, "{}", second.errors());
    let errors = second.errors();
    for part in ["is already running at 127.0.0.1:", " since 20", "--take-over", "--identity"] {
        assert!(errors.contains(part), "{part}: {errors}");
    }
}

#[test]
fn a_second_process_of_a_key_is_refused_while_the_first_trains_undisturbed() {
    let mut swarm = Swarm::coordinate(&Recipe::endless());
    let keys: Vec<_> = (0..4).map(|stage| swarm.folder.argument(format!("{stage}.key"))).collect();
    keys.iter().for_each(|key| swarm.join(&["--identity", key]));
    let (key, target) = (swarm.folder.argument("f.key"), swarm.folder.argument("kept"));
    let mut feeder = swarm.start_feeder(&["--identity", &key]);
    let keep = |to: &str| {
        let key = swarm.folder.argument("k.key");
        Process::start("keeper", ["keep", &swarm.invite, "--to", to, "--json", "--leash", "--identity", &key])
    };
    let mut keeper = keep(&target);
    keeper.hear("that it keeps", |event| matches!(event, Event::Keeping(_)).then_some(()));
    progress(&mut feeder, 1);

    let seconds = [
        swarm.start_replica("second replica", &["--identity", &keys[2]]),
        swarm.start_feeder(&["--identity", &key]),
        keep(&swarm.folder.argument("elsewhere")),
    ];
    progress(&mut feeder, 32);
    seconds.into_iter().for_each(is_refused);
    let mut beside = keep(&target);
    assert_eq!(beside.end(), FAILED);
    assert!(beside.errors().contains("another keeper writes here"), "{}", beside.errors());
    progress(&mut feeder, 32);
    for member in swarm.replicas.iter_mut().chain([&mut feeder, &mut keeper]) {
        member.moment();
        let lines = member.lines().join("\n");
        assert!(!lines.contains("expelled") && !lines.contains("neighbour_lost"), "{lines}");
    }
}

#[test]
fn a_process_that_was_killed_and_is_started_again_at_once_gets_in_within_seconds() {
    let mut swarm = Swarm::coordinate(&Recipe::endless());
    let key = swarm.folder.argument("replica.key");
    swarm.join(&["--identity", &key]);
    swarm.replicas[0].kill();
    let killed = Instant::now();
    let mut second = swarm.start_replica("second", &["--identity", &key]);
    assert_eq!(serving(&mut second), 0, "the same stage");
    assert!(killed.elapsed() < Duration::from_secs(30), "{:?}", killed.elapsed());
}

#[test]
fn a_process_that_takes_over_ends_the_first_which_says_why_and_saves_its_weights() {
    let mut swarm = Swarm::coordinate(&Recipe::endless());
    let (key, save) = (swarm.folder.argument("replica.key"), swarm.folder.argument("kept"));
    swarm.join(&["--identity", &key, "--save", &save]);
    let mut second = swarm.start_replica("second", &["--identity", &key, "--take-over"]);
    assert_eq!(serving(&mut second), 0, "the same stage");
    let first = &mut swarm.replicas[0];
    assert_eq!(first.end(), REFUSED);
    assert!(first.errors().contains("has taken its place"), "{}", first.errors());
    assert!(swarm.folder.file("kept").is_file(), "its weights are saved");
    swarm.coordinator.kill();
    swarm.start_coordinator_again();
    is_refused(swarm.start_replica("third", &["--identity", &key]));
    second.interrupt();
    assert_eq!(second.end(), 0, "{}", second.errors());
}

#[test]
fn a_keeper_that_takes_over_waits_for_the_target_of_the_first() {
    let swarm = Swarm::coordinate(&Recipe::endless());
    let (key, target) = (swarm.folder.argument("k.key"), swarm.folder.argument("kept"));
    let keep = |more: &[&str]| {
        let fixed =
            ["keep", &swarm.invite, "--to", &target, "--json", "--leash", "--identity", &key].to_vec();
        let mut keeper = Process::start("keeper", fixed.iter().chain(more).copied());
        keeper.hear("that it keeps", |event| matches!(event, Event::Keeping(_)).then_some(()));
        keeper
    };
    let mut first = keep(&[]);
    let mut second = keep(&["--take-over"]);
    assert_eq!(first.end(), REFUSED);
    assert!(first.errors().contains("has taken its place"), "{}", first.errors());
    second.moment();
}

/// A library that sets the clock of a process back by an hour.
#[cfg(target_os = "linux")]
fn an_hour_back(swarm: &Swarm) -> String {
    const SOURCE: &str = "
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_gettime(clockid_t id, struct timespec *time) {
    long failed = syscall(SYS_clock_gettime, id, time);
    if (id == CLOCK_REALTIME) time->tv_sec -= 3600;
    return (int)failed;
}
";
    let (source, library) = (swarm.folder.file("clock.c"), swarm.folder.argument("clock.so"));
    std::fs::write(&source, SOURCE).unwrap();
    let mut compiler = std::process::Command::new("cc");
    let built = compiler.args(["-shared", "-fPIC", "-o", &library]).arg(source).status().unwrap();
    assert!(built.success());
    format!("LD_PRELOAD={library}")
}

#[cfg(target_os = "linux")]
#[test]
fn processes_whose_clock_is_an_hour_back_at_their_restart_go_on() {
    let mut swarm = Swarm::coordinate(&Recipe::endless());
    let keys: Vec<_> = (0..4).map(|stage| swarm.folder.argument(format!("{stage}.key"))).collect();
    keys.iter().for_each(|key| swarm.join(&["--identity", key]));
    let (key, journal) = (swarm.folder.argument("f.key"), swarm.folder.argument("f.log"));
    let journal = ["--identity", &key, "--journal", &journal];
    let mut feeder = swarm.start_feeder(&journal);
    progress(&mut feeder, 16);

    let back = ["env", &an_hour_back(&swarm)];
    feeder.kill();
    swarm.replicas[3].kill();
    swarm.coordinator.kill();
    swarm.start_coordinator_again_under(&back);
    let member = |command: &str, arguments: &[&str]| {
        let fixed: [&str; 4] = [command, &swarm.invite, "--json", "--leash"];
        Process::start_under(&back, command, fixed.iter().chain(arguments).copied())
    };
    let mut replica = member("join", &["--threads", "1", "--identity", &keys[3]]);
    assert_eq!(serving(&mut replica), 3);
    let mut feeder = member("feed", &journal);
    progress(&mut feeder, 32);
    feeder.interrupt();
    feeder.end();
    let report = account(&mut feeder);
    assert_eq!((report.lost, report.ungranted), (0, 0));
}
