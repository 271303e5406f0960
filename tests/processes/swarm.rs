//! A coordinator, its replicas and a feeder, each a process.

use std::sync::{Condvar, Mutex, PoisonError};

use swarmline::report::{Event, FeederReport, ReplicaReport};

use crate::gpu::Gpu;
use crate::process::Process;
use crate::recipe::{Recipe, RunFolder};

/// Swarms that run at the same time, for machines with two cores: most of a test is waiting.
const SWARMS_AT_ONCE: usize = 3;

/// The swarms that run.
static RUNNING: Mutex<usize> = Mutex::new(0);
/// One of them has ended.
static ENDED: Condvar = Condvar::new();

/// The right to run a swarm, until it is dropped.
pub(crate) struct Turn(());

impl Drop for Turn {
    fn drop(&mut self) {
        *RUNNING.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
        ENDED.notify_one();
    }
}

/// The processes of one run, and its folder.
pub(crate) struct Swarm {
    pub(crate) coordinator: Process,
    /// Replicas in the order in which they joined, which is the order of the stages.
    pub(crate) replicas: Vec<Process>,
    pub(crate) invite: String,
    pub(crate) folder: RunFolder,
    pub(crate) _turn: Turn,
}

/// Stages of every run in these tests.
pub(crate) const STAGES: usize = 4;

impl Swarm {
    /// Starts a coordinator; no member has joined yet.
    pub(crate) fn coordinate(recipe: &Recipe) -> Self {
        let turn = Self::turn();
        let folder = recipe.write();
        let (coordinator, invite) = start_coordinator(&folder, &[]);
        Self { coordinator, replicas: Vec::new(), invite, folder, _turn: turn }
    }

    /// Starts the coordinator with the same command again, after it was killed.
    pub(crate) fn start_coordinator_again(&mut self) {
        self.go_on_with(spawn_coordinator(&self.folder, &[]));
    }

    /// As [`Swarm::start_coordinator_again`], by another program; see [`Process::start_under`].
    pub(crate) fn start_coordinator_again_under(&mut self, prefix: &[&str]) {
        let arguments = coordinator_arguments(&self.folder);
        self.go_on_with(Process::start_under(prefix, "coordinator", arguments.iter().map(String::as_str)));
    }

    fn go_on_with(&mut self, coordinator: Process) {
        self.coordinator = coordinator;
        assert_eq!(invite(&mut self.coordinator), self.invite);
    }

    /// The log of the coordinator is gone, but not its key.
    pub(crate) fn lose_log(&self) {
        std::fs::remove_file(self.folder.file("run.run/log.redb")).unwrap();
    }

    /// Waits until few enough swarms of these tests run.
    pub(crate) fn turn() -> Turn {
        let running = RUNNING.lock().unwrap_or_else(PoisonError::into_inner);
        let full = |running: &mut usize| *running >= SWARMS_AT_ONCE;
        *ENDED.wait_while(running, full).unwrap_or_else(PoisonError::into_inner) += 1;
        Turn(())
    }

    /// Starts a coordinator and a replica of each stage that saves its weights in `stage-N.safetensors`.
    pub(crate) fn serve(recipe: &Recipe) -> Self {
        Self::serve_on(recipe, |_| None)
    }

    /// As [`Swarm::serve`], with the GPU of each stage, if any.
    pub(crate) fn serve_on<'a>(recipe: &Recipe, gpu: impl Fn(usize) -> Option<&'a Gpu>) -> Self {
        let mut swarm = Self::coordinate(recipe);
        for stage in 0..STAGES {
            let save = swarm.folder.argument(format!("stage-{stage}.safetensors"));
            let save = ["--save", &save];
            let name = format!("replica {stage}");
            swarm.expect_next(match gpu(stage) {
                Some(gpu) => {
                    swarm.start_replica_on(gpu, &name, &[&save[..], &["--profile", "repro"]].concat())
                }
                None => swarm.start_replica(&name, &save),
            });
        }
        swarm
    }

    /// Starts a replica of the next stage and waits until it serves.
    pub(crate) fn join(&mut self, more: &[&str]) {
        let name = format!("replica {}", self.replicas.len());
        self.expect_next(self.start_replica(&name, more));
    }

    /// Waits until a replica serves the next stage.
    fn expect_next(&mut self, mut replica: Process) {
        let expected = self.replicas.len();
        let stage = serving(&mut replica);
        assert_eq!(usize::from(stage), expected, "stages are given in order");
        self.replicas.push(replica);
    }

    /// Starts a replica, without a wait.
    pub(crate) fn start_replica(&self, name: &str, more: &[&str]) -> Process {
        let fixed = ["join", &self.invite, "--json", "--leash", "--threads", "1"];
        Process::start(name, fixed.iter().chain(more).copied())
    }

    /// Starts a replica on a GPU, without a wait.
    pub(crate) fn start_replica_on(&self, gpu: &Gpu, name: &str, more: &[&str]) -> Process {
        let fixed = ["join", &self.invite, "--json", "--leash", "--device", "cuda"];
        gpu.start(name, fixed.iter().chain(more).copied())
    }

    /// Starts a feeder, without a wait.
    pub(crate) fn start_feeder(&self, more: &[&str]) -> Process {
        let fixed = ["feed", &self.invite, "--json", "--leash"];
        Process::start("feeder", fixed.iter().chain(more).copied())
    }

    /// Waits until every process has ended well; returns the last reports of the replicas.
    pub(crate) fn end(&mut self) -> Vec<ReplicaReport> {
        for replica in &mut self.replicas {
            assert_eq!(replica.end(), 0, "{}", replica.errors());
        }
        assert_eq!(self.coordinator.end(), 0, "{}", self.coordinator.errors());
        self.replicas.iter_mut().map(last_word).collect()
    }
}

/// Starts a coordinator of the run in `folder`; returns its invite too.
pub(crate) fn start_coordinator(folder: &RunFolder, more: &[&str]) -> (Process, String) {
    let mut coordinator = spawn_coordinator(folder, more);
    let invite = invite(&mut coordinator);
    (coordinator, invite)
}

fn invite(coordinator: &mut Process) -> String {
    coordinator.hear("its invite", |event| match event {
        Event::Listening { invite, .. } => Some(invite),
        _ => None,
    })
}

/// Starts a coordinator of the run in `folder`, without a wait. A later start of it takes the port of the first.
pub(crate) fn spawn_coordinator(folder: &RunFolder, more: &[&str]) -> Process {
    let fixed = coordinator_arguments(folder);
    Process::start("coordinator", fixed.iter().map(String::as_str).chain(more.iter().copied()))
}

fn coordinator_arguments(folder: &RunFolder) -> Vec<String> {
    let run_file = folder.run_file();
    ["coordinator", "--run", &run_file, "--listen", "127.0.0.1:0", "--json", "--leash", "--no-keeper"]
        .map(str::to_owned)
        .to_vec()
}

/// Waits until a replica serves; returns its stage.
pub(crate) fn serving(replica: &mut Process) -> u16 {
    replica.hear("that it serves", |event| match event {
        Event::Serving { stage } => Some(stage),
        _ => None,
    })
}

/// The counters of a replica at its end.
pub(crate) fn last_word(replica: &mut Process) -> ReplicaReport {
    replica.hear("its account at the end", |event| match event {
        Event::Replica(report) if report.last => Some(report),
        _ => None,
    })
}

/// The counters of a feeder at its end.
pub(crate) fn account(feeder: &mut Process) -> FeederReport {
    feeder.hear("the account of its microbatches", |event| match event {
        Event::Feeder(report) => Some(report),
        _ => None,
    })
}
