//! Medians, and ratios of neighbouring measurements, for figures of a noisy machine.

use serde::Serialize;

/// Median and range of some figures.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest figure.
    pub low: f64,
    /// Median.
    pub median: f64,
    /// Largest figure.
    pub high: f64,
    /// Number of figures.
    pub count: usize,
}

impl Spread {
    /// Median and range of `figures`; `None` without a figure.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        Some(Self { low, median: median(&sorted)?, high, count: sorted.len() })
    }

    /// Median and range of the ratios of `pairs`, first to second; a pair holds two runs next to each other.
    #[must_use]
    pub fn of_ratios(pairs: &[(f64, f64)]) -> Option<Self> {
        let ratios: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours / theirs).collect();
        Self::of(&ratios)
    }
}

/// The middle figure, or the mean of the two middle ones where their number is even; `None` without a figure.
#[must_use]
pub fn median(figures: &[f64]) -> Option<f64> {
    let mut sorted = figures.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

#[cfg(test)]
mod tests {
    use super::{Spread, median};

    #[test]
    fn the_median_is_the_middle() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0]), Some(3.0));
        assert_eq!(median(&[9.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 3.0, 100.0]), Some(3.5));
    }

    #[test]
    fn ratios_are_taken_between_neighbours_and_not_between_medians() {
        // A machine that becomes half as fast between the rounds: the ratio does not notice.
        let spread = Spread::of_ratios(&[(200.0, 100.0), (100.0, 50.0), (110.0, 50.0)]).unwrap();
        assert_eq!((spread.low, spread.median, spread.high, spread.count), (2.0, 2.0, 2.2, 3));
        assert_eq!(Spread::of_ratios(&[]), None);
    }
}
