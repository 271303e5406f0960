use swarmline_scheduler::WeightVersion;

use super::toy::{NUMBERS, Toy, norm, numbers};
use super::{assert_near, plain};
use crate::config::{Optimizer, OptimizerKind};
use crate::optim::Contribution;

/// All rules on, as in a real run.
fn full() -> Optimizer {
    Optimizer {
        kind: OptimizerKind::NAdamW,
        warmup_steps: 5,
        min_lr_ratio: 0.1,
        max_grad_norm_ratio: 1.5,
        max_grad_norm: 1.0,
        staleness_power: 1.0,
        ..plain()
    }
}

/// The weights after these gradients, one contribution each, none of them stale.
fn weights_after(config: &Optimizer, gradient_accumulation_steps: usize, gradients: &[Vec<f32>]) -> Vec<f32> {
    let mut toy = Toy::new(config, gradient_accumulation_steps);
    for gradient in gradients {
        toy.contribute(gradient, 0);
    }
    toy.weights()
}

fn scaled(gradient: &[f32], factor: f32) -> Vec<f32> {
    gradient.iter().map(|x| x * factor).collect()
}

fn stepped(contribution: Contribution) -> (f64, f64) {
    match contribution {
        Contribution::Stepped { learning_rate, staleness, .. } => (learning_rate, staleness),
        other => panic!("{other:?} instead of a step"),
    }
}

#[test]
fn one_contribution_is_a_step() {
    let mut toy = Toy::new(&plain(), 1);
    let gradient = numbers(1);
    let Contribution::Stepped { version, gradient_norm, .. } = toy.contribute(&gradient, 0) else { panic!() };
    assert_eq!(version, WeightVersion(1));
    assert_near(gradient_norm, norm(&gradient));
    assert_ne!(toy.weights(), numbers(0));
}

#[test]
fn four_contributions_are_one_step_by_their_mean() {
    let gradients: Vec<Vec<f32>> = (1..=4).map(numbers).collect();
    let mean = (0..NUMBERS).map(|i| gradients.iter().map(|g| g[i]).sum::<f32>() / 4.0).collect();
    assert_eq!(weights_after(&plain(), 4, &gradients), weights_after(&plain(), 1, &[mean]));
}

#[test]
fn weights_wait_for_the_last_contribution() {
    let mut toy = Toy::new(&plain(), 4);
    for contributions in 1..=3 {
        assert_eq!(toy.contribute(&numbers(1), 0), Contribution::Accumulated { contributions });
        assert_eq!(toy.optimizer.pending(), contributions);
        assert_eq!(toy.weights(), numbers(0));
    }
    stepped(toy.contribute(&numbers(1), 0));
    assert_eq!((toy.optimizer.pending(), toy.optimizer.version()), (0, WeightVersion(1)));
    assert_eq!(toy.contribute(&numbers(1), 0), Contribution::Accumulated { contributions: 1 });
}

#[test]
fn the_second_step_starts_from_empty_accumulators() {
    let four_of = |gradient: Vec<f32>| std::iter::repeat_n(gradient, 4);
    let accumulated: Vec<Vec<f32>> = four_of(numbers(1)).chain(four_of(numbers(2))).collect();
    let direct = [numbers(1), numbers(2)];
    assert_eq!(weights_after(&plain(), 4, &accumulated), weights_after(&plain(), 1, &direct));
}

#[test]
fn a_step_with_fewer_contributions_is_that_of_an_accumulation_of_so_few() {
    for count in 1..4 {
        let gradients: Vec<Vec<f32>> = (1..=count).map(numbers).collect();
        let mut toy = Toy::new(&full(), 4);
        for gradient in &gradients {
            toy.contribute(gradient, 2);
        }
        assert_eq!(toy.step_rest(), count as usize);
        let mut whole = Toy::new(&full(), count as usize);
        for gradient in &gradients {
            whole.contribute(gradient, 2);
        }
        assert_eq!(toy.weights(), whole.weights(), "{count} of four");
        assert_eq!((toy.optimizer.pending(), toy.optimizer.version()), (0, WeightVersion(1)));
        assert_eq!((toy.step_rest(), toy.optimizer.version()), (0, WeightVersion(1)), "none waits");
        assert_eq!(toy.weights(), whole.weights());
        assert_eq!(toy.contribute(&numbers(9), 0), Contribution::Accumulated { contributions: 1 });
    }
}

#[test]
fn a_gradient_that_is_no_number_changes_nothing() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e25] {
        let mut toy = Toy::new(&full(), 1);
        let mut gradient = numbers(1);
        gradient[NUMBERS - 1] = bad;
        assert_eq!(toy.contribute(&gradient, 3), Contribution::RefusedNonFinite);
        assert_eq!(toy.weights(), numbers(0));
        assert_eq!((toy.optimizer.refused(), toy.optimizer.version()), (1, WeightVersion(0)));
        assert_eq!(toy.optimizer.staleness().count(), 0);

        toy.contribute(&numbers(2), 0);
        assert_eq!(toy.weights(), weights_after(&full(), 1, &[numbers(2)]));
    }
}

#[test]
fn a_refused_contribution_leaves_the_accumulated_ones_alone() {
    let mut gradients: Vec<Vec<f32>> = (1..=4).map(numbers).collect();
    let expected = weights_after(&plain(), 4, &gradients);
    gradients.insert(2, vec![f32::NAN; NUMBERS]);
    assert_eq!(weights_after(&plain(), 4, &gradients), expected);
}

#[test]
fn an_outlier_among_microbatches_counts_as_much_as_the_limit() {
    let clipping = Optimizer { max_grad_norm_ratio: 2.0, ..plain() };
    let mut gradients = vec![numbers(1); 8];
    gradients.push(scaled(&numbers(1), 2.0));
    let expected = weights_after(&plain(), 1, &gradients);
    gradients[8] = scaled(&numbers(1), 64.0);
    assert_eq!(weights_after(&clipping, 1, &gradients), expected);
    assert_ne!(weights_after(&plain(), 1, &gradients), expected);
}

#[test]
fn a_stage_gradient_above_the_limit_is_scaled_to_it() {
    let gradient = numbers(1);
    let limit = norm(&gradient) as f32;
    let clipping = Optimizer { max_grad_norm: limit, epsilon: 0.25, ..plain() };
    let expected = weights_after(&clipping, 1, std::slice::from_ref(&gradient));
    let found = weights_after(&clipping, 1, &[scaled(&gradient, 16.0)]);
    let apart = expected.iter().zip(&found).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(apart < 1e-7, "{apart}");
    assert_ne!(
        weights_after(&Optimizer { max_grad_norm: 0.0, ..clipping }, 1, &[scaled(&gradient, 16.0)]),
        found
    );
}

#[test]
fn only_matrices_decay() {
    let mut toy = Toy::new(&plain(), 1);
    toy.contribute(&[0.0; NUMBERS], 0);
    let expected: Vec<f32> =
        numbers(0).iter().enumerate().map(|(i, w)| if i < 35 { w * (1.0 - 0.001) } else { *w }).collect();
    for (found, expected) in toy.weights().iter().zip(&expected) {
        assert!((found - expected).abs() <= 1e-7 * expected.abs(), "{found} instead of {expected}");
    }
}

#[test]
fn the_rate_shrinks_with_the_mean_staleness_of_the_step() {
    let correcting = Optimizer { staleness_power: 1.0, learning_rate: 1.0, ..plain() };
    let mut toy = Toy::new(&correcting, 2);
    toy.contribute(&numbers(1), 1);
    let (learning_rate, staleness) = stepped(toy.contribute(&numbers(2), 7));
    assert_eq!((learning_rate, staleness), (0.25, 4.0));
    assert_eq!((toy.optimizer.staleness().p50(), toy.optimizer.staleness().max()), (1, 7));

    toy.contribute(&numbers(1), 0);
    let (_, staleness) = stepped(toy.contribute(&numbers(2), 0));
    assert_eq!(staleness, 0.0, "staleness is that of this step's contributions alone");
}

#[test]
fn the_rate_falls_by_the_steps_of_the_run_and_not_by_those_of_a_replica() {
    let scheduled =
        Optimizer { warmup_steps: 2, learning_rate: 1.0, steps: 10, min_lr_ratio: 0.5, ..plain() };
    let rates = |steps: [Option<u64>; 4]| {
        let mut toy = Toy::new(&scheduled, 1);
        steps.map(|step| {
            step.inspect(|&step| toy.optimizer.set_step_of_run(step));
            stepped(toy.contribute(&numbers(1), 0)).0
        })
    };
    assert_eq!(rates([None; 4]), rates([1, 2, 3, 4].map(Some)), "alone, both are equal");
    assert_eq!(rates([Some(10), None, None, Some(0)]), [0.25, 0.5, 0.5, 1.0]);
}

#[test]
fn equal_gradients_in_equal_order_give_equal_bits() {
    let gradients: Vec<Vec<f32>> = (0..60).map(|seed| scaled(&numbers(seed), 0.3)).collect();
    for gradient_accumulation_steps in [1, 3] {
        let once = weights_after(&full(), gradient_accumulation_steps, &gradients);
        let again = weights_after(&full(), gradient_accumulation_steps, &gradients);
        assert!(once.iter().zip(&again).all(|(a, b)| a.to_bits() == b.to_bits()));
        assert!(once.iter().all(|w| w.is_finite()));
    }
}

#[test]
#[should_panic(expected = "parameters the optimizer was not made for")]
fn other_parameters_are_a_programmer_error() {
    let mut toy = Toy::new(&plain(), 1);
    let _ = toy.optimizer.contribute(&mut toy.cpu, &mut [], 0);
}
