//! The state of a stage, put together from the states of stages that were cut otherwise. No name of a parameter depends on
//! the cut, and neither do its moments.

use std::collections::BTreeMap;

use bytes::Bytes;
use safetensors::SafeTensors;
use swarmline_scheduler::{StageIndex, WeightVersion};

use super::StateError;
use super::engine::read_counters;
use crate::config::Run;
use crate::model::{Snapshot, SnapshotError, SnapshotTensor};

/// The stages of `before` whose layers `stage` of `now` has, ascending.
#[must_use]
pub fn stages_with_layers_of(before: &Run, now: &Run, stage: StageIndex) -> Vec<StageIndex> {
    let wanted = now.layers_of(stage);
    let shares = |one: &StageIndex| {
        let layers = before.layers_of(*one);
        layers.start < wanted.end && wanted.start < layers.end
    };
    before.stages().filter(shares).collect()
}

/// The state of `stage` of `run`, of the `states` of the stages that had its layers. Its counters are those of the state
/// that gives the most numbers: stages of an asynchronous run have taken steps of their own.
///
/// # Errors
/// If a state cannot be read, or a tensor is in none of them.
pub fn recut_state(
    run: &Run,
    stage: StageIndex,
    states: &[Bytes],
) -> Result<(WeightVersion, Bytes), StateError> {
    let malformed = |error: safetensors::SafeTensorError| SnapshotError::Malformed(error.to_string());
    let read = |state| SafeTensors::deserialize(state).map_err(malformed);
    let files = states.iter().map(|state| read(state)).collect::<Result<Vec<_>, _>>()?;
    let mut given = vec![0; files.len()];
    let mut tensors = Vec::new();
    for name in names(run, stage) {
        let found =
            files.iter().enumerate().find_map(|(index, file)| Some((index, file.tensor(&name).ok()?)));
        let (index, view) = found.ok_or_else(|| SnapshotError::Missing { name: name.clone() })?;
        let numbers = view.data().as_chunks::<4>().0;
        given[index] += numbers.len();
        let values = numbers.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        tensors.push(SnapshotTensor { name, shape: view.shape().to_vec(), values });
    }
    let main = (0..files.len()).rev().max_by_key(|&index| given[index]).unwrap_or(0);
    let metadata = match states.get(main) {
        Some(state) => notes(state).map_err(malformed)?,
        None => BTreeMap::new(),
    };
    let version = WeightVersion(read_counters(&metadata)?.steps);
    Ok((version, Snapshot { metadata, tensors }.write()?.into()))
}

fn notes(state: &[u8]) -> Result<BTreeMap<String, String>, safetensors::SafeTensorError> {
    let (_, header) = SafeTensors::read_metadata(state)?;
    Ok(header.metadata().clone().unwrap_or_default().into_iter().collect())
}

/// The tensors of a state, in its order: weights, then moments.
fn names(run: &Run, stage: StageIndex) -> Vec<String> {
    let parameters: Vec<_> =
        run.parameter_specs(run.layers_of(stage)).into_iter().map(|parameter| parameter.name).collect();
    let moments = parameters.iter().flat_map(|name| [1, 2].map(|moment| format!("{name}.moment{moment}")));
    parameters.iter().cloned().chain(moments).collect()
}

#[cfg(test)]
mod tests {
    use swarmline_kernels::Cpu;

    use super::*;
    use crate::config::{Kind, Packing};
    use crate::model::tests::tiny;
    use crate::stage::{Engine, Learning, check_state};

    /// Initial states of all stages.
    fn states(run: &Run) -> Vec<Bytes> {
        let state = |stage| {
            let mut engine = Engine::new(Cpu::new(1).unwrap(), run, stage, 4, Learning::Active).unwrap();
            engine.export_state().unwrap().into()
        };
        run.stages().map(state).collect()
    }

    fn cut(layers_per_stage: &[usize]) -> Run {
        let mut run = tiny(Kind::Identity, Packing::F32);
        run.pipeline.stages = layers_per_stage.len();
        run.pipeline.layers_per_stage = layers_per_stage.to_vec();
        run
    }

    #[test]
    fn states_that_are_cut_otherwise_are_those_of_a_run_that_was_cut_so_from_the_beginning() {
        let all = tiny(Kind::Identity, Packing::F32).model.num_hidden_layers;
        let (one, other) = (cut(&[1, all - 1]), cut(&[all - 1, 1]));
        let (before, expected) = (states(&one), states(&other));
        for stage in other.stages() {
            let parts = stages_with_layers_of(&one, &other, stage);
            let parts: Vec<_> = parts.iter().map(|part| before[usize::from(part.0)].clone()).collect();
            let (version, state) = recut_state(&other, stage, &parts).unwrap();
            assert_eq!(version, WeightVersion(0));
            check_state(&other, stage, &state, version).unwrap();
            let [found, wanted] = [&state, &expected[usize::from(stage.0)]]
                .map(|state| SafeTensors::deserialize(state).unwrap());
            for name in wanted.names() {
                assert_eq!(found.tensor(name).unwrap().data(), wanted.tensor(name).unwrap().data(), "{name}");
            }
        }
        assert!(recut_state(&other, StageIndex(0), &before[1..]).is_err(), "its first layer is in none");
    }
}
