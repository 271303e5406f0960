//! The work of a stage on a microbatch: unpack, forward, stash, pack; unpack, backward, step.
//!
//! An engine is synchronous and has no network: the executor of a replica runs one engine, `train` runs the engines of
//! all stages in a row. A job that fails leaves no stash and no part of a gradient.

mod average;
mod state;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use swarmline_kernels::Backend;
use swarmline_scheduler::averaging::{FragmentSize, Job as AveragingJob, Reply as AveragingReply};
use swarmline_scheduler::prediction::{Pass, PredictionJob};
use swarmline_scheduler::stage::{Evaluation, Job, JobOutcome, JobReply};
use swarmline_scheduler::{Block, Loss, MicrobatchId, Refusal, StageIndex, WeightVersion};

use super::executor::{Compute, Origin, Predicted, Statistics};
use crate::atomic_file;
use crate::averaging::Averager;
use crate::config::{Run, limits};
use crate::error::Error;
use crate::model::{Shard, ShardError, Snapshot, Upstream};
use crate::optim::{Contribution, ParameterMut, StageOptimizer, StalenessHistogram};
use crate::packing::{CodeError, TokenCodec, TokenError, Tokens};

pub(crate) use self::state::Exported;
pub(super) use self::state::read_counters;
pub use self::state::{StateError, state_bytes_max};

use self::state::Draft;

/// Whether an engine's weights change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Learning {
    /// Contributions change the weights.
    Active,
    /// Gradients are computed and dropped: a control.
    Frozen,
}

/// One stage of the model with its optimizer.
#[derive(Debug)]
pub struct Engine<B: Backend> {
    shard: Shard<B>,
    optimizer: StageOptimizer<B>,
    tokens: TokenCodec,
    learning: Learning,
    /// The microbatch whose gradients wait for [`Engine::apply`] or [`Engine::drop_gradients`], and the weight version
    /// of its forward pass.
    ungranted: Option<(MicrobatchId, WeightVersion)>,
    averager: Averager,
    /// The copy of the state that is under way, for a joiner.
    draft: Option<Draft>,
    gradient_accumulation_steps: u64,
    /// Microbatches of the whole run for one step of the schedule.
    microbatches_per_step: u64,
    parameter_log: Option<PathBuf>,
}

/// Whether the feeder has granted the gradients of a microbatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// The gradients are applied at once.
    Given,
    /// The gradients wait for the feeder's reply.
    Awaited,
}

/// The result of the last stage.
#[derive(Clone, Debug)]
pub struct LossAndGradient {
    /// Training loss of the microbatch.
    pub loss: Loss,
    /// Packed gradient for the stage before; empty at stage 0.
    pub gradient: Vec<u8>,
}

/// Reasons why an engine cannot process a microbatch.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The token ids do not fit the run.
    #[error(transparent)]
    Tokens(#[from] TokenError),
    /// The shard cannot compute.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The gradient of the weights is not finite.
    #[error("the gradient is not finite")]
    NonFiniteGradient,
    /// The engine holds ungranted gradients of at most one microbatch.
    #[error("the gradients of {0} wait for their grant; no others are computed meanwhile")]
    GradientsWait(MicrobatchId),
    /// A reader asks for a token behind the end of a sequence.
    #[error("position {position} in sequences of {context} tokens")]
    NoSuchPosition {
        /// The position, from 0.
        position: usize,
        /// Tokens of a sequence.
        context: usize,
    },
    /// A grant names gradients that are not here.
    #[error("no gradients of {0} wait for a grant")]
    NothingWaits(MicrobatchId),
}

impl<B: Backend> Engine<B> {
    /// The engine of `stage`, with initial weights and room for `slots` microbatches between forward and backward.
    ///
    /// # Errors
    /// If the device has no memory for the stage.
    pub fn new(
        backend: B,
        run: &Run,
        stage: StageIndex,
        slots: usize,
        learning: Learning,
    ) -> Result<Self, ShardError> {
        let mut shard = Shard::for_stage(backend, run, stage, slots)?;
        let gradient_accumulation_steps = run.pipeline.gradient_accumulation_steps;
        let (backend, params) = shard.backend_and_params();
        let sizes = || params.iter().map(|parameter| (parameter.name.as_str(), parameter.len()));
        let optimizer = StageOptimizer::new(backend, &run.optimizer, gradient_accumulation_steps, sizes())?;
        let averager = Averager::new(run, sizes());
        Ok(Self {
            shard,
            optimizer,
            tokens: TokenCodec::new(run),
            learning,
            ungranted: None,
            averager,
            draft: None,
            gradient_accumulation_steps: gradient_accumulation_steps as u64,
            microbatches_per_step: run.microbatches_per_step(),
            parameter_log: None,
        })
    }

    /// Forward pass; keeps a stash. `ids` and `activation` are packed, `activation` is empty at stage 0.
    ///
    /// # Errors
    /// If the input does not fit the run or the output is not finite. No stash is kept then.
    pub fn forward(
        &mut self,
        id: MicrobatchId,
        ids: &[u8],
        activation: &[u8],
    ) -> Result<Vec<u8>, EngineError> {
        let tokens = self.tokens.decode(ids)?;
        Ok(self.shard.forward(id, self.optimizer.version(), &tokens, activation)?)
    }

    /// Backward pass of a microbatch with a stash. With the grant given, its weight gradients are contributed, and the
    /// optimizer steps if they complete an update. Returns the packed gradient for the stage before.
    ///
    /// # Errors
    /// If the gradient is wrong or not finite, or other gradients wait. The stash is gone then.
    pub fn backward(
        &mut self,
        id: MicrobatchId,
        gradient: &[u8],
        grant: Grant,
    ) -> Result<Vec<u8>, EngineError> {
        self.assert_free(id)?;
        let outcome = self.shard.backward(id, gradient);
        let backward = outcome.or_else(|error| self.give_up(id, error.into()))?;
        self.settle(id, backward.version, grant)?;
        Ok(backward.gradient)
    }

    /// Forward, loss and backward in one pass, at the last stage. As to the grant see [`Engine::backward`].
    ///
    /// # Errors
    /// If the input does not fit the run, the loss or a gradient is not finite, or other gradients wait.
    pub fn loss_and_backward(
        &mut self,
        id: MicrobatchId,
        ids: &[u8],
        activation: &[u8],
        grant: Grant,
    ) -> Result<LossAndGradient, EngineError> {
        self.assert_free(id)?;
        let tokens = self.tokens.decode(ids)?;
        let outcome = self.shard.loss_and_backward(id, &tokens, activation);
        let result = outcome.or_else(|error| self.give_up(id, error.into()))?;
        self.settle(id, self.optimizer.version(), grant)?;
        Ok(LossAndGradient { loss: result.loss, gradient: result.gradient })
    }

    /// Contributes the waiting gradients of `id`.
    ///
    /// # Errors
    /// If no gradients of `id` wait, or the device fails.
    pub fn apply(&mut self, id: MicrobatchId) -> Result<(), EngineError> {
        let (_, version) =
            self.ungranted.take_if(|(waits, _)| *waits == id).ok_or(EngineError::NothingWaits(id))?;
        self.contribute(version)
    }

    /// Steps with the contributions that wait for the rest of their step, if there are any: no others come.
    ///
    /// # Errors
    /// If the device fails.
    pub fn step_rest(&mut self) -> Result<(), swarmline_kernels::Error> {
        if self.optimizer.pending() == 0 {
            return Ok(());
        }
        self.complete_export()?;
        let (optimizer, backend, mut parameters) = self.optimizer_and_parameters();
        let contributions = optimizer.step_rest(backend, &mut parameters)?;
        self.averager.contributed(contributions as u64);
        Ok(())
    }

    /// Drops the waiting gradients of `id`, if any.
    ///
    /// # Errors
    /// If the device fails.
    pub fn drop_gradients(&mut self, id: MicrobatchId) -> Result<(), EngineError> {
        if self.ungranted.take_if(|(waits, _)| *waits == id).is_some() {
            self.shard.zero_gradients()?;
        }
        Ok(())
    }

    /// Forward without a stash.
    ///
    /// # Errors
    /// If the input does not fit the run or the output is not finite.
    pub fn evaluate(
        &mut self,
        id: MicrobatchId,
        ids: &[u8],
        activation: &[u8],
        upstream: Upstream,
    ) -> Result<Evaluation<Vec<u8>>, EngineError> {
        let tokens: Tokens = self.tokens.decode(ids)?;
        if self.shard.has_head() {
            return Ok(Evaluation::Loss(self.shard.evaluate_loss(id, &tokens, activation, upstream)?));
        }
        let activation = self.shard.evaluate(id, &tokens, activation)?;
        Ok(Evaluation::Activation { version: self.optimizer.version(), activation })
    }

    /// The pass of a reader: the packed activation for the next stage, or the logits of the last one as bytes.
    ///
    /// # Errors
    /// If the input does not fit the run or a number is not finite.
    pub fn predict(&mut self, pass: Pass, ids: &[u8], activation: &[u8]) -> Result<Vec<u8>, EngineError> {
        let tokens = self.tokens.decode(ids)?;
        let id = MicrobatchId::evaluation(Block(Block::COUNT - 1), pass.number);
        if !self.shard.has_head() {
            return Ok(self.shard.evaluate(id, &tokens, activation)?);
        }
        let (position, context) = (pass.position as usize, self.tokens.context());
        if position >= context {
            return Err(EngineError::NoSuchPosition { position, context });
        }
        let logits = self.shard.predict(id, &tokens, activation, position)?;
        Ok(logits.iter().flat_map(|logit| logit.to_le_bytes()).collect())
    }

    /// Drops the stash of a microbatch whose gradient will not come.
    pub fn forget(&mut self, id: MicrobatchId) {
        self.shard.release(id);
    }

    /// The shard with the weights.
    pub fn shard(&mut self) -> &mut Shard<B> {
        &mut self.shard
    }

    /// Staleness of every contribution so far.
    #[must_use]
    pub fn staleness(&self) -> &StalenessHistogram {
        self.optimizer.staleness()
    }

    /// The weights and the number of optimizer steps in them, as a safetensors file.
    ///
    /// # Errors
    /// If the weights are not finite, or the file cannot be written.
    pub fn save(&mut self, path: &Path) -> Result<(), Error> {
        let unusable = |reason: String| Error::Weights { path: path.to_owned(), reason };
        let version = self.optimizer.version().0.to_string();
        let metadata = BTreeMap::from([("version".to_owned(), version)]);
        let tensors = self.shard.tensors().map_err(|error| unusable(error.to_string()))?;
        if !tensors.iter().flat_map(|tensor| &tensor.values).all(|value| value.is_finite()) {
            let reason =
                "the weights of the stage are not finite: training has diverged; nothing was written";
            return Err(unusable(reason.to_owned()));
        }
        let bytes = Snapshot { metadata, tensors }.write().map_err(|error| unusable(error.to_string()))?;
        atomic_file::write(path, &bytes).map_err(|error| Error::File {
            action: "write",
            path: path.to_owned(),
            error,
        })
    }

    /// Takes the weights of a file that [`Engine::save`] wrote for the same stage.
    ///
    /// # Errors
    /// If the file cannot be read or does not hold exactly this stage's parameters; the weights are unchanged then.
    pub fn resume(&mut self, path: &Path) -> Result<(), Error> {
        let bytes = std::fs::read(path).map_err(|error| Error::File {
            action: "read",
            path: path.to_owned(),
            error,
        })?;
        self.shard
            .restore(&bytes)
            .map(drop)
            .map_err(|error| Error::Weights { path: path.to_owned(), reason: error.to_string() })
    }

    /// Keeps name and digest of every parameter value that has been in this engine in the file at `path`, one a line;
    /// `None` turns that off.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn record_parameters(&mut self, path: Option<PathBuf>) -> Result<(), Error> {
        self.parameter_log = path;
        self.write_parameter_log()
    }

    /// Brings the file of [`Engine::record_parameters`] up to date.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_parameter_log(&mut self) -> Result<(), Error> {
        let Some(path) = &self.parameter_log else { return Ok(()) };
        let log = self.shard.parameter_log();
        let lines: String = log
            .names()
            .flat_map(|name| log.digests(name).iter().map(move |digest| format!("{name} {digest}\n")))
            .collect();
        std::fs::write(path, lines).map_err(|error| Error::File {
            action: "write",
            path: path.clone(),
            error,
        })
    }

    /// Fails, and drops the stash of `id`, if gradients of another microbatch wait.
    fn assert_free(&mut self, id: MicrobatchId) -> Result<(), EngineError> {
        match self.ungranted {
            Some((waits, _)) => {
                self.shard.release(id);
                Err(EngineError::GradientsWait(waits))
            }
            None => Ok(()),
        }
    }

    fn settle(&mut self, id: MicrobatchId, version: WeightVersion, grant: Grant) -> Result<(), EngineError> {
        if grant == Grant::Given {
            return self.contribute(version);
        }
        let (optimizer, backend, mut parameters) = self.optimizer_and_parameters();
        if !optimizer.accepts(backend, &mut parameters).map_err(ShardError::from)? {
            self.shard.zero_gradients()?;
            return Err(EngineError::NonFiniteGradient);
        }
        self.ungranted = Some((id, version));
        Ok(())
    }

    fn contribute(&mut self, forward_version: WeightVersion) -> Result<(), EngineError> {
        let staleness = self.optimizer.version().0.saturating_sub(forward_version.0);
        if self.learning == Learning::Frozen {
            return Ok(self.shard.zero_gradients()?);
        }
        if self.optimizer.completes_next() {
            self.complete_export().map_err(ShardError::from)?;
        }
        let (optimizer, backend, mut parameters) = self.optimizer_and_parameters();
        let contribution = optimizer.contribute(backend, &mut parameters, staleness);
        match contribution.map_err(ShardError::from)? {
            Contribution::RefusedNonFinite => Err(EngineError::NonFiniteGradient),
            Contribution::Accumulated { .. } | Contribution::Skipped => Ok(()),
            Contribution::Stepped { .. } => {
                self.averager.contributed(self.gradient_accumulation_steps);
                Ok(())
            }
        }
    }

    fn optimizer_and_parameters(
        &mut self,
    ) -> (&mut StageOptimizer<B>, &mut B, Vec<ParameterMut<'_, B::Tensor>>) {
        let (backend, params) = self.shard.backend_and_params();
        let parameters = params.iter_mut().map(|parameter| ParameterMut {
            len: parameter.len(),
            name: &parameter.name,
            weight: &mut parameter.weight,
            gradient: &mut parameter.gradient,
            decays: parameter.decays,
        });
        (&mut self.optimizer, backend, parameters.collect())
    }

    /// Drops stash and gradients of a failed microbatch.
    fn give_up<T>(&mut self, id: MicrobatchId, error: EngineError) -> Result<T, EngineError> {
        self.shard.release(id);
        self.shard.zero_gradients()?;
        Err(error)
    }

    /// Does a job; `None` for jobs without a reply.
    fn outcome(&mut self, job: Job<Bytes>) -> Option<Result<JobOutcome<Bytes>, EngineError>> {
        Some(match job {
            Job::Forward { microbatch, ids, activation } => {
                let version = self.optimizer.version();
                self.forward(microbatch, &ids, &activation)
                    .map(|activation| JobOutcome::Forwarded { version, activation: activation.into() })
            }
            Job::LossAndBackward { microbatch, ids, activation, granted } => {
                let result = self.loss_and_backward(microbatch, &ids, &activation, Grant::from(granted));
                result.map(|LossAndGradient { loss, gradient }| JobOutcome::LossAndBackward {
                    loss,
                    gradient: gradient.into(),
                })
            }
            Job::Backward { microbatch, gradient, granted } => self
                .backward(microbatch, &gradient, Grant::from(granted))
                .map(|gradient| JobOutcome::Backwarded { gradient: gradient.into() }),
            Job::Evaluate { microbatch, ids, activation, cut } => {
                let upstream = if cut { Upstream::Cut } else { Upstream::Connected };
                self.evaluate(microbatch, &ids, &activation, upstream).map(|evaluation| {
                    JobOutcome::Evaluated(match evaluation {
                        Evaluation::Activation { version, activation } => {
                            Evaluation::Activation { version, activation: activation.into() }
                        }
                        Evaluation::Loss(loss) => Evaluation::Loss(loss),
                    })
                })
            }
            Job::Apply { microbatch } => self.apply(microbatch).map(|()| JobOutcome::Applied),
            Job::Drop { microbatch } => {
                return self.drop_gradients(microbatch).err().map(Err);
            }
            Job::Forget { microbatch } => {
                self.forget(microbatch);
                return None;
            }
        })
    }
}

impl From<bool> for Grant {
    fn from(granted: bool) -> Self {
        if granted { Self::Given } else { Self::Awaited }
    }
}

impl<B: Backend> Compute for Engine<B> {
    fn run(&mut self, job: Job<Bytes>) -> Result<Option<JobReply<Bytes>>, Error> {
        let microbatch = job.microbatch();
        let outcome = match self.outcome(job) {
            Some(Ok(outcome)) => outcome,
            Some(Err(error)) => JobOutcome::Refused(error.refusal()?),
            None => return Ok(None),
        };
        Ok(Some(JobReply { microbatch, outcome }))
    }

    fn predict(&mut self, job: PredictionJob<Bytes>) -> Result<Predicted, Error> {
        match Self::predict(self, job.pass, &job.ids, &job.activation) {
            Ok(computed) => Ok(Ok(computed.into())),
            Err(error) => Ok(Err(error.refusal()?.to_string())),
        }
    }

    fn set_clock(&mut self, microbatches: u64) {
        self.optimizer.set_step_of_run((microbatches / self.microbatches_per_step).saturating_add(1));
    }

    fn average(&mut self, job: AveragingJob<Bytes>) -> Result<Option<AveragingReply<Bytes>>, Error> {
        Ok(self.average(job)?)
    }

    fn step_rest(&mut self) -> Result<(), Error> {
        Ok(Self::step_rest(self)?)
    }

    fn fragment_size(&self) -> FragmentSize {
        self.fragments().size(limits::AVERAGING_PART_BYTES_MAX)
    }

    fn begin_export(&mut self) {
        Self::begin_export(self);
    }

    fn export_more(&mut self, bytes: usize) -> Result<Option<Exported>, Error> {
        Ok(Self::export_more(self, bytes)?)
    }

    fn import_state(&mut self, state: &[u8], version: WeightVersion, origin: Origin) -> Result<(), Error> {
        let outcome = match origin {
            Origin::Replica => self.import_state(state, version),
            Origin::Keeper => self.restore_state(state, Some(version)),
        };
        self.write_parameter_log()?;
        Ok(outcome?)
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            steps: self.optimizer.version().0,
            staleness_p50: self.staleness().p50(),
            staleness_max: self.staleness().max(),
            skipped: self.optimizer.skipped(),
            waiting: self.optimizer.pending() as u64,
        }
    }

    fn finish(&mut self, save: Option<&Path>) -> Result<(), Error> {
        self.write_parameter_log()?;
        save.map_or(Ok(()), |path| self.save(path))
    }
}

impl EngineError {
    /// The refusal to send to other peers. A failed device gives an error and no refusal: its replica leaves at once,
    /// and other replicas recover the microbatch, which a refusal would lose.
    ///
    /// # Errors
    /// The failure of the device.
    pub(crate) fn refusal(self) -> Result<Refusal, swarmline_kernels::Error> {
        Ok(match self {
            Self::NonFiniteGradient
            | Self::Shard(ShardError::NonFiniteLoss | ShardError::Code(CodeError::NonFinite { .. })) => {
                Refusal::NonFinite
            }
            Self::Shard(ShardError::NotHeld(_)) | Self::NothingWaits(_) => Refusal::Unknown,
            Self::GradientsWait(_) => Refusal::Busy,
            Self::Shard(ShardError::Full { .. }) => Refusal::Busy,
            Self::Shard(ShardError::Device(error)) => return Err(error),
            error @ (Self::Tokens(_) | Self::NoSuchPosition { .. } | Self::Shard(ShardError::Code(_))) => {
                Refusal::Malformed(error.to_string())
            }
        })
    }
}
