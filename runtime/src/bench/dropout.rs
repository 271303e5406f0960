//! `bench dropout`: throughput while peers come and go, of every router on equal swarms with equal deaths.
//!
//! The swarms are those of [`swarmline_scheduler::sim::dropout`], in virtual time: the figures are the same on every
//! machine. Runs are independent, so they are played on all cores.

mod figures;
mod plot;
mod table;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde::Serialize;
use swarmline_scheduler::router::Policy;
use swarmline_scheduler::sim::dropout::{Churn, Shape, Workload};

use super::machine;

pub use figures::{Cell, Figures};

/// Scope of the benchmark.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Options {
    /// Stages and replicas. Default 8x8.
    pub shape: Shape,
    /// What befalls the peers. Default: everything.
    pub churns: Vec<Churn>,
    /// The routers; figures at the top of a report are those of the first. Default: all.
    pub routers: Vec<Policy>,
    /// A run of each. Default: the seeds of the benchmark.
    pub seeds: Vec<u64>,
    /// Virtual time of a run. Default 40 minutes.
    pub length: Duration,
    /// Runs at a time. Default 1.
    pub threads: usize,
}

impl Default for Options {
    fn default() -> Self {
        let Workload { shape, length, .. } = Workload::new(Shape::MAIN, Churn::Calm, 0);
        Self {
            shape,
            churns: Churn::ALL.to_vec(),
            routers: Policy::ALL.to_vec(),
            seeds: Workload::SEEDS.to_vec(),
            length,
            threads: 1,
        }
    }
}

impl Options {
    /// The benchmark in a minute or two: 6x3, ten virtual minutes, two seeds, no churn and crashes only.
    #[must_use]
    pub fn quick() -> Self {
        Self {
            shape: Shape::SMALL,
            churns: Churn::ALL.into_iter().filter(|churn| churn.percent().is_some()).collect(),
            seeds: Workload::SEEDS[..2].to_vec(),
            length: Duration::from_secs(600),
            ..Self::default()
        }
    }

    fn runs(&self) -> Vec<(Policy, Churn, u64)> {
        let churns = |&router| self.churns.iter().map(move |&churn| (router, churn));
        let seeds = |(router, churn)| self.seeds.iter().map(move |&seed| (router, churn, seed));
        self.routers.iter().flat_map(churns).flat_map(seeds).collect()
    }
}

/// Every figure of a benchmark.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Commit of the checkout that this program was built from; `None` without a checkout.
    pub commit: Option<String>,
    /// The tier: `s`, virtual time.
    pub tier: &'static str,
    /// Stages x replicas.
    pub shape: String,
    /// Virtual time of a run, of which the first fifth is not measured.
    pub length_s: f64,
    /// The seeds.
    pub seeds: Vec<u64>,
    /// The router of the figures up to `ungranted`.
    pub router: &'static str,
    /// Median E1, by churn in percent.
    pub e1: BTreeMap<u8, f64>,
    /// Median E3, by churn in percent.
    pub e3: BTreeMap<u8, f64>,
    /// Median share of the maximum flow without churn.
    pub share_of_bound: Option<f64>,
    /// The longest of the median recovery times, in seconds.
    pub recovery_p95_s: Option<f64>,
    /// Microbatches without an outcome, of all runs.
    pub lost: u64,
    /// Microbatches that a stage applied twice, of all runs.
    pub duplicates: u64,
    /// Finished microbatches without a grant of every stage, of all runs.
    pub ungranted: u64,
    /// All figures, by router and churn.
    pub routers: BTreeMap<&'static str, BTreeMap<String, Cell>>,
}

impl Report {
    /// The router of the figures at the top first, then the others by name.
    fn in_order(&self) -> impl Iterator<Item = (&'static str, &BTreeMap<String, Cell>)> {
        let mut routers: Vec<_> = self.routers.iter().map(|(&name, cells)| (name, cells)).collect();
        routers.sort_by_key(|(name, _)| *name != self.router);
        routers.into_iter()
    }

    /// The runs that broke a rule, each with its router, churn and message.
    pub fn broken(&self) -> impl Iterator<Item = String> {
        let cells = self
            .routers
            .iter()
            .flat_map(|(router, cells)| cells.iter().map(move |(churn, cell)| (router, churn, cell)));
        cells.flat_map(|(router, churn, cell)| {
            cell.broken.iter().map(move |broken| format!("{router}, {churn}: {broken}"))
        })
    }
}

/// Plays all runs. `progress` hears of each that is done: how many are, and of how many.
pub fn measure(options: &Options, progress: impl Fn(usize, usize) + Sync) -> Report {
    let runs = options.runs();
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let played = Mutex::new(BTreeMap::new());
    let work = || {
        while let Some(&(router, churn, seed)) = runs.get(next.fetch_add(1, Ordering::Relaxed)) {
            let mut workload = Workload::new(options.shape, churn, seed);
            workload.length = options.length;
            let figures = workload.play(router).map(|report| Figures::of(&report));
            let figures = figures.map_err(|violation| violation.to_string());
            if let Ok(mut played) = played.lock() {
                played.insert((name(router), churn, seed), figures);
            }
            progress(done.fetch_add(1, Ordering::Relaxed) + 1, runs.len());
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..options.threads.clamp(1, runs.len().max(1)) {
            scope.spawn(work);
        }
    });
    report(options, played.into_inner().unwrap_or_default())
}

type Played = BTreeMap<(&'static str, Churn, u64), Result<Figures, String>>;

fn report(options: &Options, played: Played) -> Report {
    let mut routers: BTreeMap<&str, BTreeMap<String, Cell>> = BTreeMap::new();
    for ((router, churn, seed), figures) in played {
        let cell = routers.entry(router).or_default().entry(churn.to_string()).or_default();
        cell.add(seed, figures);
    }
    for cells in routers.values_mut() {
        let calm = cells.get(&Churn::Calm.to_string()).cloned();
        cells.values_mut().for_each(|cell| cell.conclude(calm.as_ref()));
    }
    let router = options.routers.first().copied().unwrap_or_default();
    let cells = routers.get(name(router)).cloned().unwrap_or_default();
    let by_percent = |figure: fn(&Figures) -> f64| {
        let percent = |churn: &Churn| {
            let median = cells.get(&churn.to_string())?.median.as_ref()?;
            Some((churn.percent()?, figure(median)))
        };
        options.churns.iter().filter_map(percent).collect()
    };
    let sum =
        |count: fn(&Figures) -> u64| cells.values().flat_map(|cell| cell.seeds.values()).map(count).sum();
    let medians = || cells.values().filter_map(|cell| cell.median.as_ref());
    Report {
        commit: machine::commit(),
        tier: "s",
        shape: options.shape.to_string(),
        length_s: options.length.as_secs_f64(),
        seeds: options.seeds.clone(),
        router: name(router),
        e1: by_percent(|figures| figures.e1),
        e3: by_percent(|figures| figures.e3),
        share_of_bound: cells
            .get(&Churn::Calm.to_string())
            .and_then(|cell| Some(cell.median.as_ref()?.share_of_bound)),
        recovery_p95_s: medians().filter_map(|figures| figures.recovery_p95_s).reduce(f64::max),
        lost: sum(|figures| figures.lost),
        duplicates: sum(|figures| figures.duplicates),
        ungranted: sum(|figures| figures.ungranted),
        routers,
    }
}

fn name(router: Policy) -> &'static str {
    router.into()
}

#[cfg(test)]
mod tests {
    use swarmline_scheduler::sim::dropout::Trace;

    use super::*;

    fn tiny() -> Options {
        let mut options = Options::quick();
        options.shape = Shape { stages: 2, replicas: 2 };
        options.length = Duration::from_secs(120);
        options.churns = vec![Churn::Calm, Churn::Crashes(10)];
        options
    }

    #[test]
    fn a_report_has_every_run_whatever_the_number_of_threads() {
        let seen = Mutex::new(Vec::new());
        let alone = measure(&tiny(), |done, of| seen.lock().unwrap().push((done, of)));
        let runs = Policy::ALL.len() * 2 * 2;
        assert_eq!(seen.into_inner().unwrap(), (1..=runs).map(|done| (done, runs)).collect::<Vec<_>>());
        let mut options = tiny();
        options.threads = 3;
        assert_eq!(measure(&options, |_, _| {}), alone);
        assert_eq!(alone.broken().count(), 0);
        assert_eq!(
            (alone.router, alone.lost, alone.duplicates, alone.ungranted),
            ("least-outstanding", 0, 0, 0)
        );
        assert_eq!(alone.e1.keys().copied().collect::<Vec<_>>(), [0, 10]);
        let cell = &alone.routers["least-outstanding"]["C10"];
        let e1: Vec<f64> = cell.seeds.values().map(|figures| figures.e1).collect();
        assert_eq!(alone.e1[&10], f64::midpoint(e1[0], e1[1]));
        assert!(cell.median.as_ref().unwrap().e2.is_some());
    }

    #[test]
    fn a_run_that_breaks_a_rule_is_reported_beside_the_others() {
        let options = Options { seeds: vec![1, 2], ..tiny() };
        let figures = measure(&Options { seeds: vec![1], ..tiny() }, |_, _| {});
        let sound = figures.routers["iwrr"]["C0"].seeds[&1].clone();
        let played = BTreeMap::from([
            (("iwrr", Churn::Calm, 1), Ok(sound.clone())),
            (("iwrr", Churn::Calm, 2), Err("seed 2: a rule".to_owned())),
        ]);
        let report = report(&options, played);
        assert_eq!(report.broken().collect::<Vec<_>>(), ["iwrr, C0: seed 2: a rule"]);
        assert_eq!(report.routers["iwrr"]["C0"].median.as_ref().map(|median| median.e1), Some(sound.e1));
        assert!(report.to_string().contains("seed 2: a rule"), "{report}");
    }

    /// Real processes replay what a file says.
    #[test]
    fn a_trace_is_written_down_and_read_back() {
        let mut workload = Workload::new(Shape::SMALL, Churn::Crashes(20), 11);
        workload.length = Duration::from_secs(300);
        let trace = workload.trace();
        let text = serde_json::to_string(&trace).unwrap();
        assert_eq!(serde_json::from_str::<Trace>(&text).unwrap(), trace);
        assert!(text.contains(r#""what":{"crash":{"silent":true,"back_after_ms":"#), "{text}");
    }
}
