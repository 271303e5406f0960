//! The thread and what it is asked besides microbatches.

use swarmline_kernels::Cpu;
use swarmline_scheduler::StageIndex;
use swarmline_scheduler::averaging::{PartIndex, Round};

use super::*;
use crate::config::{Kind, Packing};
use crate::model::tests::tiny;
use crate::stage::{Engine, Learning};

async fn executor(seed: u64) -> Executor {
    let mut run = tiny(Kind::Subspace, Packing::F32);
    run.seed = seed;
    let build = move || -> Result<Box<dyn Compute>, Error> {
        Ok(Box::new(Engine::new(Cpu::new(1)?, &run, StageIndex(1), 1, Learning::Active)?))
    };
    Executor::start(4, build).await.unwrap()
}

#[tokio::test]
async fn a_state_goes_from_one_thread_to_another() {
    let (donor, joiner) = (executor(1).await, executor(2).await);
    let state = donor.export_state().await.unwrap();
    assert_ne!(joiner.export_state().await.unwrap(), state);
    joiner.import_state(state.bytes.clone()).await.unwrap();
    assert_eq!(joiner.export_state().await.unwrap(), state);
    assert!(matches!(joiner.import_state(state.bytes.slice(1..)).await, Err(Error::State(_))));
}

#[tokio::test]
async fn means_and_the_end_of_a_round_find_room() {
    let mut executor = executor(1).await;
    let round = Round(3);
    executor.average(averaging::Job::Snapshot { round, set: round.set(20), parts: 2 }).unwrap();
    let Answer::Averaged(Averaged::Snapshot { parts, .. }) = executor.answer().await.unwrap() else {
        panic!("no snapshot")
    };
    for _ in 0..APPLYING_MAX {
        let job = averaging::Job::Apply { round, part: PartIndex(1), mean: parts[1].clone() };
        executor.average(job).unwrap();
    }
    executor.average(averaging::Job::Finish { round, complete: true }).unwrap();
    for _ in 0..APPLYING_MAX {
        let answer = executor.answer().await.unwrap();
        assert!(matches!(answer, Answer::Averaged(Averaged::Applied { applied: true, .. })));
    }
}
