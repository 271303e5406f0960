//! A replica never gets parameters of a stage that it does not serve.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use swarmline::config::Run;
use swarmline::model::Shard;
use swarmline_kernels::Cpu;
use swarmline_scheduler::StageIndex;

use crate::recipe::{Recipe, RunFolder};
use crate::swarm::{STAGES, Swarm};

#[test]
fn replicas_hold_no_parameters_but_their_own() {
    let mut swarm = Swarm::coordinate(&Recipe::exact());
    for stage in 0..STAGES {
        let log = swarm.folder.argument(log_of(stage));
        swarm.join(&["--parameter-log", &log]);
    }
    assert_eq!(swarm.start_feeder(&[]).end(), 0);
    swarm.end();
    for stage in 0..STAGES {
        let log = read_log(&swarm.folder.file(log_of(stage)));
        assert!(!log.is_empty(), "stage {stage} has recorded its parameters");
        let leaked = leaked(&log, &swarm.folder, stage);
        assert!(leaked.is_empty(), "foreign parameters in stage {stage}: {leaked:#?}");
    }
}

/// The test of the test above: it finds a leak.
#[test]
fn a_replica_given_the_weights_of_another_stage_refuses_them_and_the_leak_shows() {
    let swarm = Swarm::coordinate(&Recipe::exact());
    let foreign = swarm.folder.argument("foreign.safetensors");
    std::fs::write(&foreign, shard(&swarm.folder, 1).snapshot(BTreeMap::new()).unwrap()).unwrap();
    let log = swarm.folder.argument(log_of(0));

    let mut replica = swarm.start_replica("replica", &["--resume", &foreign, "--parameter-log", &log]);
    assert_eq!(replica.end(), 1);
    let message = replica.errors();
    assert!(message.contains(&foreign) && message.contains("is no parameter of this shard"), "{message}");
    let leaked = leaked(&read_log(log.as_ref()), &swarm.folder, 0);
    assert!(leaked.iter().any(|line| line.starts_with("layers.1.")), "{leaked:#?}");
}

fn log_of(stage: usize) -> String {
    format!("parameters-{stage}.txt")
}

/// The lines of a parameter log: a name and a digest each.
fn read_log(path: &Path) -> BTreeSet<String> {
    std::fs::read_to_string(path).unwrap().lines().map(str::to_owned).collect()
}

/// Entries of a replica's log that are not in its stage.
fn leaked(log: &BTreeSet<String>, folder: &RunFolder, stage: usize) -> Vec<String> {
    let own = shard(folder, stage).digests().unwrap();
    let own: BTreeSet<String> = own.iter().map(|(name, digest)| format!("{name} {digest}")).collect();
    log.difference(&own).cloned().collect()
}

fn shard(folder: &RunFolder, stage: usize) -> Shard<Cpu> {
    let run = Run::load(&folder.file("run.toml")).unwrap();
    let stage = StageIndex(stage.try_into().unwrap());
    Shard::for_stage(Cpu::new(1).unwrap(), &run, stage, 1).unwrap()
}
