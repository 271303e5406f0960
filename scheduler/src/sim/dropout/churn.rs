//! What befalls the peers of a workload.

use std::fmt;
use std::str::FromStr;

/// What befalls the peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Churn {
    /// C0: nothing.
    Calm,
    /// CX: each peer crashes with this probability, in percent, in each epoch, and comes back empty after a minute on
    /// average. Half of the crashes are silent, half close their connections.
    Crashes(u8),
    /// CS: three tenths of the time each peer is four times slower, for a minute each.
    Slowdowns,
    /// CL: uplinks are narrower than what the peers compute.
    NarrowUplinks,
    /// CB: 61 % of the fleet is taken away in an hour, up to six peers at the same instant; each is replaced after a minute
    /// on average.
    Spot,
}

impl Churn {
    /// Every churn of the benchmark.
    pub const ALL: [Self; 8] = [
        Self::Calm,
        Self::Crashes(1),
        Self::Crashes(5),
        Self::Crashes(10),
        Self::Crashes(20),
        Self::Slowdowns,
        Self::NarrowUplinks,
        Self::Spot,
    ];

    /// The probability that a peer crashes within an epoch, percent; `None` if that is not what befalls it.
    #[must_use]
    pub fn percent(self) -> Option<u8> {
        match self {
            Self::Calm => Some(0),
            Self::Crashes(percent) => Some(percent),
            Self::Slowdowns | Self::NarrowUplinks | Self::Spot => None,
        }
    }
}

impl fmt::Display for Churn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Calm => f.write_str("C0"),
            Self::Crashes(percent) => write!(f, "C{percent}"),
            Self::Slowdowns => f.write_str("CS"),
            Self::NarrowUplinks => f.write_str("CL"),
            Self::Spot => f.write_str("CB"),
        }
    }
}

impl FromStr for Churn {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|churn| churn.to_string() == name);
        let percent = || name.strip_prefix('C')?.parse().ok().filter(|percent| (1..100).contains(percent));
        known.or_else(|| percent().map(Self::Crashes)).ok_or_else(|| {
            format!("`{name}` is no churn; say C0, C1 to C99 (percent an epoch), CS, CL or CB")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_churn_is_read_as_it_is_written() {
        for churn in Churn::ALL {
            assert_eq!(churn.to_string().parse(), Ok(churn));
        }
        assert_eq!("C7".parse(), Ok(Churn::Crashes(7)));
        for wrong in ["", "C", "C100", "c5", "CX"] {
            assert!(wrong.parse::<Churn>().unwrap_err().contains("no churn"), "{wrong}");
        }
    }
}
