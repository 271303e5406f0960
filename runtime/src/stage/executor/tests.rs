//! The thread, and its tasks besides microbatches.

use std::time::{Duration, Instant};

use swarmline_kernels::Cpu;
use swarmline_scheduler::averaging::{FragmentSize, PartIndex, Round};
use swarmline_scheduler::prediction::Pass;
use swarmline_scheduler::{MicrobatchId, StageIndex, WeightVersion};

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
    let bytes = Bytes::from(state.clone().into_bytes().unwrap());
    joiner.import_state(bytes.clone(), WeightVersion(0), Origin::Replica).await.unwrap();
    assert_eq!(joiner.export_state().await.unwrap(), state);
    assert!(matches!(
        joiner.import_state(bytes.slice(1..), WeightVersion(0), Origin::Replica).await,
        Err(Error::State(_))
    ));
}

/// A device that fails at the first job of any kind.
struct Failing;

impl Compute for Failing {
    fn run(&mut self, _: Job<Bytes>) -> Result<Option<JobReply<Bytes>>, Error> {
        Err(swarmline_kernels::Error::Device("run".to_owned()).into())
    }

    fn predict(&mut self, _: PredictionJob<Bytes>) -> Result<Predicted, Error> {
        Err(swarmline_kernels::Error::Device("predict".to_owned()).into())
    }

    fn set_clock(&mut self, _: u64) {}

    fn average(&mut self, _: AveragingJob<Bytes>) -> Result<Option<AveragingReply<Bytes>>, Error> {
        Err(swarmline_kernels::Error::Device("average".to_owned()).into())
    }

    fn step_rest(&mut self) -> Result<(), Error> {
        Err(swarmline_kernels::Error::Device("step".to_owned()).into())
    }

    fn fragment_size(&self) -> FragmentSize {
        FragmentSize::default()
    }

    fn begin_export(&mut self) {}

    fn export_more(&mut self, _: usize) -> Result<Option<Exported>, Error> {
        Err(swarmline_kernels::Error::Device("export".to_owned()).into())
    }

    fn import_state(&mut self, _: &[u8], _: WeightVersion, _: Origin) -> Result<(), Error> {
        Ok(())
    }

    fn statistics(&self) -> Statistics {
        Statistics::default()
    }

    fn finish(&mut self, _: Option<&Path>) -> Result<(), Error> {
        Ok(())
    }
}

#[tokio::test]
async fn a_failing_device_is_heard_of_whatever_the_task() {
    for which in ["run", "average", "predict", "step", "export"] {
        let mut executor = Executor::start(4, || Ok(Box::new(Failing))).await.unwrap();
        match which {
            "run" => executor.submit(Job::Apply { microbatch: MicrobatchId(1) }, None).unwrap(),
            "average" => {
                let round = Round(1);
                let job = AveragingJob::Finish { round, fragment: round.fragment(20), complete: true };
                executor.average(job).unwrap();
            }
            "step" => executor.step_rest().unwrap(),
            "predict" => {
                let pass = Pass { number: 0, stage: StageIndex(0), position: 0 };
                let (ids, activation) = Default::default();
                executor.predict(PredictionJob { pass, ids, activation }).unwrap();
            }
            _ => assert!(matches!(executor.export_state().await, Err(Error::ExecutorGone))),
        }
        let fault = executor.event().await.unwrap_err();
        assert!(matches!(&fault, Error::Device(_)) && fault.to_string().contains(which), "{fault}");
    }
}

#[tokio::test]
async fn means_and_the_end_of_a_round_find_room() {
    let mut executor = executor(1).await;
    let round = Round(3);
    let fragment = round.fragment(20);
    executor.average(AveragingJob::Snapshot { round, fragment, parts: 2 }).unwrap();
    let snapshot = executor.event().await.unwrap();
    let ExecutorEvent::Averaged(AveragingReply::Snapshot { parts, .. }) = snapshot else {
        panic!("no snapshot")
    };
    for _ in 0..APPLYING_MAX {
        let job =
            AveragingJob::Apply { round, part: PartIndex(1), mean: parts[1].clone(), contributed: true };
        executor.average(job).unwrap();
    }
    executor.average(AveragingJob::Finish { round, fragment, complete: true }).unwrap();
    for _ in 0..APPLYING_MAX {
        let applied = executor.event().await.unwrap();
        assert!(matches!(applied, ExecutorEvent::Averaged(AveragingReply::Applied { applied: true, .. })));
    }
}

/// A state of 200 MB: 16.7 million parameters with two moments each.
fn large_engine() -> Result<Engine<Cpu>, Error> {
    let mut run = tiny(Kind::None, Packing::F32);
    (run.model.vocab_size, run.model.hidden_size, run.pipeline.replicas) = (65_536, 256, 1);
    Ok(Engine::new(Cpu::new(1)?, &run, run.last_stage(), 1, Learning::Active)?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_copy_of_a_large_state_delays_no_job_for_long() {
    let mut engine = large_engine().unwrap();
    let began = Instant::now();
    let bytes = engine.export_state().unwrap().len();
    let in_one_piece = began.elapsed();
    let mut executor = Executor::start(4, move || Ok(Box::new(engine))).await.unwrap();
    let mut export = std::pin::pin!(executor.export_state());
    let (mut longest, mut jobs) = (Duration::ZERO, 0);
    loop {
        // A job without work, whose reply shows when the thread came to it.
        let asked = Instant::now();
        executor.submit(Job::Apply { microbatch: MicrobatchId(1) }, None).unwrap();
        executor.event().await.unwrap();
        (longest, jobs) = (longest.max(asked.elapsed()), jobs + 1);
        if tokio::time::timeout(Duration::ZERO, export.as_mut()).await.is_ok() {
            break;
        }
    }
    println!("{bytes} bytes: {in_one_piece:?} in one piece; in slices {longest:?} at most for {jobs} jobs");
    assert!(bytes > 190_000_000 && jobs > 3);
    assert!(longest < in_one_piece / 2, "{longest:?} of {in_one_piece:?}");
}
