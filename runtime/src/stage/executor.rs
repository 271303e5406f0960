//! The thread that owns weights, optimizer state and device.
//!
//! Others send it jobs over a bounded channel; there is no lock around weights. What it runs is built on the
//! thread itself, so that nothing outside is generic over the device. If its device fails, the thread ends, and who
//! hands it jobs or waits for answers hears why.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::averaging::{APPLYING_MAX, Event as Averaged};
use swarmline_scheduler::stage::{Completion, Job};
use tokio::sync::{mpsc, oneshot, watch};

use crate::averaging;
use crate::error::Error;

/// What the executor's thread runs.
pub(super) trait Compute {
    /// Does a job; `None` for jobs without an answer. An error is the end: the device failed.
    fn run(&mut self, job: Job<Bytes>) -> Result<Option<Completion<Bytes>>, Error>;
    /// Does a job of an averaging round; `None` for jobs without an answer. An error is the end: the device failed.
    fn average(&mut self, job: averaging::Job) -> Result<Option<Averaged<Bytes>>, Error>;
    /// Parts an index set must at least be cut into so that each fits a frame.
    fn parts_min(&self) -> u32;
    /// A copy of the whole state, for a joiner.
    fn export_state(&mut self) -> Result<Exported, Error>;
    /// Takes over a state from a donor, or changes nothing.
    fn import_state(&mut self, state: &[u8]) -> Result<(), Error>;
    /// Counters for reports.
    fn statistics(&self) -> Statistics;
    /// The last call: writes the weights to `save`, if that is asked for, and whatever else is to be left behind.
    fn finish(&mut self, save: Option<&Path>) -> Result<(), Error>;
}

/// What the thread counts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Statistics {
    /// Optimizer steps.
    pub updates: u64,
    /// Median staleness of contributions, weight versions.
    pub staleness_p50: u64,
    /// Largest staleness, weight versions.
    pub staleness_max: u64,
}

/// A copy of a whole state.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Exported {
    /// Updates in it.
    pub(super) version: WeightVersion,
    /// All of it.
    pub(super) bytes: Bytes,
}

/// What comes back from the thread by itself.
#[derive(Debug)]
pub(super) enum Answer {
    /// A job of a microbatch is done.
    Completed(Completion<Bytes>),
    /// A job of an averaging round is done.
    Averaged(Averaged<Bytes>),
}

#[derive(Debug)]
enum Task {
    Job(Job<Bytes>),
    Average(averaging::Job),
    Export(oneshot::Sender<Result<Exported, Error>>),
    Import(Bytes, oneshot::Sender<Result<(), Error>>),
    Finish(Option<PathBuf>, oneshot::Sender<Result<(), Error>>),
}

/// Handle to the executor. Dropping it ends the thread after the jobs it still has.
#[derive(Debug)]
pub(super) struct Executor {
    tasks: mpsc::Sender<Task>,
    completions: mpsc::Receiver<Completion<Bytes>>,
    averaged: mpsc::Receiver<Averaged<Bytes>>,
    statistics: watch::Receiver<Statistics>,
    fault: Fault,
    parts_min: u32,
}

/// Why the thread ended before it was told to.
#[derive(Clone, Debug, Default)]
struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    fn note(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The reason, for the first who asks.
    fn take(&self) -> Error {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Error::ExecutorGone)
    }
}

/// Requests besides jobs that can lie in the channel: to copy a state, to take one, to finish.
const REQUESTS_MAX: usize = 3;
/// Jobs of averaging that can lie in the channel: means, the end of a round and the begin of the next.
const AVERAGING_JOBS_MAX: usize = APPLYING_MAX + 2;

impl Executor {
    /// Starts the thread and waits until `build` has made what it runs. `jobs_max` bounds the channel both ways.
    pub(super) async fn start(
        jobs_max: usize,
        build: impl FnOnce() -> Result<Box<dyn Compute>, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (tasks, mut task_queue) = mpsc::channel(jobs_max + AVERAGING_JOBS_MAX + REQUESTS_MAX);
        let (answers, completions) = mpsc::channel(jobs_max);
        let (averaging_answers, averaged) = mpsc::channel(AVERAGING_JOBS_MAX);
        let (publish, statistics) = watch::channel(Statistics::default());
        let (built, ready) = oneshot::channel();
        let fault = Fault::default();
        let last_words = fault.clone();
        std::thread::Builder::new()
            .name("executor".to_owned())
            .spawn(move || match build() {
                Ok(compute) => {
                    let _ = built.send(Ok(compute.parts_min()));
                    let answers = Answers { completions: answers, averaged: averaging_answers };
                    // Noted before the channels close.
                    let _ = work(compute, &mut task_queue, &answers, &publish)
                        .map_err(|error| last_words.note(error));
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            })
            .map_err(|error| Error::Thread { error })?;
        let parts_min = ready.await.map_err(|_| Error::ExecutorGone)??;
        Ok(Self { tasks, completions, averaged, statistics, fault, parts_min })
    }

    /// Hands over a job. The channel has room for every job the stage may have outstanding.
    pub(super) fn submit(&self, job: Job<Bytes>) -> Result<(), Error> {
        self.tasks.try_send(Task::Job(job)).map_err(|_| self.fault.take())
    }

    /// The next answer to a job of either kind.
    pub(super) async fn answer(&mut self) -> Result<Answer, Error> {
        tokio::select! {
            Some(completion) = self.completions.recv() => Ok(Answer::Completed(completion)),
            Some(event) = self.averaged.recv() => Ok(Answer::Averaged(event)),
            else => Err(self.fault.take()),
        }
    }

    /// Parts an index set must at least be cut into so that each fits a frame.
    pub(super) fn parts_min(&self) -> u32 {
        self.parts_min
    }

    /// Hands over a job of an averaging round. The channel has room for every one that may be outstanding.
    pub(super) fn average(&self, job: averaging::Job) -> Result<(), Error> {
        self.tasks.try_send(Task::Average(job)).map_err(|_| self.fault.take())
    }

    /// A copy of the whole state, between two jobs.
    pub(super) fn export_state(&self) -> impl Future<Output = Result<Exported, Error>> + use<> {
        let tasks = self.tasks.clone();
        async move { request(&tasks, Task::Export).await }
    }

    /// Takes over a state from a donor, between two jobs; if it is refused, nothing has changed.
    pub(super) async fn import_state(&self, state: Bytes) -> Result<(), Error> {
        request(&self.tasks, |answer| Task::Import(state, answer)).await
    }

    /// Counters after the last job done.
    pub(super) fn statistics(&self) -> Statistics {
        *self.statistics.borrow()
    }

    /// After all jobs handed over: writes the weights to `save`, if there is such a path.
    pub(super) async fn finish(&self, save: Option<PathBuf>) -> Result<(), Error> {
        request(&self.tasks, |answer| Task::Finish(save, answer)).await
    }
}

async fn request<T>(
    tasks: &mpsc::Sender<Task>,
    task: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Task,
) -> Result<T, Error> {
    let (answer, answered) = oneshot::channel();
    tasks.send(task(answer)).await.map_err(|_| Error::ExecutorGone)?;
    answered.await.map_err(|_| Error::ExecutorGone)?
}

/// Where the thread's answers go.
struct Answers {
    completions: mpsc::Sender<Completion<Bytes>>,
    averaged: mpsc::Sender<Averaged<Bytes>>,
}

/// Until nobody asks any more, or the device fails.
fn work(
    mut compute: Box<dyn Compute>,
    tasks: &mut mpsc::Receiver<Task>,
    answers: &Answers,
    statistics: &watch::Sender<Statistics>,
) -> Result<(), Error> {
    while let Some(task) = tasks.blocking_recv() {
        match task {
            Task::Job(job) => {
                let completion = compute.run(job)?;
                statistics.send_replace(compute.statistics());
                if let Some(completion) = completion
                    && answers.completions.blocking_send(completion).is_err()
                {
                    return Ok(());
                }
            }
            Task::Average(job) => {
                if let Some(event) = compute.average(job)?
                    && answers.averaged.blocking_send(event).is_err()
                {
                    return Ok(());
                }
            }
            // A copy fails for no other reason.
            Task::Export(answer) => {
                let _ = answer.send(Ok(compute.export_state()?));
            }
            Task::Import(state, answer) => {
                let imported = compute.import_state(&state);
                statistics.send_replace(compute.statistics());
                let _ = answer.send(imported);
            }
            Task::Finish(save, answer) => {
                let _ = answer.send(compute.finish(save.as_deref()));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests;
