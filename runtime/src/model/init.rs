//! Initial values, drawn from (run seed, parameter name) alone: replicas agree on them bit for bit without the whole
//! model.

use swarmline_kernels::random;

use crate::config::{Initial, ParameterSpec};
use crate::hashing;

/// The initial value of a parameter, row-major.
pub(super) fn initial_value(spec: &ParameterSpec, seed: u64) -> Vec<f32> {
    match spec.initial {
        Initial::Ones => vec![1.0; spec.len()],
        Initial::Normal { std } => {
            let mut value = vec![0.0; spec.len()];
            random::fill_normal(&mut value, seed, hashing::key(&[spec.name.as_bytes()]), std);
            value
        }
    }
}
