//! Figures of a noisy machine: medians, and ratios of what ran next to each other.

use serde::Serialize;

/// The middle of some figures, and how far they lie apart.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Smallest figure.
    pub low: f64,
    /// Median.
    pub median: f64,
    /// Largest figure.
    pub high: f64,
    /// How many there are.
    pub count: usize,
}

impl Spread {
    /// Of these figures; nothing if there are none.
    #[must_use]
    pub fn of(figures: &[f64]) -> Option<Self> {
        let mut sorted = figures.to_vec();
        sorted.sort_by(f64::total_cmp);
        let (low, high) = (*sorted.first()?, *sorted.last()?);
        Some(Self { low, median: median(&sorted)?, high, count: sorted.len() })
    }

    /// Of the ratios of `pairs`, first to second: two things that ran next to each other.
    #[must_use]
    pub fn of_ratios(pairs: &[(f64, f64)]) -> Option<Self> {
        let ratios: Vec<f64> = pairs.iter().map(|(ours, theirs)| ours / theirs).collect();
        Self::of(&ratios)
    }
}

/// The middle figure, the mean of the two middle ones where their number is even; nothing if there are none.
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
