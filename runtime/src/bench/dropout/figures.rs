//! The figures of a run, and of the runs of several seeds.

use std::collections::BTreeMap;

use serde::Serialize;
use swarmline_scheduler::sim;

use super::super::statistics::median;

/// The figures of one run, or the medians of several.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// Finished microbatches a second.
    pub throughput_per_s: f64,
    /// Throughput as a share of what the narrowest stage could at each moment.
    pub e1: f64,
    /// Throughput as a share of that of the same router and seed without churn; `None` if there was no such run.
    pub e2: Option<f64>,
    /// Throughput as a share of what all running peers could on any stage.
    pub e3: f64,
    /// Throughput as a share of the maximum flow.
    pub share_of_bound: f64,
    /// The microbatches of 95 of 100 dead peers were in other hands within this; `None` without a death.
    pub recovery_p95_s: Option<f64>,
    /// Deaths that were recovered from.
    pub deaths: u64,
    /// Microbatches without an outcome.
    pub lost: u64,
    /// Microbatches that a stage applied twice.
    pub duplicates: u64,
    /// Finished microbatches without a grant of every stage.
    pub ungranted: u64,
    /// Microbatches with another outcome than the end: a stage was empty.
    pub refused: u64,
    /// Grants to replicas that died before an averaging round carried them on.
    pub contributions_lost: u64,
    /// Where the rest went, as shares of what all running peers could.
    pub losses: BTreeMap<&'static str, f64>,
}

impl Figures {
    /// The figures of a run. A run that applies a microbatch twice is broken, and has none.
    pub(super) fn of(report: &sim::Report) -> Self {
        let (account, counts) = (&report.account, &report.counts);
        let share =
            |(name, part): (&'static str, f64)| (name, part / account.available.max(f64::MIN_POSITIVE));
        Self {
            throughput_per_s: account.throughput(),
            e1: account.e1(),
            e2: None,
            e3: account.e3(),
            share_of_bound: account.share_of_bound(),
            recovery_p95_s: report.recovery_p95().map(|time| time.as_secs_f64()),
            deaths: report.recoveries.len() as u64,
            lost: counts.lost,
            duplicates: 0,
            ungranted: counts.ungranted,
            refused: counts.refused,
            contributions_lost: counts.contributions_lost,
            losses: account.losses.parts().into_iter().map(share).collect(),
        }
    }

    /// The medians of several runs, figure by figure; `None` without a run.
    fn median(runs: &[Self]) -> Option<Self> {
        let of = |figure: &dyn Fn(&Self) -> f64| median(&runs.iter().map(figure).collect::<Vec<_>>());
        let known = |figure: &dyn Fn(&Self) -> Option<f64>| {
            median(&runs.iter().filter_map(figure).collect::<Vec<_>>())
        };
        let count = |figure: fn(&Self) -> u64| Some(of(&|run| figure(run) as f64)?.round() as u64);
        let loss =
            |&name: &&'static str| Some((name, of(&|run| run.losses.get(name).copied().unwrap_or(0.0))?));
        Some(Self {
            throughput_per_s: of(&|run| run.throughput_per_s)?,
            e1: of(&|run| run.e1)?,
            e2: known(&|run| run.e2),
            e3: of(&|run| run.e3)?,
            share_of_bound: of(&|run| run.share_of_bound)?,
            recovery_p95_s: known(&|run| run.recovery_p95_s),
            deaths: count(|run| run.deaths)?,
            lost: count(|run| run.lost)?,
            duplicates: count(|run| run.duplicates)?,
            ungranted: count(|run| run.ungranted)?,
            refused: count(|run| run.refused)?,
            contributions_lost: count(|run| run.contributions_lost)?,
            losses: runs.first()?.losses.keys().filter_map(loss).collect(),
        })
    }
}

/// The runs of one router under one churn.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cell {
    /// The medians; `None` if every run is broken.
    pub median: Option<Figures>,
    /// The figures, by seed.
    pub seeds: BTreeMap<u64, Figures>,
    /// The rules that runs broke, each with its seed.
    pub broken: Vec<String>,
}

impl Cell {
    /// Adds a run, or the rule that it broke.
    pub(super) fn add(&mut self, seed: u64, figures: Result<Figures, String>) {
        match figures {
            Ok(figures) => {
                self.seeds.insert(seed, figures);
            }
            Err(broken) => self.broken.push(broken),
        }
    }

    /// Compares every run with that of its seed without churn, and takes the medians.
    pub(super) fn conclude(&mut self, calm: Option<&Self>) {
        for (seed, figures) in &mut self.seeds {
            let calm = calm.and_then(|calm| calm.seeds.get(seed));
            figures.e2 = calm.map(|calm| figures.throughput_per_s / calm.throughput_per_s);
        }
        self.median = Figures::median(&self.seeds.values().cloned().collect::<Vec<_>>());
    }
}
