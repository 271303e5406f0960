//! Settings of a keeper's process.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

use swarmline_scheduler::StageIndex;
use swarmline_scheduler::keeper::Interval;

use crate::net::{Identity, Invite};
use crate::process::PATIENCE;

/// Settings of a keeper: invite, identity, target, schedule.
#[derive(Clone, Debug)]
pub struct KeeperOptions {
    pub(super) invite: Invite,
    pub(super) identity: Identity,
    pub(super) target: String,
    pub(super) listen: SocketAddr,
    pub(super) every: Every,
    pub(super) keep: usize,
    pub(super) stage: Option<StageIndex>,
    pub(super) patience: Duration,
    pub(super) take_over: bool,
    pub(super) resume_from: Option<String>,
}

impl KeeperOptions {
    /// Keeps the run of `invite` in `target`, a folder or a bucket, with any free port of loopback: all stages, every ten
    /// minutes, the three newest checkpoints.
    #[must_use]
    pub fn new(invite: Invite, identity: Identity, target: impl Into<String>) -> Self {
        Self {
            invite,
            identity,
            target: target.into(),
            listen: SocketAddr::from(([127, 0, 0, 1], 0)),
            every: Every::default(),
            keep: 3,
            stage: None,
            patience: PATIENCE,
            take_over: false,
            resume_from: None,
        }
    }

    /// Address on which the data plane listens; port 0 takes any free port.
    #[must_use]
    pub fn with_listen(self, listen: SocketAddr) -> Self {
        Self { listen, ..self }
    }

    /// The time between two checkpoints.
    #[must_use]
    pub fn with_every(self, every: Every) -> Self {
        Self { every, ..self }
    }

    /// The number of checkpoints to keep, at least 1: older ones are removed.
    #[must_use]
    pub fn with_keep(self, keep: usize) -> Self {
        Self { keep, ..self }
    }

    /// Whether another process with the same key that lives loses its place to this keeper. Default no: while it lives this
    /// one is refused.
    #[must_use]
    pub fn with_take_over(self, take_over: bool) -> Self {
        Self { take_over, ..self }
    }

    /// How long the coordinator may be silent before the keeper leaves. Default 30 min.
    #[must_use]
    pub fn with_patience(self, patience: Duration) -> Self {
        Self { patience, ..self }
    }

    /// The checkpoint that the run goes on from: its states are given to the first replicas. Not needed if it is in the
    /// target.
    #[must_use]
    pub fn with_resume_from(self, checkpoint: impl Into<Option<String>>) -> Self {
        Self { resume_from: checkpoint.into(), ..self }
    }

    /// The only stage to keep.
    #[must_use]
    pub fn with_stage(self, stage: impl Into<Option<StageIndex>>) -> Self {
        Self { stage: stage.into(), ..self }
    }
}

/// The time between two checkpoints, as a person writes it: `500` microbatches, or `30s`, `10m`, `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Every {
    /// So many finished microbatches of the run.
    Microbatches(u64),
    /// So much time.
    Time(Duration),
}

/// Units of time, and their seconds.
const UNITS: [(char, u64); 3] = [('h', 3600), ('m', 60), ('s', 1)];

impl Default for Every {
    fn default() -> Self {
        Self::Time(Duration::from_secs(600))
    }
}

impl From<Every> for Interval {
    fn from(every: Every) -> Self {
        match every {
            Every::Microbatches(count) => Self::Microbatches(count),
            Every::Time(time) => Self::Time(time),
        }
    }
}

impl FromStr for Every {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let seconds = UNITS.into_iter().find_map(|(unit, seconds)| Some((text.strip_suffix(unit)?, seconds)));
        let (digits, seconds) = seconds.map_or((text, None), |(digits, seconds)| (digits, Some(seconds)));
        let count: Option<u64> = digits.parse().ok().filter(|&count| count > 0);
        let every = count.map(|count| match seconds {
            Some(seconds) => Self::Time(Duration::from_secs(count.saturating_mul(seconds))),
            None => Self::Microbatches(count),
        });
        every.ok_or_else(|| "a number of microbatches is needed, or a time such as 30s, 10m or 2h".to_owned())
    }
}

/// As [`FromStr`] reads it.
impl fmt::Display for Every {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Microbatches(count) => write!(f, "{count}"),
            Self::Time(time) => {
                let seconds = time.as_secs();
                let whole = |&(_, unit): &(char, u64)| seconds.is_multiple_of(unit);
                let (unit, length) = UNITS.into_iter().find(whole).unwrap_or(('s', 1));
                write!(f, "{}{unit}", seconds / length)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interval_is_a_number_of_microbatches_or_a_time() {
        let parsed = |text: &str| text.parse::<Every>();
        assert_eq!(parsed("500"), Ok(Every::Microbatches(500)));
        for (text, seconds, shown) in [("30s", 30, "30s"), ("600s", 600, "10m"), ("2h", 7200, "2h")] {
            let every = parsed(text).unwrap();
            assert_eq!(every, Every::Time(Duration::from_secs(seconds)));
            assert_eq!(every.to_string(), shown);
        }
        for wrong in ["0", "0m", "", "m", "ten", "-1", "1.5h", "5d"] {
            assert!(parsed(wrong).unwrap_err().contains("10m"), "{wrong}");
        }
    }
}
