//! The state of an optimizer, to send to a joining replica.

use serde::{Deserialize, Serialize};

/// State of a stage's optimizer between two steps, without gradients that are accumulated and not yet applied.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState {
    /// Steps, momentum product and norms.
    pub counters: Counters,
    /// The two moments of every parameter, named `<parameter>.moment1` and `<parameter>.moment2`.
    pub tensors: Vec<NamedTensor>,
}

/// Scalars of an [`OptimizerState`]. An encoding must keep f64 exactly, or replicas stop agreeing bit for bit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Counters {
    /// Steps taken: the weight version.
    pub steps: u64,
    /// Product of the momentum schedule so far, 0 to 1; see [`super::Adam`].
    pub momentum_product: f64,
    /// Norms of the latest microbatch gradients, oldest first.
    pub recent_norms: Vec<f64>,
}

/// Numbers under a name, on the host.
#[derive(Clone, Debug, PartialEq)]
pub struct NamedTensor {
    /// `<parameter>.moment1` or `<parameter>.moment2`, with the parameter's global name.
    pub name: String,
    /// The numbers; the length is the parameter's.
    pub values: Vec<f32>,
}

/// Reasons why an optimizer refuses a state. Unless the device failed, the optimizer is unchanged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImportError {
    /// A tensor that the optimizer needs is not in the state.
    #[error("the optimizer state lacks {0}")]
    Missing(String),
    /// The state has more tensors than the optimizer needs, or a tensor twice.
    #[error("the optimizer state has {found} tensors instead of {expected}")]
    TensorCount {
        /// Tensors of the optimizer.
        expected: usize,
        /// Tensors of the state.
        found: usize,
    },
    /// A tensor has another length than its parameter.
    #[error("{name} has {found} numbers instead of {expected}")]
    Length {
        /// Name of the tensor.
        name: String,
        /// Length of the parameter.
        expected: usize,
        /// Length of the tensor in the state.
        found: usize,
    },
    /// A moment is not finite, or a second moment is negative.
    #[error("{0} holds a number that no optimizer produces")]
    Value(String),
    /// A counter is outside its range: see [`Counters`].
    #[error("the counters of the optimizer state contradict themselves")]
    Counters,
    /// The device failed during the import; part of the state may have been taken.
    #[error(transparent)]
    Device(#[from] swarmline_kernels::Error),
}

/// Machines compute powers to the last bits only.
const PRODUCT_TOLERANCE: f64 = 1e-9;

/// The two moments of a parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moment {
    /// Running mean of the gradient.
    First,
    /// Running mean of the gradient's square.
    Second,
}

impl Moment {
    /// Name of this moment of `parameter`.
    pub(super) fn name(self, parameter: &str) -> String {
        match self {
            Self::First => format!("{parameter}.moment1"),
            Self::Second => format!("{parameter}.moment2"),
        }
    }

    fn allows(self, value: f32) -> bool {
        value.is_finite() && (self == Self::First || value >= 0.0)
    }
}

impl OptimizerState {
    /// The numbers of one moment of `parameter`, checked.
    pub(super) fn moment(&self, moment: Moment, parameter: &str, len: usize) -> Result<&[f32], ImportError> {
        let name = moment.name(parameter);
        let Some(tensor) = self.tensors.iter().find(|tensor| tensor.name == name) else {
            return Err(ImportError::Missing(name));
        };
        if tensor.values.len() != len {
            return Err(ImportError::Length { name, expected: len, found: tensor.values.len() });
        }
        if !tensor.values.iter().all(|&value| moment.allows(value)) {
            return Err(ImportError::Value(name));
        }
        Ok(&tensor.values)
    }
}

impl Counters {
    /// Checks the counters; `product_max` is the largest momentum product after this many steps. A product near 1 would be
    /// a rate without a limit.
    pub(super) fn check(&self, product_max: f64) -> Result<(), ImportError> {
        let product_fits = (0.0..=product_max + PRODUCT_TOLERANCE).contains(&self.momentum_product);
        let norms_fit = self.recent_norms.iter().all(|norm| norm.is_finite() && *norm >= 0.0);
        if product_fits && norms_fit { Ok(()) } else { Err(ImportError::Counters) }
    }
}
