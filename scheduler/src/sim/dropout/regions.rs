//! The twelve regions: the same for every run, so that figures can be compared.
//!
//! One-way delays grow with the distance between two cities: 3 ms within a region, 132 ms between the two that are farthest
//! apart. Bandwidth falls with the delay by a power law, from 1.9 Gbit/s to 70 Mbit/s.

use crate::Duration;
use crate::sim::Path;

/// The regions by name. Coordinator and feeder are in the first.
pub const REGIONS: [&str; 12] = [
    "Frankfurt",
    "London",
    "Stockholm",
    "Virginia",
    "Oregon",
    "São Paulo",
    "Cape Town",
    "Mumbai",
    "Singapore",
    "Tokyo",
    "Seoul",
    "Sydney",
];

/// One-way delays, ms.
const DELAYS: [[u64; 12]; 12] = [
    [3, 7, 11, 49, 61, 71, 68, 49, 74, 68, 63, 118],
    [7, 3, 13, 44, 58, 69, 70, 53, 79, 70, 65, 121],
    [11, 13, 3, 49, 57, 79, 75, 46, 70, 60, 55, 112],
    [49, 44, 49, 3, 28, 56, 92, 93, 111, 79, 81, 112],
    [61, 58, 57, 28, 3, 78, 117, 91, 95, 58, 62, 90],
    [71, 69, 79, 56, 78, 3, 47, 99, 114, 132, 131, 96],
    [68, 70, 75, 92, 117, 47, 3, 60, 70, 106, 99, 80],
    [49, 53, 46, 93, 91, 99, 60, 3, 30, 50, 42, 74],
    [74, 79, 70, 111, 95, 114, 70, 30, 3, 40, 36, 47],
    [68, 70, 60, 79, 58, 132, 106, 50, 40, 3, 11, 58],
    [63, 65, 55, 81, 62, 131, 99, 42, 36, 11, 3, 61],
    [118, 121, 112, 112, 90, 96, 80, 74, 47, 58, 61, 3],
];

/// Bandwidths of one connection, Mbit/s.
const BANDWIDTHS: [[u64; 12]; 12] = [
    [1900, 907, 612, 166, 137, 120, 125, 166, 116, 125, 133, 77],
    [907, 1900, 529, 183, 143, 123, 122, 155, 110, 122, 130, 76],
    [612, 529, 1900, 166, 146, 110, 115, 176, 122, 139, 150, 81],
    [166, 183, 166, 1900, 271, 148, 96, 95, 81, 110, 107, 81],
    [137, 143, 146, 271, 1900, 111, 78, 97, 93, 143, 135, 98],
    [120, 123, 110, 148, 111, 1900, 172, 90, 80, 70, 70, 92],
    [125, 122, 115, 96, 78, 172, 1900, 139, 122, 85, 90, 108],
    [166, 155, 176, 95, 97, 90, 139, 1900, 255, 163, 190, 116],
    [116, 110, 122, 81, 93, 80, 122, 255, 1900, 198, 217, 172],
    [125, 122, 139, 110, 143, 70, 85, 163, 198, 1900, 612, 143],
    [133, 130, 150, 107, 135, 70, 90, 190, 217, 612, 1900, 137],
    [77, 76, 81, 81, 98, 92, 108, 116, 172, 143, 137, 1900],
];

/// The ways between all regions.
#[must_use]
pub fn paths() -> Vec<Vec<Path>> {
    let path = |(&millis, &megabits): (&u64, &u64)| Path {
        delay: Duration::from_millis(millis),
        bandwidth: megabits * 1_000_000,
    };
    let row =
        |(delays, bandwidths): (&[u64; 12], &[u64; 12])| delays.iter().zip(bandwidths).map(path).collect();
    DELAYS.iter().zip(&BANDWIDTHS).map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_equal_in_both_directions_and_as_long_and_as_wide_as_stated() {
        let paths = paths();
        let all = || paths.iter().flatten();
        for (row, from) in paths.iter().enumerate() {
            for (column, path) in from.iter().enumerate() {
                assert_eq!(*path, paths[column][row]);
                assert_eq!(path.delay.as_millis() == 3, row == column);
            }
        }
        let farthest = all().max_by_key(|path| path.delay).unwrap();
        assert_eq!((farthest.delay.as_millis(), farthest.bandwidth), (132, 70_000_000));
        assert_eq!(all().map(|path| path.bandwidth).max(), Some(1_900_000_000));
        assert_eq!(all().map(|path| path.bandwidth).min(), Some(70_000_000));
    }
}
