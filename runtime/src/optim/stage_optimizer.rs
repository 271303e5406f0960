//! From microbatch gradients to changed weights.

use swarmline_kernels::{AdamStep, Backend, Result};
use swarmline_scheduler::WeightVersion;

use super::state::Moment;
use super::{
    Adam, Counters, ImportError, MicrobatchClip, NamedTensor, OptimizerState, Schedule, StalenessCorrection,
    StalenessHistogram, stage_clip_scale,
};
use crate::config::Optimizer;

/// Largest sum of squares a gradient may have: the second moment holds squares in f32, and one infinite entry
/// would freeze its weight for the rest of the run.
const SUM_SQUARES_MAX: f64 = f32::MAX as f64;

/// One parameter of a shard, borrowed for a call.
#[derive(Debug)]
pub struct ParameterMut<'a, T> {
    /// Global name, e.g. `layers.7.attention.wq`.
    pub name: &'a str,
    /// The weights.
    pub weight: &'a mut T,
    /// The gradient of one microbatch; zero again after the call.
    pub gradient: &'a mut T,
    /// Length of the parameter; both tensors may be longer.
    pub len: usize,
    /// Whether weight decay applies (matrices: yes, norm gains: no).
    pub decays: bool,
}

/// Outcome of the gradients of one microbatch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Contribution {
    /// The gradients wait for the other contributions of their step.
    Accumulated {
        /// Contributions that wait, including this microbatch's.
        contributions: usize,
    },
    /// The gradients completed their step, and the weights have changed.
    Stepped {
        /// Version of the new weights: the number of steps taken.
        version: WeightVersion,
        /// Learning rate of the step, after the correction for staleness.
        learning_rate: f64,
        /// Mean staleness of the step's contributions, in steps.
        staleness: f64,
        /// Norm of the mean gradient, after the clipping of microbatches and before that of the stage.
        gradient_norm: f64,
    },
    /// The norm is far beyond those before it. The gradients were dropped; weights and moments are unchanged.
    Skipped,
    /// The norm is not finite, or too large to square in f32. The gradients were dropped; weights and moments are
    /// unchanged.
    RefusedNonFinite,
}

/// The optimizer of one replica of a stage.
///
/// All memory is allocated once: two moments per parameter, and an accumulator if a step has more than one
/// contribution. Sums run in a fixed order, so equal gradients in equal order give bit-equal weights.
///
/// An error of the device leaves weights and moments half updated; the replica must then take them from another
/// replica.
#[derive(Debug)]
pub struct StageOptimizer<B: Backend> {
    slots: Vec<Slot<B::Tensor>>,
    adam: Adam,
    schedule: Schedule,
    correction: StalenessCorrection,
    microbatch_clip: MicrobatchClip,
    max_grad_norm: f32,
    gradient_accumulation_steps: usize,
    pending: Pending,
    staleness: StalenessHistogram,
    refused: u64,
    skipped: u64,
    /// The step that the run has reached; `None` if the steps of this replica are the run's.
    step_of_run: Option<u64>,
}

/// State of the optimizer for one parameter.
#[derive(Debug)]
struct Slot<T> {
    name: String,
    len: usize,
    moment1: T,
    moment2: T,
    /// Sum of the contributions so far; `None` if every contribution is a step.
    accumulator: Option<T>,
}

/// First and second moment of one parameter, on the host.
type Moments<'a> = (&'a [f32], &'a [f32]);

/// The contributions gathered for the next step.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    contributions: usize,
    staleness_sum: u64,
}

impl Pending {
    fn add(&mut self, staleness: u64) {
        self.contributions += 1;
        self.staleness_sum = self.staleness_sum.saturating_add(staleness);
    }

    fn mean_staleness(&self) -> f64 {
        self.staleness_sum as f64 / self.contributions as f64
    }
}

impl<B: Backend> StageOptimizer<B> {
    /// An optimizer before its first step, for `parameters` (name and length, in the order of
    /// [`Self::contribute`]). It steps once for `gradient_accumulation_steps` (`K`, at least 1) microbatches.
    pub fn new<'a>(
        backend: &mut B,
        config: &Optimizer,
        gradient_accumulation_steps: usize,
        parameters: impl IntoIterator<Item = (&'a str, usize)>,
    ) -> Result<Self> {
        assert!(gradient_accumulation_steps >= 1, "a step needs at least one contribution");
        let accumulates = gradient_accumulation_steps > 1;
        let slots = parameters.into_iter().map(|(name, len)| Slot::new(backend, name, len, accumulates));
        Ok(Self {
            slots: slots.collect::<Result<_>>()?,
            adam: Adam::new(config),
            schedule: Schedule::new(config),
            correction: StalenessCorrection::new(config),
            microbatch_clip: MicrobatchClip::new(config.max_grad_norm_ratio, config.skip_grad_norm_ratio),
            max_grad_norm: config.max_grad_norm,
            gradient_accumulation_steps,
            pending: Pending::default(),
            staleness: StalenessHistogram::default(),
            refused: 0,
            skipped: 0,
            step_of_run: None,
        })
    }

    /// Takes the gradients of a microbatch whose forward pass ran `staleness` steps ago, and steps if they complete a
    /// step. The gradients are zero afterwards in any case.
    ///
    /// # Panics
    ///
    /// If `parameters` are not those of [`Self::new`], in the same order.
    pub fn contribute(
        &mut self,
        backend: &mut B,
        parameters: &mut [ParameterMut<'_, B::Tensor>],
        staleness: u64,
    ) -> Result<Contribution> {
        self.assert_fits(parameters);
        let Some(norm) = gradient_norm(backend, parameters)? else {
            self.refused += 1;
            parameters.iter_mut().try_for_each(|parameter| clear(backend, parameter))?;
            return Ok(Contribution::RefusedNonFinite);
        };
        let scale = self.microbatch_clip.scale(norm);
        self.skipped += u64::from(scale == 0.0);
        self.staleness.record(staleness);
        if scale == 0.0 && self.gradient_accumulation_steps == 1 {
            parameters.iter_mut().try_for_each(|parameter| clear(backend, parameter))?;
            return Ok(Contribution::Skipped);
        }
        self.pending.add(staleness);

        if self.gradient_accumulation_steps == 1 {
            return self.step(backend, parameters, norm * scale, scale);
        }
        self.accumulate(backend, parameters, scale)?;
        if self.pending.contributions < self.gradient_accumulation_steps {
            return Ok(Contribution::Accumulated { contributions: self.pending.contributions });
        }
        self.step_accumulated(backend, parameters)
    }

    /// Steps with the contributions that wait for the rest of their step, as if a step had no more than those. Returns how
    /// many there were; with none, nothing changes.
    ///
    /// # Panics
    ///
    /// As [`Self::contribute`].
    pub fn step_rest(
        &mut self,
        backend: &mut B,
        parameters: &mut [ParameterMut<'_, B::Tensor>],
    ) -> Result<usize> {
        self.assert_fits(parameters);
        let contributions = self.pending.contributions;
        if contributions > 0 {
            self.step_accumulated(backend, parameters)?;
        }
        Ok(contributions)
    }

    /// Sets the step, counted from 1, that the run has reached. From then on the decay of the learning rate and of the
    /// staleness correction follow it in place of the steps taken here.
    pub fn set_step_of_run(&mut self, step: u64) {
        self.step_of_run = Some(step.max(1));
    }

    /// Whether [`Self::contribute`] would take the gradients: their norm is finite and can be squared in f32.
    pub fn accepts(&self, backend: &mut B, parameters: &mut [ParameterMut<'_, B::Tensor>]) -> Result<bool> {
        self.assert_fits(parameters);
        Ok(gradient_norm(backend, parameters)?.is_some())
    }

    /// Number of steps taken.
    #[must_use]
    pub fn version(&self) -> WeightVersion {
        WeightVersion(self.adam.steps())
    }

    /// Contributions that wait for the rest of their step.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending.contributions
    }

    /// Staleness of all contributions that were not refused.
    #[must_use]
    pub fn staleness(&self) -> &StalenessHistogram {
        &self.staleness
    }

    /// Number of contributions refused because their norm was not finite.
    #[must_use]
    pub fn refused(&self) -> u64 {
        self.refused
    }

    /// Number of contributions left out because their norm was far beyond those before. In a step of several it counts as
    /// a gradient of zeros.
    #[must_use]
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Name, length, first and second moment of every parameter: replicas of a stage average the moments beside the
    /// weights.
    pub fn moments_mut(&mut self) -> impl Iterator<Item = (&str, usize, &mut B::Tensor, &mut B::Tensor)> {
        self.slots.iter_mut().map(|slot| (slot.name.as_str(), slot.len, &mut slot.moment1, &mut slot.moment2))
    }

    /// Number of moments: two for each parameter.
    #[must_use]
    pub fn moments(&self) -> usize {
        2 * self.slots.len()
    }

    /// A copy of one moment, by number: both of the first parameter, then both of the next; `None` beyond the last.
    pub fn export_moment(&self, backend: &mut B, index: usize) -> Result<Option<NamedTensor>> {
        let Some(slot) = self.slots.get(index / 2) else { return Ok(None) };
        let (moment, tensor) = if index.is_multiple_of(2) {
            (Moment::First, &slot.moment1)
        } else {
            (Moment::Second, &slot.moment2)
        };
        let mut values = vec![0.0; slot.len];
        backend.download(&mut values, tensor)?;
        Ok(Some(NamedTensor { name: moment.name(&slot.name), values }))
    }

    /// The counters of the state.
    #[must_use]
    pub fn counters(&self) -> Counters {
        Counters {
            steps: self.adam.steps(),
            momentum_product: self.adam.momentum_product(),
            recent_norms: self.microbatch_clip.recent().collect(),
        }
    }

    /// A copy of the state between two steps.
    pub fn export(&self, backend: &mut B) -> Result<OptimizerState> {
        let moments = (0..self.moments()).map(|index| self.export_moment(backend, index));
        let tensors = moments.filter_map(Result::transpose).collect::<Result<_>>()?;
        Ok(OptimizerState { counters: self.counters(), tensors })
    }

    /// Whether the next contribution completes a step.
    #[must_use]
    pub fn completes_next(&self) -> bool {
        self.pending.contributions + 1 >= self.gradient_accumulation_steps
    }

    /// Checks whether [`StageOptimizer::import`] would take `state`.
    pub fn check(&self, state: &OptimizerState) -> std::result::Result<(), ImportError> {
        self.checked_moments(state).map(drop)
    }

    /// Replaces the state by `state`, which may come from another process: all of it is checked first. Contributions
    /// that wait for the rest of their step are dropped.
    pub fn import(
        &mut self,
        backend: &mut B,
        state: &OptimizerState,
    ) -> std::result::Result<(), ImportError> {
        let moments = self.checked_moments(state)?;
        for (slot, (moment1, moment2)) in self.slots.iter_mut().zip(moments) {
            backend.upload(&mut slot.moment1, moment1)?;
            backend.upload(&mut slot.moment2, moment2)?;
            if let Some(sum) = &mut slot.accumulator {
                backend.fill(sum, 0.0, slot.len)?;
            }
        }
        self.pending = Pending::default();
        self.adam.resume(state.counters.steps, state.counters.momentum_product);
        self.microbatch_clip.resume(&state.counters.recent_norms);
        Ok(())
    }

    fn checked_moments<'a>(
        &self,
        state: &'a OptimizerState,
    ) -> std::result::Result<Vec<Moments<'a>>, ImportError> {
        state.counters.check(self.adam.momentum_product_max(state.counters.steps))?;
        let expected = 2 * self.slots.len();
        if state.tensors.len() != expected {
            return Err(ImportError::TensorCount { expected, found: state.tensors.len() });
        }
        let both = |slot: &Slot<B::Tensor>| {
            let moment1 = state.moment(Moment::First, &slot.name, slot.len)?;
            let moment2 = state.moment(Moment::Second, &slot.name, slot.len)?;
            Ok((moment1, moment2))
        };
        self.slots.iter().map(both).collect()
    }

    fn assert_fits(&self, parameters: &[ParameterMut<'_, B::Tensor>]) {
        assert_eq!(parameters.len(), self.slots.len(), "parameters the optimizer was not made for");
        for (slot, parameter) in self.slots.iter().zip(parameters) {
            assert_eq!((parameter.name, parameter.len), (slot.name.as_str(), slot.len));
        }
    }

    /// Moves the gradients, times `scale`, into the accumulators.
    fn accumulate(
        &mut self,
        backend: &mut B,
        parameters: &mut [ParameterMut<'_, B::Tensor>],
        scale: f64,
    ) -> Result<()> {
        for (slot, parameter) in self.slots.iter_mut().zip(parameters) {
            if let Some(sum) = &mut slot.accumulator {
                backend.add_scaled(sum, parameter.gradient, scale as f32, slot.len)?;
            }
            clear(backend, parameter)?;
        }
        Ok(())
    }

    fn accumulated_norm(&self, backend: &mut B) -> Result<f64> {
        let mut squares = 0.0;
        for slot in &self.slots {
            if let Some(sum) = &slot.accumulator {
                squares += backend.sum_squares(sum, slot.len)?;
            }
        }
        Ok(squares.sqrt())
    }

    /// One step by the mean of the contributions that wait.
    fn step_accumulated(
        &mut self,
        backend: &mut B,
        parameters: &mut [ParameterMut<'_, B::Tensor>],
    ) -> Result<Contribution> {
        let mean = 1.0 / self.pending.contributions as f64;
        let norm = self.accumulated_norm(backend)? * mean;
        self.step(backend, parameters, norm, mean)
    }

    /// One step, from the accumulators, or from the microbatch's gradients if there are no accumulators. `scale` turns
    /// their sum into the mean, `norm` is the norm of that mean.
    fn step(
        &mut self,
        backend: &mut B,
        parameters: &mut [ParameterMut<'_, B::Tensor>],
        norm: f64,
        scale: f64,
    ) -> Result<Contribution> {
        let step = self.adam.steps() + 1;
        let of_run = self.step_of_run.unwrap_or(step);
        let staleness = self.pending.mean_staleness();
        let learning_rate = self.schedule.rate(step, of_run) / self.correction.divisor(staleness, of_run);
        let scale = scale * stage_clip_scale(norm, self.max_grad_norm);
        let coefficients = self.adam.advance(learning_rate, scale);
        for (slot, parameter) in self.slots.iter_mut().zip(parameters) {
            slot.step(backend, parameter, coefficients)?;
        }
        self.pending = Pending::default();
        Ok(Contribution::Stepped { version: self.version(), learning_rate, staleness, gradient_norm: norm })
    }
}

impl<T: 'static> Slot<T> {
    fn new<B: Backend<Tensor = T>>(
        backend: &mut B,
        name: &str,
        len: usize,
        accumulates: bool,
    ) -> Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            len,
            moment1: backend.zeros(len)?,
            moment2: backend.zeros(len)?,
            accumulator: accumulates.then(|| backend.zeros(len)).transpose()?,
        })
    }

    /// Changes the weights by one step and zeroes the gradient.
    fn step<B: Backend<Tensor = T>>(
        &mut self,
        backend: &mut B,
        parameter: &mut ParameterMut<'_, T>,
        coefficients: AdamStep,
    ) -> Result<()> {
        let gradient = self.accumulator.as_mut().unwrap_or(&mut *parameter.gradient);
        let coefficients =
            if parameter.decays { coefficients } else { AdamStep { decay: 0.0, ..coefficients } };
        let (moment1, moment2) = (&mut self.moment1, &mut self.moment2);
        backend.adam_update(parameter.weight, moment1, moment2, gradient, self.len, coefficients)?;
        backend.fill(gradient, 0.0, self.len)
    }
}

/// Norm over all parameters, or `None` if it is not a finite number that f32 can square.
fn gradient_norm<B: Backend>(
    backend: &mut B,
    parameters: &[ParameterMut<'_, B::Tensor>],
) -> Result<Option<f64>> {
    let mut squares = 0.0;
    for parameter in parameters {
        squares += backend.sum_squares(parameter.gradient, parameter.len)?;
    }
    Ok((squares <= SUM_SQUARES_MAX).then(|| squares.sqrt()))
}

fn clear<B: Backend>(backend: &mut B, parameter: &mut ParameterMut<'_, B::Tensor>) -> Result<()> {
    backend.fill(parameter.gradient, 0.0, parameter.len)
}
