//! Replicas and feeders that join, leave and are killed: no microbatch is lost, and none is applied twice.

use std::collections::BTreeMap;
use std::time::Duration;

use swarmline::report::{Event, FeederReport, ReplicaReport};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{STAGES, Swarm, account, last_word, serving};

/// Replicas of each stage.
const REPLICAS: usize = 2;
const WINDOW: usize = 16;
/// Four times the coordinator's leases of members.
const OUTAGE: Duration = Duration::from_secs(60);
/// Exit code of a process that was stopped before its work was done.
const INTERRUPTED: i32 = 130;

#[test]
fn each_replica_is_killed_in_turn() {
    let mut flock = Flock::gather();
    for _ in 0..REPLICAS {
        let of_each_stage: Vec<_> = (0..STAGES as u16).map(|stage| flock.of_stage(stage)).collect();
        for replica in of_each_stage {
            flock.kill(&[replica]);
        }
        flock.join(STAGES);
    }
    flock.end();
}

#[test]
fn two_neighbours_are_killed_at_the_same_time() {
    let mut flock = Flock::gather();
    let (before, after) = (flock.of_stage(1), flock.of_stage(2));
    flock.kill(&[before, after]);
    flock.join(2);
    flock.end();
}

#[test]
fn a_replica_that_was_suspended_notices_and_joins_again() {
    let mut flock = Flock::gather();
    let sleeper = flock.of_stage(2);
    flock.replicas[sleeper].suspend();
    flock.hear_of_members("that the sleeper is expelled", |serving| serving[2] == REPLICAS - 1);
    flock.progress();
    let asleep = flock.replicas[sleeper].moment();
    flock.replicas[sleeper].resume();
    let awake = |event| matches!(event, Event::Serving { .. }).then_some(());
    flock.replicas[sleeper].hear_since(asleep, "that it serves again", awake);
    flock.progress();
    flock.end();
}

#[test]
fn a_coordinator_that_stood_still_expels_no_member() {
    let mut flock = Flock::gather();
    flock.swarm.coordinator.suspend();
    std::thread::sleep(OUTAGE);
    flock.swarm.coordinator.resume();
    flock.progress();
    flock.progress();
    flock.end_undisturbed();
}

#[test]
fn a_coordinator_that_is_killed_again_and_again_goes_on_where_it_was() {
    let mut flock = Flock::gather();
    for time in 0..4 {
        flock.swarm.coordinator.kill();
        // It is away for a moment, or while training goes on.
        if time % 2 == 0 {
            flock.progress();
        }
        flock.swarm.start_coordinator_again();
        let (members, done) = flock.swarm.coordinator.hear("that the run goes on", |event| match event {
            Event::Resumed { members, done, .. } => Some((members, done)),
            _ => None,
        });
        assert_eq!(members, STAGES * REPLICAS + 1);
        assert!(done > 0);
    }
    flock.progress();
    flock.end_undisturbed();
}

#[test]
fn a_coordinator_that_lost_its_log_learns_its_run_from_the_members() {
    let mut flock = Flock::gather();
    flock.swarm.coordinator.kill();
    flock.swarm.lose_log();
    flock.progress();
    flock.swarm.start_coordinator_again();
    flock.swarm.coordinator.hear("that every replica serves as before", |event| match event {
        Event::Members { serving, feeders: 1, .. } => {
            serving.iter().all(|&count| count == REPLICAS).then_some(())
        }
        _ => None,
    });
    flock.progress();
    flock.end_undisturbed();
}

#[test]
fn replicas_of_a_stage_that_all_slept_bring_its_weights_back() {
    let mut flock = Flock::gather();
    let sleepers: Vec<_> =
        (0..flock.replicas.len()).filter(|&index| flock.stages[index] == Some(1)).collect();
    sleepers.iter().for_each(|&sleeper| flock.replicas[sleeper].suspend());
    flock.hear_of_members("that both are expelled", |serving| serving[1] == 0);
    for &sleeper in &sleepers {
        flock.replicas[sleeper].moment();
        flock.replicas[sleeper].resume();
    }
    flock.progress();
    let lines = |flock: &mut Flock, index: usize| {
        flock.replicas[index].moment();
        flock.replicas[index].lines().join("\n")
    };
    let all: Vec<_> = sleepers.iter().map(|&sleeper| lines(&mut flock, sleeper)).collect();
    assert!(all.iter().any(|lines| lines.contains("state_kept")), "{all:?}");
    assert!(!all.iter().any(|lines| lines.contains("stage_lost")), "{all:?}");
    flock.feeder.interrupt();
    assert_eq!(flock.feeder.end(), INTERRUPTED);
    let account = account(&mut flock.feeder);
    assert_eq!((account.lost, account.ungranted), (0, 0), "{account:?}");
}

#[test]
fn a_replica_that_leaves_in_good_order_leaves_nothing_to_recover() {
    let mut flock = Flock::accumulating(4);
    let leaver = flock.of_stage(1);
    flock.replicas[leaver].interrupt();
    assert_eq!(flock.replicas[leaver].end(), 0);
    flock.stages[leaver] = None;
    let last = last_word(&mut flock.replicas[leaver]);
    assert!(last.done > 0);
    assert_eq!(
        (last.waiting, last.steps),
        (0, last.done.div_ceil(4)),
        "the rest is a step of its own: {last:?}"
    );
    flock.progress();
    let (account, replicas) = flock.end();
    assert_eq!(account.retried, 0);
    for report in replicas {
        assert_eq!((report.recovered, report.retried, report.relayed), (0, 0, 0), "{report:?}");
    }
}

#[test]
fn a_feeder_is_killed_and_started_again() {
    let mut flock = Flock::gather();
    flock.feeder.kill();
    flock.feeder = flock.start_feeder();
    flock.progress();
    let (account, _) = flock.end();
    assert!(account.finished > 0);
}

#[test]
fn a_feeder_is_killed_for_good_and_another_one_takes_over() {
    let mut flock = Flock::gather();
    flock.feeder.kill();
    flock.hear_that_no_feeder_is_left();
    flock.feeder = flock.swarm.start_feeder(&["--succeed"]);
    flock.progress();
    let (account, _) = flock.end();
    assert!(account.inherited > 0 && account.finished > 0, "{account:?}");
    assert!(account.abandoned <= WINDOW as u64, "{account:?}");
}

/// A swarm of two replicas a stage in the middle of its run.
struct Flock {
    swarm: Swarm,
    replicas: Vec<Process>,
    /// The stage of each replica; `None` for a dead replica.
    stages: Vec<Option<u16>>,
    feeder: Process,
}

impl Flock {
    fn gather() -> Self {
        Self::accumulating(1)
    }

    /// Its replicas step once for so many contributions.
    fn accumulating(gradient_accumulation_steps: usize) -> Self {
        // One test goes on with a feeder of another key.
        let more = "[policy]\nfeed = \"members\"\n".to_owned();
        let recipe = Recipe {
            replicas: REPLICAS,
            max_in_flight: WINDOW,
            gradient_accumulation_steps,
            more,
            ..Recipe::endless()
        };
        let swarm = Swarm::coordinate(&recipe);
        let feeder = start_feeder(&swarm);
        let mut flock = Self { swarm, replicas: Vec::new(), stages: Vec::new(), feeder };
        for index in 0..STAGES * REPLICAS {
            let replica = flock.start_replica(index);
            flock.replicas.push(replica);
        }
        flock.stages = flock.replicas.iter_mut().map(|replica| Some(serving(replica))).collect();
        flock.progress();
        flock
    }

    fn start_replica(&self, index: usize) -> Process {
        let log = self.swarm.folder.argument(format!("applied-{index}"));
        self.swarm.start_replica(&format!("replica {index}"), &["--applied-log", &log])
    }

    fn start_feeder(&self) -> Process {
        start_feeder(&self.swarm)
    }

    /// A living replica of `stage`.
    fn of_stage(&self, stage: u16) -> usize {
        self.stages.iter().position(|&at| at == Some(stage)).unwrap()
    }

    /// Kills replicas at the same time and waits until training goes on without them.
    fn kill(&mut self, indices: &[usize]) {
        for &index in indices {
            self.replicas[index].kill();
            self.stages[index] = None;
        }
        self.progress();
    }

    /// Fresh replicas take the places of the dead once these are expelled.
    fn join(&mut self, count: usize) {
        let first = self.replicas.len();
        for index in first..first + count {
            let replica = self.start_replica(index);
            self.replicas.push(replica);
        }
        self.stages.extend(self.replicas[first..].iter_mut().map(|replica| Some(serving(replica))));
        self.progress();
    }

    /// Waits until training has gone on by more than the microbatches in flight.
    fn progress(&mut self) {
        let now = self.feeder.moment();
        let mut first = None;
        self.feeder.hear_since(now, "progress", |event| match event {
            Event::Progress(report) => {
                let first = *first.get_or_insert(report.done);
                (report.done >= first + 32).then_some(())
            }
            _ => None,
        });
    }

    fn hear_of_members(&mut self, what: &str, wanted: impl Fn(&[usize]) -> bool) {
        let now = self.swarm.coordinator.moment();
        self.swarm.coordinator.hear_since(now, what, |event| match event {
            Event::Members { serving, .. } => wanted(&serving).then_some(()),
            _ => None,
        });
    }

    fn hear_that_no_feeder_is_left(&mut self) {
        let now = self.swarm.coordinator.moment();
        self.swarm.coordinator.hear_since(now, "that the feeder is expelled", |event| match event {
            Event::Members { feeders: 0, .. } => Some(()),
            _ => None,
        });
    }

    /// Stops every process and compares their logs: every injected microbatch is finished, none is applied twice.
    fn end(mut self) -> (FeederReport, Vec<ReplicaReport>) {
        self.feeder.interrupt();
        assert_eq!(self.feeder.end(), INTERRUPTED);
        let account = account(&mut self.feeder);
        assert_eq!((account.lost, account.ungranted), (0, 0), "{account:?}");
        assert_eq!(account.refused, account.abandoned, "{account:?}");
        assert_eq!(account.injected, account.finished + account.abandoned, "{account:?}");
        let mut reports = Vec::new();
        for (replica, stage) in self.replicas.iter_mut().zip(&self.stages) {
            if stage.is_some() {
                replica.interrupt();
                assert_eq!(replica.end(), 0);
                let last = last_word(replica);
                assert_eq!(last.waiting, 0, "{last:?}");
                reports.push(last);
            }
        }
        let applied = self.applied();
        assert!(applied.values().all(|&times| times == 1), "applied twice: {applied:?}");
        let ended = account.finished + account.inherited;
        let missing = (ended * STAGES as u64).saturating_sub(applied.len() as u64);
        assert!(
            missing <= account.contributions_lost,
            "{missing} of {account:?}, {reports:?}; applied by a part of the stages: {:?}",
            partly(&applied)
        );
        (account, reports)
    }

    /// Stops every process: none was expelled, and nothing was retried or lost.
    fn end_undisturbed(mut self) {
        for replica in &mut self.replicas {
            replica.moment();
            let disturbed = |line: &String| line.contains("expelled") || line.contains("stage_lost");
            assert!(!replica.lines().iter().any(disturbed), "{:?}", replica.lines());
        }
        let (account, _) = self.end();
        assert_eq!((account.retried, account.contributions_lost), (0, 0));
    }

    /// Number of times that each stage of each microbatch was applied, by all replicas of the test, dead or alive.
    fn applied(&self) -> BTreeMap<String, usize> {
        let mut applied = BTreeMap::new();
        for index in 0..self.replicas.len() {
            let log = std::fs::read_to_string(self.swarm.folder.file(format!("applied-{index}")));
            for line in log.unwrap_or_default().lines() {
                *applied.entry(line.to_owned()).or_default() += 1;
            }
        }
        applied
    }
}

/// Microbatches that a part of the stages applied, with their number of stages.
fn partly(applied: &BTreeMap<String, usize>) -> BTreeMap<u64, usize> {
    let mut stages = BTreeMap::new();
    for line in applied.keys() {
        let id = line.split_whitespace().last().and_then(|id| id.parse().ok()).unwrap();
        *stages.entry(id).or_default() += 1;
    }
    stages.retain(|_, &mut stages| stages < STAGES);
    stages
}

fn start_feeder(swarm: &Swarm) -> Process {
    let (key, journal) = (swarm.folder.argument("feeder.key"), swarm.folder.argument("journal"));
    swarm.start_feeder(&["--identity", &key, "--journal", &journal])
}
