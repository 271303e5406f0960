use super::plain;
use super::toy::{Toy, numbers};
use crate::config::{Optimizer, OptimizerKind};
use crate::optim::{ImportError, OptimizerState};

fn config() -> Optimizer {
    Optimizer { kind: OptimizerKind::NAdamW, max_grad_norm_ratio: 1.1, warmup_steps: 30, ..plain() }
}

/// A shard after 20 steps.
fn trained() -> Toy {
    let mut toy = Toy::new(&config(), 1);
    for seed in 0..20 {
        toy.contribute(&numbers(seed), 0);
    }
    toy
}

fn exported() -> OptimizerState {
    let mut toy = trained();
    toy.optimizer.export(&mut toy.cpu).unwrap()
}

/// The error of a fresh optimizer that imports `state`; the optimizer must stay as it was.
#[track_caller]
fn refusal(state: &OptimizerState) -> ImportError {
    let mut toy = Toy::new(&config(), 1);
    let before = toy.optimizer.export(&mut toy.cpu).unwrap();
    let error = toy.optimizer.import(&mut toy.cpu, state).unwrap_err();
    assert_eq!(toy.optimizer.export(&mut toy.cpu).unwrap(), before);
    error
}

#[test]
fn a_joiner_goes_on_bit_for_bit() {
    let mut donor = trained();
    let mut joiner = Toy::new(&config(), 1);
    joiner.contribute(&numbers(77), 0);
    joiner.set_weights(&donor.weights());
    let state = donor.optimizer.export(&mut donor.cpu).unwrap();
    joiner.optimizer.import(&mut joiner.cpu, &state).unwrap();

    for seed in 20..40 {
        assert_eq!(joiner.contribute(&numbers(seed), 0), donor.contribute(&numbers(seed), 0));
        assert_eq!(joiner.weights(), donor.weights());
    }
    assert_eq!(
        joiner.optimizer.export(&mut joiner.cpu).unwrap(),
        donor.optimizer.export(&mut donor.cpu).unwrap()
    );
}

#[test]
fn half_a_step_is_dropped_by_an_import() {
    let state = exported();
    let mut toy = Toy::new(&config(), 2);
    toy.contribute(&numbers(1), 0);
    toy.optimizer.import(&mut toy.cpu, &state).unwrap();
    assert_eq!(toy.optimizer.pending(), 0);

    let mut fresh = Toy::new(&config(), 2);
    fresh.optimizer.import(&mut fresh.cpu, &state).unwrap();
    for toy in [&mut toy, &mut fresh] {
        toy.contribute(&numbers(2), 0);
        toy.contribute(&numbers(3), 0);
    }
    assert_eq!(toy.weights(), fresh.weights());
}

#[test]
fn tensors_bear_global_names() {
    let names: Vec<String> = exported().tensors.into_iter().map(|tensor| tensor.name).collect();
    assert_eq!(names, ["matrix.moment1", "matrix.moment2", "gain.moment1", "gain.moment2"]);
}

#[test]
fn the_state_of_another_shard_is_refused() {
    let mut state = exported();
    state.tensors[0].name = "other.moment1".into();
    assert!(matches!(refusal(&state), ImportError::Missing(name) if name == "matrix.moment1"));

    let mut state = exported();
    state.tensors[3].values.pop();
    assert!(matches!(refusal(&state), ImportError::Length { expected: 7, found: 6, .. }));

    let mut state = exported();
    state.tensors.pop();
    assert!(matches!(refusal(&state), ImportError::TensorCount { expected: 4, found: 3 }));
}

#[test]
fn impossible_numbers_are_refused() {
    for (tensor, value) in [(0, f32::NAN), (1, f32::INFINITY), (1, -1.0)] {
        let mut state = exported();
        state.tensors[tensor].values[0] = value;
        assert!(matches!(refusal(&state), ImportError::Value(_)));
    }
    for product in [f64::NAN, -0.5, 1.5, 1.0 - 1e-6] {
        let mut state = exported();
        state.counters.momentum_product = product;
        assert!(matches!(refusal(&state), ImportError::Counters));
    }
    let mut state = exported();
    state.counters.recent_norms.push(f64::NAN);
    assert!(matches!(refusal(&state), ImportError::Counters));
}
