//! Replicas of one stage: they end with the same weights, and a joiner takes over the state of the others.

use std::collections::BTreeSet;

use swarmline::report::{Event, FeederReport};

use crate::process::Process;
use crate::recipe::Recipe;
use crate::swarm::{Swarm, account, last_word, serving};

/// Exit code of a process that was stopped before its work was done.
pub(crate) const INTERRUPTED: i32 = 130;

#[test]
fn replicas_of_a_stage_save_equal_weights() {
    let mut swarm = Swarm::coordinate(&recipe(2, 120));
    let mut replicas: Vec<Process> = (0..2).map(|index| start_saving(&swarm, index)).collect();
    replicas.iter_mut().for_each(|replica| assert_eq!(serving(replica), 0));
    let mut feeder = swarm.start_feeder(&[]);
    end_with_equal_weights(&mut swarm, &mut feeder, &mut replicas);
}

#[test]
fn a_joiner_takes_over_the_state_of_the_others_when_one_of_them_was_killed() {
    let mut swarm = Swarm::coordinate(&recipe(3, 1_000_000));
    let mut replicas: Vec<Process> = (0..3).map(|index| start(&swarm, index)).collect();
    replicas.iter_mut().for_each(|replica| assert_eq!(serving(replica), 0));
    let mut feeder = swarm.start_feeder(&[]);
    wait_for(&mut feeder, 40);
    replicas.remove(0).kill();
    replicas.push(start(&swarm, 3));
    let version = replicas[2].hear("whose state it took", |event| match event {
        Event::StateTaken { version, .. } => Some(version),
        _ => None,
    });
    assert!(version > 0, "the donor had learned");
    replicas[2].hear("that it has learned", |event| match event {
        Event::Replica(report) => (report.done > 0 && report.rounds > 0).then_some(()),
        _ => None,
    });
    feeder.interrupt();
    assert_eq!(feeder.end(), INTERRUPTED);
    assert_sound(&account(&mut feeder));
    for replica in &mut replicas {
        replica.interrupt();
        assert_eq!(replica.end(), 0, "{}", replica.errors());
    }
    swarm.coordinator.interrupt();
    assert_eq!(swarm.coordinator.end(), INTERRUPTED);
    assert_disjoint(&swarm, 4);
}

/// Waits for the end of the run: both replicas have taken part and save equal weights.
pub(crate) fn end_with_equal_weights(swarm: &mut Swarm, feeder: &mut Process, replicas: &mut [Process]) {
    assert_eq!(feeder.end(), 0);
    assert_sound(&account(feeder));
    for replica in replicas {
        assert_eq!(replica.end(), 0, "{}", replica.errors());
        let report = last_word(replica);
        assert!(report.done > 0 && report.rounds > 0 && report.parts_applied > 0, "{report:?}");
    }
    assert_eq!(swarm.coordinator.end(), 0);
    assert!(tensors(swarm, 0) == tensors(swarm, 1), "the weights differ");
}

/// One stage with this many replicas; a fragment is averaged every few microbatches.
pub(crate) fn recipe(replicas: usize, steps: u64) -> Recipe {
    let more = "[averaging]\ninterval = 4\nfragments = 5\n".to_owned();
    Recipe { stages: 1, replicas, steps, more, ..Recipe::asynchronous() }
}

pub(crate) fn start(swarm: &Swarm, index: usize) -> Process {
    let log = swarm.folder.argument(applied_log_of(index));
    swarm.start_replica(&format!("replica {index}"), &["--applied-log", &log])
}

pub(crate) fn applied_log_of(index: usize) -> String {
    format!("applied-{index}.txt")
}

fn start_saving(swarm: &Swarm, index: usize) -> Process {
    let weights = swarm.folder.argument(weights_of(index));
    swarm.start_replica(&format!("replica {index}"), &["--save", &weights])
}

pub(crate) fn weights_of(index: usize) -> String {
    format!("weights-{index}.safetensors")
}

/// The numbers of a file of weights, without the metadata, which has the number of steps and so differs.
fn tensors(swarm: &Swarm, index: usize) -> Vec<u8> {
    let bytes = std::fs::read(swarm.folder.file(weights_of(index))).unwrap();
    let (length, rest) = bytes.split_first_chunk::<8>().unwrap();
    let header = usize::try_from(u64::from_le_bytes(*length)).unwrap();
    rest[header..].to_vec()
}

/// Waits until this many microbatches are done.
pub(crate) fn wait_for(feeder: &mut Process, done: u64) {
    feeder.hear("progress", |event| match event {
        Event::Progress(report) => (report.done >= done).then_some(()),
        _ => None,
    });
}

pub(crate) fn assert_sound(account: &FeederReport) {
    assert_eq!((account.lost, account.refused, account.ungranted), (0, 0, 0), "{account:?}");
    assert_eq!(account.injected, account.finished, "{account:?}");
}

/// No microbatch was applied by two replicas, dead or alive.
pub(crate) fn assert_disjoint(swarm: &Swarm, replicas: usize) {
    let mut applied = BTreeSet::new();
    for index in 0..replicas {
        for line in std::fs::read_to_string(swarm.folder.file(applied_log_of(index))).unwrap().lines() {
            assert!(applied.insert(line.to_owned()), "{line} was applied twice");
        }
    }
    assert!(!applied.is_empty());
}
