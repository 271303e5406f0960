//! Durations as a person types them.

use std::time::Duration;

/// The units, with their seconds.
const UNITS: [(&str, u64); 5] = [("s", 1), ("min", 60), ("m", 60), ("h", 3_600), ("d", 86_400)];

/// Longest duration: ten years.
const SECONDS_MAX: u64 = 10 * 365 * 86_400;

/// A whole number with a unit, such as `90s`, `30m` or `2h`.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let (number, unit) = text.split_at(digits);
    let seconds = UNITS.iter().find(|(name, _)| *name == unit.trim()).map(|(_, seconds)| seconds);
    let total = seconds.and_then(|seconds| number.parse::<u64>().ok()?.checked_mul(*seconds));
    let total = total.filter(|total| (1..=SECONDS_MAX).contains(total));
    total
        .map(Duration::from_secs)
        .ok_or_else(|| "a number with a unit is needed: 90s, 30m, 2h or 1d".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_a_number_with_a_unit() {
        let seconds = |text| parse_duration(text).map(|duration| duration.as_secs());
        assert_eq!(
            ["90s", "30m", "30 min", "2h", "1d"].map(seconds),
            [90, 1_800, 1_800, 7_200, 86_400].map(Ok)
        );
        for wrong in ["", "30", "m", "-3s", "1.5h", "3 weeks", "0s", "99999999999999999999s", "9999999d"] {
            assert!(seconds(wrong).is_err(), "{wrong}");
        }
    }
}
