//! The scalars of one AdamW or NAdamW step.

use swarmline_kernels::AdamStep;

use crate::config::{Optimizer, OptimizerKind};

/// Base of the decay of NAdam's momentum schedule (Dozat 2016, "Incorporating Nesterov Momentum into Adam").
const MOMENTUM_SCHEDULE_BASE: f64 = 0.96;

/// Computes the coefficients of [`swarmline_kernels::Backend::adam_update`] from step numbers.
///
/// With step `t` counted from 1, learning rate `eta` and `bc2 = 1 - beta2^t`:
///
/// ```text
/// AdamW   w <- (1 - eta lambda) w - eta/(1 - beta1^t) m/den                      (arXiv 1711.05101)
/// NAdamW  mu_t = beta1 (1 - 0.96^(t psi) / 2),  Pi_t = mu_1 mu_2 .. mu_t
///         w <- (1 - eta lambda) w - eta (1 - mu_t)/(1 - Pi_t) g/den
///                                 - eta mu_{t+1}/(1 - Pi_t mu_{t+1}) m/den       (arXiv 2505.01099, Dozat 2016)
/// ```
///
/// So the weights are Nesterov's look-ahead point, at which a delayed gradient should be computed. The product `Pi_t`
/// is kept in f64: in f32 it would drift over the thousands of steps of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    kind: OptimizerKind,
    beta1: f32,
    beta2: f32,
    epsilon: f32,
    weight_decay: f64,
    momentum_decay: f64,
    steps: u64,
    momentum_product: f64,
}

impl Adam {
    /// The rule of a run, before its first step.
    #[must_use]
    pub fn new(config: &Optimizer) -> Self {
        Self {
            kind: config.kind,
            beta1: config.beta1,
            beta2: config.beta2,
            epsilon: config.epsilon,
            weight_decay: f64::from(config.weight_decay),
            momentum_decay: f64::from(config.momentum_decay),
            steps: 0,
            momentum_product: 1.0,
        }
    }

    /// Steps taken so far: `t` of the latest one.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps
    }

    /// `Pi_t`; 1 before the first step, and always with AdamW.
    #[must_use]
    pub fn momentum_product(&self) -> f64 {
        self.momentum_product
    }

    /// The largest `Pi_t` after this many steps: no `mu_t` is above `beta1`.
    pub(super) fn momentum_product_max(&self, steps: u64) -> f64 {
        match self.kind {
            OptimizerKind::AdamW => 1.0,
            OptimizerKind::NAdamW => f64::from(self.beta1).powf(steps as f64),
        }
    }

    /// Takes over the counters of another replica.
    pub(super) fn resume(&mut self, steps: u64, momentum_product: f64) {
        self.steps = steps;
        self.momentum_product = momentum_product;
    }

    /// Counts one more step and returns its coefficients for a parameter that decays.
    pub fn advance(&mut self, learning_rate: f64, gradient_scale: f64) -> AdamStep {
        self.steps += 1;
        let (gradient_rate, momentum_rate) = match self.kind {
            OptimizerKind::AdamW => (0.0, learning_rate / bias_correction(self.beta1, self.steps)),
            OptimizerKind::NAdamW => self.nesterov_rates(learning_rate),
        };
        AdamStep {
            beta1: self.beta1,
            beta2: self.beta2,
            bias_correction2: bias_correction(self.beta2, self.steps) as f32,
            epsilon: self.epsilon,
            gradient_scale: gradient_scale as f32,
            decay: (learning_rate * self.weight_decay) as f32,
            gradient_rate: gradient_rate as f32,
            momentum_rate: momentum_rate as f32,
        }
    }

    fn nesterov_rates(&mut self, learning_rate: f64) -> (f64, f64) {
        let now = self.momentum(self.steps);
        let next = self.momentum(self.steps + 1);
        self.momentum_product *= now;
        let gradient_rate = learning_rate * (1.0 - now) / (1.0 - self.momentum_product);
        let momentum_rate = learning_rate * next / (1.0 - self.momentum_product * next);
        (gradient_rate, momentum_rate)
    }

    /// `mu_t`
    fn momentum(&self, step: u64) -> f64 {
        let decayed = MOMENTUM_SCHEDULE_BASE.powf(step as f64 * self.momentum_decay);
        f64::from(self.beta1) * (1.0 - 0.5 * decayed)
    }
}

/// `1 - beta^t`, with `beta` rounded to f32 as on the device.
fn bias_correction(beta: f32, step: u64) -> f64 {
    1.0 - f64::from(beta).powf(step as f64)
}
