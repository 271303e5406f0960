//! The thread that owns weights, optimizer state and device.
//!
//! The loop of a replica sends jobs over a bounded channel; there is no lock around weights. The engine is built on the
//! thread itself, so that no code outside is generic over the device. If the device fails, the thread ends, and the
//! loop gets the error when it sends a job or waits for a reply.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use swarmline_scheduler::WeightVersion;
use swarmline_scheduler::averaging::{
    APPLYING_MAX, FragmentSize, Job as AveragingJob, Reply as AveragingReply,
};
use swarmline_scheduler::prediction::PredictionJob;
use swarmline_scheduler::stage::{Job, JobReply};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

use super::engine::Exported;
use crate::error::Error;

/// The engine on the executor's thread.
pub(crate) trait Compute {
    /// Does a job; `None` for jobs without a reply. An error means that the device failed, and ends the thread.
    fn run(&mut self, job: Job<Bytes>) -> Result<Option<JobReply<Bytes>>, Error>;
    /// Computes the pass of a reader, or says why it cannot. An error means that the device failed.
    fn predict(&mut self, job: PredictionJob<Bytes>) -> Result<Predicted, Error>;
    /// Sets the clock of the run that the learning rate follows: the number of microbatches before that of the next job.
    fn set_clock(&mut self, microbatches: u64);
    /// Does a job of an averaging round, likewise.
    fn average(&mut self, job: AveragingJob<Bytes>) -> Result<Option<AveragingReply<Bytes>>, Error>;
    /// Steps with the contributions that wait for the rest of their step. An error means that the device failed.
    fn step_rest(&mut self) -> Result<(), Error>;
    /// Smallest number of parts with which every part of a fragment fits a frame.
    fn fragment_size(&self) -> FragmentSize;
    /// Begins a copy of the state as it is now, for a joiner, in place of a copy under way.
    fn begin_export(&mut self);
    /// Copies about `bytes` more bytes. Returns the copy when it is complete; `None` if none is under way.
    fn export_more(&mut self, bytes: usize) -> Result<Option<Exported>, Error>;
    /// Imports a state from a donor, which has named its version. After [`Error::State`], the engine is unchanged.
    fn import_state(&mut self, state: &[u8], version: WeightVersion, origin: Origin) -> Result<(), Error>;
    /// Counters for reports.
    fn statistics(&self) -> Statistics;
    /// The last call: writes the parameter log, and the weights to `save`, if any.
    fn finish(&mut self, save: Option<&Path>) -> Result<(), Error>;
}

/// What a pass of a reader has led to: activation or logits, or the fault for the reader.
pub(crate) type Predicted = Result<Bytes, String>;

/// Counters of the engine.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Statistics {
    /// Optimizer steps.
    pub steps: u64,
    /// Median staleness of contributions, weight versions.
    pub staleness_p50: u64,
    /// Largest staleness, weight versions.
    pub staleness_max: u64,
    /// Contributions left out, since their gradients were far larger than those before.
    pub skipped: u64,
    /// Contributions that wait for the rest of their step.
    pub waiting: u64,
}

/// A reply of the thread to a job.
#[derive(Debug)]
pub(crate) enum ExecutorEvent {
    /// Reply to a job of a microbatch.
    Completed(JobReply<Bytes>),
    /// Reply to a job of an averaging round.
    Averaged(AveragingReply<Bytes>),
    /// Reply to the pass of a reader.
    Predicted(Predicted),
}

#[derive(Debug)]
enum Task {
    /// A job, and the clock of the run at its microbatch.
    Job(Job<Bytes>, Option<u64>),
    Average(AveragingJob<Bytes>),
    Predict(PredictionJob<Bytes>),
    StepRest,
    Export(oneshot::Sender<Result<Exported, Error>>),
    Import((Bytes, WeightVersion, Origin), oneshot::Sender<Result<(), Error>>),
    Finish(Option<PathBuf>, oneshot::Sender<Result<(), Error>>),
}

/// Handle to the executor. Dropping the handle ends the thread after the jobs in its channel.
#[derive(Debug)]
pub(crate) struct Executor {
    tasks: mpsc::Sender<Task>,
    completed: mpsc::Receiver<JobReply<Bytes>>,
    averaged: mpsc::Receiver<AveragingReply<Bytes>>,
    predicted: mpsc::Receiver<Predicted>,
    statistics: watch::Receiver<Statistics>,
    fault: Fault,
    fragment_size: FragmentSize,
}

/// The error that ended the thread.
#[derive(Clone, Debug, Default)]
struct Fault(Arc<Mutex<Option<Error>>>);

impl Fault {
    fn note(&self, error: Error) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    /// The error; later calls get [`Error::ExecutorGone`].
    fn take(&self) -> Error {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or(Error::ExecutorGone)
    }
}

/// Limit of the requests in the channel besides jobs: export, import, finish, the pass of a reader, and two steps with the
/// rest of an accumulation, in the last rounds and at the departure.
const REQUESTS_MAX: usize = 6;
/// Bytes of a state that are copied between two jobs while a joiner waits for the state: some milliseconds.
const EXPORT_SLICE_BYTES: usize = 8 << 20;
/// Limit of the averaging jobs in the channel: means, the end of a round and the begin of the next.
const AVERAGING_JOBS_MAX: usize = APPLYING_MAX + 2;

impl Executor {
    /// Starts the thread and waits until `build` has made the engine. `jobs_max` bounds the channels of jobs and
    /// replies.
    pub(crate) async fn start(
        jobs_max: usize,
        build: impl FnOnce() -> Result<Box<dyn Compute>, Error> + Send + 'static,
    ) -> Result<Self, Error> {
        let (tasks, mut task_queue) = mpsc::channel(jobs_max + AVERAGING_JOBS_MAX + REQUESTS_MAX);
        let (completed_sender, completed) = mpsc::channel(jobs_max);
        let (averaged_sender, averaged) = mpsc::channel(AVERAGING_JOBS_MAX);
        let (predicted_sender, predicted) = mpsc::channel(1);
        let (publish, statistics) = watch::channel(Statistics::default());
        let (built, ready) = oneshot::channel();
        let fault = Fault::default();
        let thread_fault = fault.clone();
        std::thread::Builder::new()
            .name("executor".to_owned())
            .spawn(move || match build() {
                Ok(compute) => {
                    let _ = built.send(Ok(compute.fragment_size()));
                    let replies = Replies {
                        completed: completed_sender,
                        averaged: averaged_sender,
                        predicted: predicted_sender,
                    };
                    // The fault is noted before the channels close.
                    let _ = work(compute, &mut task_queue, &replies, &publish)
                        .map_err(|error| thread_fault.note(error));
                }
                Err(error) => {
                    let _ = built.send(Err(error));
                }
            })
            .map_err(|error| Error::Thread { error })?;
        let fragment_size = ready.await.map_err(|_| Error::ExecutorGone)??;
        Ok(Self { tasks, completed, averaged, predicted, statistics, fault, fragment_size })
    }

    /// Queues a job, at a clock of the run if the schedule follows that one. The channel has room for every job that the
    /// stage may have outstanding.
    pub(crate) fn submit(&self, job: Job<Bytes>, clock: Option<u64>) -> Result<(), Error> {
        self.tasks.try_send(Task::Job(job, clock)).map_err(|_| self.fault.take())
    }

    /// The next reply.
    pub(crate) async fn event(&mut self) -> Result<ExecutorEvent, Error> {
        tokio::select! {
            Some(reply) = self.completed.recv() => Ok(ExecutorEvent::Completed(reply)),
            Some(reply) = self.averaged.recv() => Ok(ExecutorEvent::Averaged(reply)),
            Some(reply) = self.predicted.recv() => Ok(ExecutorEvent::Predicted(reply)),
            else => Err(self.fault.take()),
        }
    }

    /// The size of a fragment of the stage.
    pub(crate) fn fragment_size(&self) -> FragmentSize {
        self.fragment_size
    }

    /// Queues a job of an averaging round. The channel has room for every job that may be outstanding.
    pub(crate) fn average(&self, job: AveragingJob<Bytes>) -> Result<(), Error> {
        self.tasks.try_send(Task::Average(job)).map_err(|_| self.fault.take())
    }

    /// Queues a step with the contributions that wait for the rest of theirs.
    pub(crate) fn step_rest(&self) -> Result<(), Error> {
        self.tasks.try_send(Task::StepRest).map_err(|_| self.fault.take())
    }

    /// Queues the pass of a reader. At most one is outstanding.
    pub(crate) fn predict(&self, job: PredictionJob<Bytes>) -> Result<(), Error> {
        self.tasks.try_send(Task::Predict(job)).map_err(|_| self.fault.take())
    }

    /// A copy of the whole state as it is after the jobs submitted so far. It is made a slice at a time, so that no job waits
    /// long; one that is under way is completed before a second one begins.
    pub(crate) fn export_state(&self) -> impl Future<Output = Result<Exported, Error>> + use<> {
        let (reply, replied) = oneshot::channel();
        let is_queued = self.tasks.try_send(Task::Export(reply)).is_ok();
        async move {
            if !is_queued {
                return Err(Error::ExecutorGone);
            }
            replied.await.map_err(|_| Error::ExecutorGone)?
        }
    }

    /// Imports a state from a donor, which has named its version, between two jobs. After [`Error::State`], the engine is
    /// unchanged.
    pub(crate) fn import_state(
        &self,
        state: Bytes,
        version: WeightVersion,
        origin: Origin,
    ) -> impl Future<Output = Result<(), Error>> + use<> {
        let tasks = self.tasks.clone();
        async move { request(&tasks, |reply| Task::Import((state, version, origin), reply)).await }
    }

    /// Counters after the last job done.
    pub(crate) fn statistics(&self) -> Statistics {
        *self.statistics.borrow()
    }

    /// Writes the weights to `save`, if any, after all jobs queued before.
    pub(crate) async fn finish(&self, save: Option<PathBuf>) -> Result<(), Error> {
        request(&self.tasks, |reply| Task::Finish(save, reply)).await
    }
}

async fn request<T>(
    tasks: &mpsc::Sender<Task>,
    task: impl FnOnce(oneshot::Sender<Result<T, Error>>) -> Task,
) -> Result<T, Error> {
    let (reply, replied) = oneshot::channel();
    tasks.send(task(reply)).await.map_err(|_| Error::ExecutorGone)?;
    replied.await.map_err(|_| Error::ExecutorGone)?
}

/// Where the state of a stage comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A replica that serves the stage, and knows more than this one until both have averaged.
    Replica,
    /// A keeper: no replica serves the stage.
    Keeper,
}

/// The channels for the thread's replies.
struct Replies {
    completed: mpsc::Sender<JobReply<Bytes>>,
    averaged: mpsc::Sender<AveragingReply<Bytes>>,
    predicted: mpsc::Sender<Predicted>,
}

/// The caller that waits for a copy of the state.
type ExportReply = Option<oneshot::Sender<Result<Exported, Error>>>;

/// Does tasks until the executor is dropped or the device fails. Between tasks it goes on with a copy of the state.
fn work(
    mut compute: Box<dyn Compute>,
    tasks: &mut mpsc::Receiver<Task>,
    replies: &Replies,
    statistics: &watch::Sender<Statistics>,
) -> Result<(), Error> {
    let mut export: ExportReply = None;
    while let Some(task) = next_task(tasks, export.is_some()) {
        if let Some(task) = task
            && !perform(task, compute.as_mut(), replies, statistics, &mut export)?
        {
            return Ok(());
        }
        // A copy fails only with the device.
        if export.is_some() {
            export_more(compute.as_mut(), &mut export, EXPORT_SLICE_BYTES)?;
        }
    }
    Ok(())
}

/// Goes on with the copy under way, and hands it over when it is complete.
fn export_more(compute: &mut dyn Compute, export: &mut ExportReply, bytes: usize) -> Result<(), Error> {
    if let Some(copy) = compute.export_more(bytes)? {
        let _ = export.take().map(|reply| reply.send(Ok(copy)));
    }
    Ok(())
}

/// The next task; `None` if the executor is dropped. With other work to do it does not wait: `Some(None)`.
fn next_task(tasks: &mut mpsc::Receiver<Task>, is_busy: bool) -> Option<Option<Task>> {
    if !is_busy {
        return tasks.blocking_recv().map(Some);
    }
    match tasks.try_recv() {
        Ok(task) => Some(Some(task)),
        Err(TryRecvError::Empty) => Some(None),
        Err(TryRecvError::Disconnected) => None,
    }
}

/// Does one task; `false` if the executor is dropped.
fn perform(
    task: Task,
    compute: &mut dyn Compute,
    replies: &Replies,
    statistics: &watch::Sender<Statistics>,
    export: &mut ExportReply,
) -> Result<bool, Error> {
    match task {
        Task::Job(job, clock) => {
            if let Some(microbatches) = clock {
                compute.set_clock(microbatches);
            }
            let reply = compute.run(job)?;
            statistics.send_replace(compute.statistics());
            return Ok(reply.is_none_or(|reply| replies.completed.blocking_send(reply).is_ok()));
        }
        Task::Average(job) => {
            let reply = compute.average(job)?;
            return Ok(reply.is_none_or(|reply| replies.averaged.blocking_send(reply).is_ok()));
        }
        Task::Predict(job) => {
            let reply = compute.predict(job)?;
            return Ok(replies.predicted.blocking_send(reply).is_ok());
        }
        Task::StepRest => {
            compute.step_rest()?;
            statistics.send_replace(compute.statistics());
        }
        Task::Export(reply) => {
            export_more(compute, export, usize::MAX)?;
            compute.begin_export();
            *export = Some(reply);
        }
        Task::Import((state, version, origin), reply) => {
            let imported = compute.import_state(&state, version, origin);
            statistics.send_replace(compute.statistics());
            // The copy under way is of a state that is gone.
            *export = None;
            let _ = reply.send(imported);
        }
        Task::Finish(save, reply) => {
            let _ = reply.send(compute.finish(save.as_deref()));
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests;
