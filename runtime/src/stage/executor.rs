//! The thread that owns weights, optimizer state and device.
//!
//! Others send it jobs over a bounded channel; there is no lock around weights. What it runs is built on the
//! thread itself, so that nothing outside is generic over the device.

use std::path::PathBuf;

use bytes::Bytes;
use swarmline_scheduler::stage::{Completion, Job};
use tokio::sync::{mpsc, oneshot};

use super::engine::Statistics;
use crate::error::Error;

/// What the executor's thread runs.
pub(super) trait Compute {
    /// Does a job; `None` for jobs without an answer.
    fn run(&mut self, job: Job<Bytes>) -> Option<Completion<Bytes>>;
    /// Counters for reports.
    fn statistics(&self) -> Statistics;
    /// Writes the shard's weights.
    fn save(&mut self, path: &std::path::Path) -> Result<(), Error>;
}

#[derive(Debug)]
enum Task {
    Job(Job<Bytes>),
    Statistics(oneshot::Sender<Statistics>),
    Save(PathBuf, oneshot::Sender<Result<(), Error>>),
}

/// Handle to the executor. Dropping it ends the thread after the jobs it still has.
#[derive(Debug)]
pub(super) struct Executor {
    tasks: mpsc::Sender<Task>,
    completions: mpsc::Receiver<Completion<Bytes>>,
}

/// Tasks besides jobs that can lie in the channel: one request for statistics, one for saving.
const REQUESTS_MAX: usize = 2;

impl Executor {
    /// Starts the thread and waits until `build` has made what it runs. `jobs_max` bounds the channel both ways.
    pub(super) async fn start<C: Compute>(
        jobs_max: usize,
        build: impl FnOnce() -> Result<C, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (tasks, task_queue) = mpsc::channel(jobs_max + REQUESTS_MAX);
        let (answers, completions) = mpsc::channel(jobs_max);
        let (built, ready) = oneshot::channel();
        std::thread::Builder::new()
            .name("executor".to_owned())
            .spawn(move || match build() {
                Ok(compute) => {
                    let _ = built.send(Ok(()));
                    work(compute, task_queue, &answers);
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            })
            .map_err(|error| Error::Thread { error })?;
        ready.await.map_err(|_| Error::ExecutorGone)??;
        Ok(Self { tasks, completions })
    }

    /// Hands over a job. The channel has room for every job the stage may have outstanding.
    pub(super) fn submit(&self, job: Job<Bytes>) -> Result<(), Error> {
        self.tasks.try_send(Task::Job(job)).map_err(|_| Error::ExecutorGone)
    }

    /// The next answer.
    pub(super) async fn completion(&mut self) -> Result<Completion<Bytes>, Error> {
        self.completions.recv().await.ok_or(Error::ExecutorGone)
    }

    /// Counters as of now.
    pub(super) async fn statistics(&self) -> Result<Statistics, Error> {
        let (answer, statistics) = oneshot::channel();
        self.tasks.send(Task::Statistics(answer)).await.map_err(|_| Error::ExecutorGone)?;
        statistics.await.map_err(|_| Error::ExecutorGone)
    }

    /// Writes the shard's weights to `path`.
    pub(super) async fn save(&self, path: PathBuf) -> Result<(), Error> {
        let (answer, saved) = oneshot::channel();
        self.tasks.send(Task::Save(path, answer)).await.map_err(|_| Error::ExecutorGone)?;
        saved.await.map_err(|_| Error::ExecutorGone)?
    }
}

fn work(mut compute: impl Compute, mut tasks: mpsc::Receiver<Task>, answers: &mpsc::Sender<Completion<Bytes>>) {
    while let Some(task) = tasks.blocking_recv() {
        match task {
            Task::Job(job) => {
                if let Some(completion) = compute.run(job)
                    && answers.blocking_send(completion).is_err()
                {
                    return;
                }
            }
            Task::Statistics(answer) => {
                let _ = answer.send(compute.statistics());
            }
            Task::Save(path, answer) => {
                let _ = answer.send(compute.save(&path));
            }
        }
    }
}
