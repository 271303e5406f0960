//! The engine's part in averaging rounds, between two microbatches.

use bytes::Bytes;
use swarmline_kernels::{Backend, Result};
use swarmline_scheduler::averaging::{Job, Reply};

use super::Engine;
use crate::averaging::{Averager, FragmentSnapshot, Fragments, Learned, TensorsMut, reduce};
use crate::hashing::digest;
use crate::model::ParameterLog;

/// Parts of an engine, for code that writes values from outside into the weights.
pub(super) struct Opened<'a, B: Backend> {
    pub(super) backend: &'a mut B,
    pub(super) learned: Learned<'a, B::Tensor>,
    log: &'a mut ParameterLog,
    pub(super) averager: &'a mut Averager,
}

impl<B: Backend> Engine<B> {
    /// The fragments of this stage's numbers.
    #[must_use]
    pub fn fragments(&self) -> &Fragments {
        self.averager.fragments()
    }

    /// Does a job of an averaging round; `Finish` has no reply. A mean that cannot be used is logged, and the round
    /// goes on without it.
    ///
    /// # Errors
    /// If the device fails.
    pub fn average(&mut self, job: Job<Bytes>) -> Result<Option<Reply<Bytes>>> {
        if matches!(job, Job::Apply { .. }) {
            self.complete_export()?;
        }
        let Opened { backend, mut learned, log, averager } = self.opened();
        Ok(match job {
            Job::Snapshot { round, fragment, parts } => {
                let FragmentSnapshot { uncarried, weight, parts } =
                    averager.snapshot(backend, &learned, round, fragment, parts)?;
                Some(Reply::Snapshot { round, uncarried, weight, parts })
            }
            Job::Reduce { round, part, attempt, own, inputs } => {
                Some(Reply::Reduced { round, part, attempt, outcome: reduce(&own, &inputs) })
            }
            Job::Apply { round, part, mean, contributed } => {
                let taken = averager.apply(round, part, mean, contributed).inspect_err(|error| {
                    tracing::warn!(%error, round = round.0, part = part.0, "a mean was not applied");
                });
                Some(Reply::Applied { round, part, applied: taken.is_ok() })
            }
            Job::Finish { round, complete, .. } => {
                let record = |name: &str, weights: &[f32]| log.record(name, digest(weights));
                averager.finish(backend, &mut learned, round, complete, record)?;
                None
            }
        })
    }

    pub(super) fn opened(&mut self) -> Opened<'_, B> {
        let version = self.optimizer.version();
        let (backend, params, log) = self.shard.backend_params_and_log();
        let both = params.iter_mut().zip(self.optimizer.moments_mut());
        let tensors = both.map(|(parameter, (name, len, moment1, moment2))| TensorsMut {
            name,
            len,
            weight: &mut parameter.weight,
            moment1,
            moment2,
        });
        let learned = Learned { version, tensors: tensors.collect() };
        Opened { backend, learned, log, averager: &mut self.averager }
    }
}
