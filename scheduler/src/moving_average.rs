//! A moving average of durations, in whole nanoseconds.

use crate::Duration;

/// Weight of a new value, in tenths; the former average has the rest. After ten new values the values before have
/// less than 3 %.
const NEW_TENTHS: u128 = 3;

/// An exponential moving average in which a new value has a weight of 0.3.
///
/// Integers make every platform agree on the last nanosecond.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MovingAverage {
    nanos: Option<u64>,
}

impl MovingAverage {
    /// Adds a value; the first value is the average.
    pub fn add(&mut self, value: Duration) {
        let value = value.as_nanos().min(u128::from(u64::MAX));
        let average = self.nanos.map_or(value, u128::from);
        let mixed = (average * (10 - NEW_TENTHS) + value * NEW_TENTHS) / 10;
        self.nanos = Some(u64::try_from(mixed).unwrap_or(u64::MAX));
    }

    /// The average; `None` before the first value.
    #[must_use]
    pub fn get(&self) -> Option<Duration> {
        self.nanos.map(Duration::from_nanos)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_new_values() {
        let mut average = MovingAverage::default();
        assert_eq!(average.get(), None);
        average.add(Duration::from_millis(100));
        assert_eq!(average.get(), Some(Duration::from_millis(100)));
        average.add(Duration::from_millis(200));
        assert_eq!(average.get(), Some(Duration::from_millis(130)));
        (0..10).for_each(|_| average.add(Duration::from_secs(1)));
        assert!(average.get().unwrap() > Duration::from_millis(970));
        average.add(Duration::MAX);
        average.add(Duration::MAX);
        assert!(average.get().is_some());
    }
}
