//! The result of a simulated run.

use std::collections::BTreeMap;
use std::fmt;

use crate::{Duration, Instance, StageIndex, Time, feeder};

use super::account::Account;

/// A run that broke no rule.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Report {
    /// The seed that reproduces the run.
    pub seed: u64,
    /// Virtual time that the run took.
    pub time: Duration,
    /// Virtual time until every training microbatch had its outcome.
    pub training_time: Duration,
    /// Events and alarms.
    pub steps: u64,
    /// Training microbatches that finished, under every feeder of the run.
    pub finished: u64,
    /// The counters of the last feeder.
    pub counts: feeder::Counts,
    /// The results of evaluations by command.
    pub measured: Vec<feeder::Measured>,
    /// Highest number of microbatches in flight at once.
    pub in_flight_max: u64,
    /// Where the capacity of the replicas went, from [`Scenario::measure_from`](super::Scenario::measure_from) on until
    /// training was over or the feeder was told to stop.
    pub account: Account,
    /// The time from each death of a replica to the time at which the last of its microbatches was in other hands, for
    /// the deaths of the same time, sorted.
    pub recoveries: Vec<Duration>,
    /// Number of times that each fault struck and each recovery path was taken.
    pub paths: BTreeMap<&'static str, u64>,
    /// The replica processes, by index.
    pub replicas: Vec<ReplicaReport>,
}

/// The final state of one replica process.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplicaReport {
    /// Its last start.
    pub instance: Instance,
    /// The stage it serves, or served last.
    pub stage: Option<StageIndex>,
    /// Microbatches that its last start applied.
    pub applied: u64,
    /// The weights of its last start, as words: replicas that agree have equal words.
    pub weights: Vec<u64>,
}

impl Report {
    /// Finished microbatches a second of the training time.
    #[must_use]
    pub fn throughput(&self) -> f64 {
        as_f64(self.finished) / self.training_time.as_secs_f64().max(f64::MIN_POSITIVE)
    }

    /// The time within which the microbatches of 95 of 100 deaths were in other hands; `None` without a death.
    #[must_use]
    pub fn recovery_p95(&self) -> Option<Duration> {
        let index = (self.recoveries.len() * 95).div_ceil(100).checked_sub(1)?;
        self.recoveries.get(index).copied()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let counts = &self.counts;
        writeln!(f, "seed {}: {:.1} s in {} steps", self.seed, self.time.as_secs_f64(), self.steps)?;
        writeln!(
            f,
            "microbatches    {} finished, of the last feeder {}; {} inherited, {} refused, {} lost, {} ungranted",
            self.finished, counts.finished, counts.inherited, counts.refused, counts.lost, counts.ungranted
        )?;
        writeln!(
            f,
            "recovery        {} retried by the feeder, {} claims denied, {} contributions lost",
            counts.retried, counts.denied, counts.contributions_lost
        )?;
        writeln!(
            f,
            "throughput      {:.2} a second, {:.2} of the capacity bound, at most {} in flight",
            self.throughput(),
            self.account.share_of_bound(),
            self.in_flight_max
        )?;
        writeln!(f, "{}", self.account)?;
        if let Some(recovery) = self.recovery_p95() {
            let (deaths, within) = (self.recoveries.len(), recovery.as_secs_f64());
            writeln!(f, "recovered       from 95 of 100 deaths within {within:.1} s, of {deaths}")?;
        }
        for replica in &self.replicas {
            let stage = replica.stage.map_or_else(|| "no stage".to_owned(), |stage| stage.to_string());
            writeln!(f, "replica {:?}  {stage}, {} applied", replica.instance, replica.applied)?;
        }
        for (path, count) in &self.paths {
            writeln!(f, "  {count:>6}  {path}")?;
        }
        Ok(())
    }
}

/// A rule that a run broke.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("seed {seed}, after {:.3} s: {rule}", .at.since(Time(0)).as_secs_f64())]
pub struct Violation {
    /// The seed that reproduces the run.
    pub seed: u64,
    /// Virtual time of the violation.
    pub at: Time,
    /// The rule that was broken, and the details.
    pub rule: String,
}

/// Exact up to 2^53.
#[allow(clippy::cast_precision_loss)]
fn as_f64(count: u64) -> f64 {
    count as f64
}
