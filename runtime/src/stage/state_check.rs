//! Whether bytes are a state of a stage, without an engine: a keeper writes nothing else.

use safetensors::tensor::TensorView;
use safetensors::{Dtype, SafeTensors};
use swarmline_scheduler::{StageIndex, WeightVersion};

use super::StateError;
use super::engine::read_counters;
use crate::config::Run;
use crate::model::SnapshotError;
use crate::optim::ImportError;

/// Tensors of each parameter: the weight and two moments.
const TENSORS_EACH: usize = 3;

/// Checks that `bytes` are a state of `stage` after `version` optimizer steps: every tensor with its shape, every number
/// possible, and no further tensor.
///
/// # Errors
/// The first fault.
pub fn check_state(
    run: &Run,
    stage: StageIndex,
    bytes: &[u8],
    version: WeightVersion,
) -> Result<(), StateError> {
    let malformed = |error: safetensors::SafeTensorError| SnapshotError::Malformed(error.to_string());
    let (_, header) = SafeTensors::read_metadata(bytes).map_err(malformed)?;
    let state = SafeTensors::deserialize(bytes).map_err(malformed)?;
    let notes = header.metadata().clone().unwrap_or_default().into_iter().collect();
    let found = read_counters(&notes)?.steps;
    if found != version.0 {
        return Err(StateError::Steps { named: version.0, found });
    }
    let parameters = run.parameter_specs(run.layers_of(stage));
    let (expected, found) = (TENSORS_EACH * parameters.len(), state.len());
    if found != expected {
        return Err(ImportError::TensorCount { expected, found }.into());
    }
    for parameter in &parameters {
        let moment = |moment: u8| format!("{}.moment{moment}", parameter.name);
        check_numbers(&state, &parameter.name, &parameter.shape, f32::is_finite)?;
        check_numbers(&state, &moment(1), &[parameter.len()], f32::is_finite)?;
        check_numbers(&state, &moment(2), &[parameter.len()], |number| number.is_finite() && number >= 0.0)?;
    }
    Ok(())
}

fn check_numbers(
    state: &SafeTensors<'_>,
    name: &str,
    shape: &[usize],
    is_possible: impl Fn(f32) -> bool,
) -> Result<(), SnapshotError> {
    let tensor: TensorView<'_> =
        state.tensor(name).map_err(|_| SnapshotError::Missing { name: name.to_owned() })?;
    let name = name.to_owned();
    if tensor.dtype() != Dtype::F32 {
        return Err(SnapshotError::NotF32 { name, dtype: tensor.dtype().to_string() });
    }
    if tensor.shape() != shape {
        let (expected, found) = (shape.to_vec(), tensor.shape().to_vec());
        return Err(SnapshotError::Shape { name, expected, found });
    }
    let numbers = tensor.data().as_chunks::<4>().0;
    let are_possible = numbers.iter().all(|bytes| is_possible(f32::from_le_bytes(*bytes)));
    if are_possible { Ok(()) } else { Err(SnapshotError::NonFinite { name }) }
}

#[cfg(test)]
mod tests {
    use swarmline_kernels::Cpu;

    use super::*;
    use crate::config::{Kind, Packing};
    use crate::model::tests::tiny;
    use crate::stage::{Engine, Learning};

    const STAGE: StageIndex = StageIndex(1);
    const VERSION: WeightVersion = WeightVersion(0);

    #[test]
    fn a_state_of_another_stage_another_version_or_with_an_impossible_number_is_none() {
        let run = tiny(Kind::Subspace, Packing::F32);
        let mut engine = Engine::new(Cpu::new(1).unwrap(), &run, STAGE, 4, Learning::Active).unwrap();
        let state = engine.export_state().unwrap();
        check_state(&run, STAGE, &state, VERSION).unwrap();
        let wrong = |stage, state: &[u8], version| check_state(&run, stage, state, version).unwrap_err();
        assert!(matches!(
            wrong(StageIndex(0), &state, VERSION),
            StateError::Optimizer(_) | StateError::Snapshot(_)
        ));
        assert!(matches!(wrong(STAGE, &state, WeightVersion(1)), StateError::Steps { named: 1, found: 0 }));
        assert!(matches!(
            wrong(STAGE, &state[..900], VERSION),
            StateError::Snapshot(SnapshotError::Malformed(_))
        ));
        let mut broken = state.clone();
        let end = broken.len();
        broken[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(matches!(
            wrong(STAGE, &broken, VERSION),
            StateError::Snapshot(SnapshotError::NonFinite { .. })
        ));
        broken[end - 4..].copy_from_slice(&(-1.0_f32).to_le_bytes());
        assert!(matches!(
            wrong(STAGE, &broken, VERSION),
            StateError::Snapshot(SnapshotError::NonFinite { .. })
        ));
    }
}
