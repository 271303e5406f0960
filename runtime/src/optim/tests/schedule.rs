use super::{assert_near, plain};
use crate::config::Optimizer;
use crate::optim::Schedule;

/// The rate where all steps of the run are taken by one replica.
fn rate(schedule: &Schedule, step: u64) -> f64 {
    schedule.rate(step, step)
}

/// Peak 1 after 10 steps, floor 0.125 after 110.
fn schedule() -> Schedule {
    Schedule::new(&Optimizer {
        learning_rate: 1.0,
        warmup_steps: 10,
        steps: 110,
        min_lr_ratio: 0.125,
        ..plain()
    })
}

#[test]
fn warms_up_linearly_from_the_first_step() {
    assert_near(rate(&schedule(), 1), 0.1);
    assert_near(rate(&schedule(), 5), 0.5);
    assert_near(rate(&schedule(), 10), 1.0);
}

#[test]
fn falls_along_half_a_cosine() {
    assert_near(rate(&schedule(), 60), (1.0 + 0.125) / 2.0);
    let quarter = 0.125 + 0.875 * (0.5 + 0.125_f64.sqrt());
    assert_near(rate(&schedule(), 35), quarter);
}

#[test]
fn stays_at_its_floor() {
    assert_near(rate(&schedule(), 110), 0.125);
    assert_near(rate(&schedule(), u64::MAX), 0.125);
}

#[test]
fn warms_up_by_the_steps_of_a_replica_and_falls_by_those_of_the_run() {
    assert_near(schedule().rate(5, 60), 0.5 * (1.0 + 0.125) / 2.0);
    assert_near(schedule().rate(1, 110), 0.1 * 0.125);
    assert_near(schedule().rate(200, 1), 1.0);
}

#[test]
fn never_rises_after_the_warm_up() {
    let rates: Vec<f64> = (10..=120).map(|step| rate(&schedule(), step)).collect();
    assert!(rates.windows(2).all(|pair| pair[0] >= pair[1]));
}

#[test]
fn may_be_all_warm_up() {
    let schedule = Schedule::new(&Optimizer {
        learning_rate: 1.0,
        warmup_steps: 4,
        steps: 4,
        min_lr_ratio: 0.5,
        ..plain()
    });
    let rates: Vec<f64> = (1..=5).map(|step| rate(&schedule, step)).collect();
    assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 0.5]);
}

#[test]
fn without_warm_up_and_with_a_full_floor_is_constant() {
    let schedule = Schedule::new(&plain());
    assert!((1..200).all(|step| rate(&schedule, step) == f64::from(0.01_f32)));
}
