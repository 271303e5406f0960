use super::{assert_near, plain};
use crate::config::Optimizer;
use crate::optim::{StalenessCorrection, StalenessHistogram};

fn correction(power: f32) -> StalenessCorrection {
    StalenessCorrection::new(&Optimizer { staleness_power: power, steps: 101, ..plain() })
}

#[test]
fn a_late_gradient_is_divided_by_its_staleness_at_first() {
    assert_near(correction(1.0).divisor(4.0, 1), 4.0);
    assert_near(correction(0.5).divisor(4.0, 1), 2.0);
}

#[test]
fn the_correction_fades_to_nothing_over_the_run() {
    assert_near(correction(1.0).divisor(4.0, 51), 2.0);
    assert_near(correction(1.0).divisor(4.0, 101), 1.0);
    assert_near(correction(1.0).divisor(4.0, 5000), 1.0);
}

#[test]
fn a_fresh_gradient_is_left_alone() {
    assert_eq!(correction(1.0).divisor(0.0, 1), 1.0);
    assert_eq!(correction(1.0).divisor(1.0, 1), 1.0);
}

#[test]
fn zero_turns_it_off() {
    assert_eq!(correction(0.0).divisor(1e6, 1), 1.0);
}

#[test]
fn the_histogram_of_nothing_is_zero() {
    let empty = StalenessHistogram::default();
    assert_eq!((empty.count(), empty.p50(), empty.p99(), empty.max()), (0, 0, 0, 0));
}

#[test]
fn quantiles_are_values_that_occurred() {
    let mut histogram = StalenessHistogram::default();
    (1..=100).for_each(|staleness| histogram.record(staleness));
    assert_eq!((histogram.count(), histogram.p50(), histogram.p99(), histogram.max()), (100, 50, 99, 100));
}

#[test]
fn values_beyond_the_buckets_share_the_last_one() {
    let mut histogram = StalenessHistogram::default();
    [3, 1000, u64::MAX].into_iter().for_each(|staleness| histogram.record(staleness));
    assert_eq!((histogram.p50(), histogram.p99(), histogram.max()), (255, 255, u64::MAX));
}
