//! The whole step of a whole model as one stage: forward, loss, backward, optimizer, as `train` does it.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use swarmline_kernels::{Cpu, random};
use swarmline_scheduler::{MicrobatchId, StageIndex};

use super::BenchError;
use super::flops;
use super::machine::peak_resident_mb;
use super::peaks::product_gflops_now;
use super::size::{SEQUENCES, Size};
use super::statistics::median;
use crate::error::Error;
use crate::packing::TokenCodec;
use crate::stage::{Engine, EngineError, Grant, Learning};

/// Number of different microbatches; steps take them in turn.
const MICROBATCHES: u64 = 4;
/// Target length of a measurement, seconds of steps.
const SECONDS: f64 = 3.0;
/// Limit of the steps of a measurement.
const STEPS_MAX: usize = 25;
/// From this length on, a measurement is one step, after one warm-up step.
const LONG_STEP_S: f64 = 2.5;
/// Steps before a measurement of short steps that do not count.
const WARM_UP_STEPS: usize = 2;

/// Figures of a step, ours or PyTorch's: the same fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// Tokens of a step divided by its median time.
    pub tokens_per_s: f64,
    /// Median seconds of a step.
    pub step_s_median: f64,
    /// Most memory that the process had resident, MiB, the program itself included; `None` where the system does not say.
    pub peak_rss_mb: Option<f64>,
    /// Sequences of a microbatch.
    pub batch: usize,
    /// Parameters of the model.
    pub params: usize,
    /// Threads that computed.
    pub threads: usize,
    /// Share of the f32 product peak, measured before and after each step; the median of the steps. `None` for PyTorch.
    #[serde(default)]
    pub share_of_peak: Option<f64>,
    /// Loss of the first step, nats a token.
    pub loss_first: f64,
    /// Loss of the last step, nats a token.
    pub loss_last: f64,
}

/// Measures the step in this process. The peak of memory includes all earlier work of the process.
///
/// # Errors
/// If the device has no memory for the model.
pub fn measure(cpu: Cpu, size: Size) -> Result<StepReport, Error> {
    let threads = cpu.threads();
    let mut step = Step::new(cpu, size)?;
    let (loss_first, first_s) = step.take()?;
    if first_s < LONG_STEP_S {
        for _ in 1..WARM_UP_STEPS {
            step.take()?;
        }
    }
    let (mut loss_last, mut seconds, mut shares) = (loss_first, Vec::new(), Vec::new());
    let mut peak_before = product_gflops_now(threads);
    for _ in 0..steps_for(first_s) {
        let (loss, elapsed_s) = step.take()?;
        let peak_after = product_gflops_now(threads);
        loss_last = loss;
        seconds.push(elapsed_s);
        shares.push(flops::step(size) / elapsed_s / (1e9 * f64::midpoint(peak_before, peak_after)));
        peak_before = peak_after;
    }
    let step_s_median = median(&seconds).unwrap_or(first_s);
    Ok(StepReport {
        tokens_per_s: size.rows() as f64 / step_s_median,
        step_s_median,
        peak_rss_mb: peak_resident_mb(),
        batch: SEQUENCES,
        params: size.parameters(),
        threads,
        share_of_peak: median(&shares),
        loss_first,
        loss_last,
    })
}

/// Number of steps of `step_s` seconds to measure: odd, so that the median is one of them.
#[must_use]
pub fn steps_for(step_s: f64) -> usize {
    if step_s > LONG_STEP_S {
        return 1;
    }
    // A number that does not fit, or none, ends at the limit.
    let steps = (SECONDS / step_s.max(f64::EPSILON)) as usize;
    steps.clamp(3, STEPS_MAX) | 1
}

struct Step {
    engine: Engine<Cpu>,
    microbatches: Vec<Vec<u8>>,
    taken: u64,
}

impl Step {
    fn new(cpu: Cpu, size: Size) -> Result<Self, Error> {
        let run = size.run();
        let codec = TokenCodec::new(&run);
        let microbatch = |number| {
            let id = |i| random::uniform_u64(1, number, i) % run.model.vocab_size as u64;
            let ids: Vec<u32> = (0..codec.ids() as u64).map(|i| id(i) as u32).collect();
            codec.encode(&ids).map_err(|error| refused(error.into()))
        };
        let microbatches = (0..MICROBATCHES).map(microbatch).collect::<Result<_, Error>>()?;
        let engine = Engine::new(cpu, &run, StageIndex(0), 1, Learning::Active)?;
        Ok(Self { engine, microbatches, taken: 0 })
    }

    /// One step: its mean loss and its seconds.
    fn take(&mut self) -> Result<(f64, f64), Error> {
        let ids = &self.microbatches[(self.taken % MICROBATCHES) as usize];
        let started = Instant::now();
        let id = MicrobatchId(self.taken);
        let result = self.engine.loss_and_backward(id, ids, &[], Grant::Given).map_err(refused)?;
        let elapsed = started.elapsed();
        self.taken += 1;
        Ok((result.loss.mean(), elapsed.as_secs_f64()))
    }
}

fn refused(error: EngineError) -> Error {
    let cause = error.to_string();
    match error.refusal() {
        Ok(_) => BenchError::Refused { cause }.into(),
        Err(failure) => failure.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trial_model_takes_steps_and_learns_its_few_microbatches() {
        let report = measure(Cpu::new(1).unwrap(), Size::T).unwrap();
        assert!(report.tokens_per_s > 0.0 && report.loss_last < report.loss_first, "{report:?}");
        assert!((report.loss_first - 256_f64.ln()).abs() < 0.1, "{report:?}");
        assert_eq!((report.batch, report.threads), (16, 1));
    }

    #[test]
    fn steps_are_an_odd_number_that_takes_some_seconds() {
        assert_eq!(steps_for(0.0), STEPS_MAX);
        assert_eq!(steps_for(0.4), 7);
        assert_eq!(steps_for(1.4), 3);
        assert_eq!(steps_for(5.0), 1);
    }
}
