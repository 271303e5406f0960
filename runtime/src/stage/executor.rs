//! The thread that owns weights, optimizer state and device.
//!
//! Others send it jobs over a bounded channel; there is no lock around weights. What it runs is built on the
//! thread itself, so that nothing outside is generic over the device.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use swarmline_scheduler::stage::{Completion, Job};
use tokio::sync::{mpsc, oneshot, watch};

use crate::error::Error;

/// What the executor's thread runs.
pub(super) trait Compute {
    /// Does a job; `None` for jobs without an answer.
    fn run(&mut self, job: Job<Bytes>) -> Option<Completion<Bytes>>;
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

#[derive(Debug)]
enum Task {
    Job(Job<Bytes>),
    Finish(Option<PathBuf>, oneshot::Sender<Result<(), Error>>),
}

/// Handle to the executor. Dropping it ends the thread after the jobs it still has.
#[derive(Debug)]
pub(super) struct Executor {
    tasks: mpsc::Sender<Task>,
    completions: mpsc::Receiver<Completion<Bytes>>,
    statistics: watch::Receiver<Statistics>,
}

/// Tasks besides jobs that can lie in the channel: the request to finish.
const REQUESTS_MAX: usize = 1;

impl Executor {
    /// Starts the thread and waits until `build` has made what it runs. `jobs_max` bounds the channel both ways.
    pub(super) async fn start<C: Compute>(
        jobs_max: usize,
        build: impl FnOnce() -> Result<C, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (tasks, task_queue) = mpsc::channel(jobs_max + REQUESTS_MAX);
        let (answers, completions) = mpsc::channel(jobs_max);
        let (publish, statistics) = watch::channel(Statistics::default());
        let (built, ready) = oneshot::channel();
        std::thread::Builder::new()
            .name("executor".to_owned())
            .spawn(move || match build() {
                Ok(compute) => {
                    let _ = built.send(Ok(()));
                    work(compute, task_queue, &answers, &publish);
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            })
            .map_err(|error| Error::Thread { error })?;
        ready.await.map_err(|_| Error::ExecutorGone)??;
        Ok(Self { tasks, completions, statistics })
    }

    /// Hands over a job. The channel has room for every job the stage may have outstanding.
    pub(super) fn submit(&self, job: Job<Bytes>) -> Result<(), Error> {
        self.tasks.try_send(Task::Job(job)).map_err(|_| Error::ExecutorGone)
    }

    /// The next answer.
    pub(super) async fn completion(&mut self) -> Result<Completion<Bytes>, Error> {
        self.completions.recv().await.ok_or(Error::ExecutorGone)
    }

    /// Counters after the last job done.
    pub(super) fn statistics(&self) -> Statistics {
        *self.statistics.borrow()
    }

    /// After all jobs handed over: writes the weights to `save`, if there is such a path.
    pub(super) async fn finish(&self, save: Option<PathBuf>) -> Result<(), Error> {
        let (answer, finished) = oneshot::channel();
        self.tasks.send(Task::Finish(save, answer)).await.map_err(|_| Error::ExecutorGone)?;
        finished.await.map_err(|_| Error::ExecutorGone)?
    }
}

fn work(
    mut compute: impl Compute,
    mut tasks: mpsc::Receiver<Task>,
    answers: &mpsc::Sender<Completion<Bytes>>,
    statistics: &watch::Sender<Statistics>,
) {
    while let Some(task) = tasks.blocking_recv() {
        match task {
            Task::Job(job) => {
                let completion = compute.run(job);
                statistics.send_replace(compute.statistics());
                if let Some(completion) = completion
                    && answers.blocking_send(completion).is_err()
                {
                    return;
                }
            }
            Task::Finish(save, answer) => {
                let _ = answer.send(compute.finish(save.as_deref()));
            }
        }
    }
}
