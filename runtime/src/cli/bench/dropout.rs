//! `swarmline bench dropout`.

use std::io::{IsTerminal as _, Write as _};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::ValueEnum;
use clap::builder::PossibleValuesParser;
use strum::VariantArray as _;
use swarmline_scheduler::router::Policy;
use swarmline_scheduler::sim::dropout::{Churn, Shape};

use super::super::computing::parse_threads;
use super::super::{Failure, all_cores, output};
use super::once;
use super::results::ResultFile;
use crate::bench::dropout::{self, Options, Report};

/// Virtual minutes at most: the longest day.
const MINUTES_MAX: u64 = 1_440;

/// Where the swarm runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Tier {
    /// In virtual time
    S,
    /// As real processes on this machine
    R,
}

/// Arguments of `swarmline bench dropout`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Where the swarm runs: `s` is virtual time
    #[arg(long, value_enum, default_value = "s")]
    tier: Tier,
    /// A small swarm, a short time and two seeds: under two minutes
    #[arg(long)]
    quick: bool,
    /// Stages x replicas; 8x8, with --quick 6x3
    #[arg(long, value_name = "SHAPE")]
    shape: Option<Shape>,
    /// What befalls the peers, separated by commas: C0, C1 to C99 (percent an epoch), CS, CL, CB
    #[arg(long, value_name = "CHURNS", value_delimiter = ',')]
    churn: Vec<Churn>,
    /// Routers to compare, separated by commas; all
    #[arg(long, value_name = "ROUTERS", value_delimiter = ',', value_parser = routers())]
    router: Vec<String>,
    /// Seeds, separated by commas
    #[arg(long, value_name = "SEEDS", value_delimiter = ',')]
    seeds: Vec<u64>,
    /// Virtual minutes of a run, of which the first fifth is not measured; 40, with --quick 10
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MINUTES_MAX))]
    minutes: Option<u64>,
    /// Runs at a time; as many as there are cores
    #[arg(long, value_name = "N", value_parser = parse_threads)]
    threads: Option<NonZeroUsize>,
    /// Write everything into this file as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw throughput against churn into this folder, as SVG
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
}

fn routers() -> PossibleValuesParser {
    PossibleValuesParser::new(Policy::VARIANTS.iter().map(|&policy| <&str>::from(policy)))
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.tier == Tier::R {
        return Err(Failure::usage(
            "bench dropout: --tier r, real processes that replay the deaths of a simulated swarm, does not exist yet; \
             --tier s plays the same swarms in virtual time",
        ));
    }
    let file = arguments.json.as_deref().map(ResultFile::prepare).transpose()?;
    arguments.plot.as_deref().map_or(Ok(()), prepare_folder)?;
    let report = dropout::measure(&options(arguments), show_progress);
    output::print(&report.to_string())?;
    if let Some(folder) = &arguments.plot {
        draw(folder, &report)?;
    }
    file.map_or(Ok(()), |file| file.write(&report))?;
    match report.broken().count() {
        0 => Ok(()),
        count => Err(Failure::failed(format!(
            "bench dropout: {count} run(s) broke a rule of the scheduler, named above; this is a defect, please report it"
        ))),
    }
}

fn options(arguments: &Arguments) -> Options {
    let mut options = if arguments.quick { Options::quick() } else { Options::default() };
    options.shape = arguments.shape.unwrap_or(options.shape);
    if !arguments.churn.is_empty() {
        options.churns = once(&arguments.churn);
    }
    if !arguments.router.is_empty() {
        let named = |policy: &&Policy| arguments.router.iter().any(|name| name == <&str>::from(**policy));
        options.routers = Policy::VARIANTS.iter().filter(named).copied().collect();
    }
    if !arguments.seeds.is_empty() {
        options.seeds = once(&arguments.seeds);
    }
    if let Some(minutes) = arguments.minutes {
        options.length = Duration::from_secs(60 * minutes);
    }
    options.threads = arguments.threads.map_or_else(all_cores, NonZeroUsize::get);
    options
}

fn show_progress(done: usize, of: usize) {
    let mut out = std::io::stderr();
    if out.is_terminal() {
        let _ = write!(out, "\r{done} of {of} runs");
        let _ = if done == of { writeln!(out) } else { out.flush() };
    }
}

/// Makes the folder, so that minutes of simulation do not end in an error.
fn prepare_folder(folder: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(folder).map_err(|error| {
        let folder = folder.display();
        Failure::usage(format!("--plot {folder}: cannot be made ({error}); name a folder you may write to"))
    })
}

fn draw(folder: &Path, report: &Report) -> Result<(), Failure> {
    let path = folder.join(format!("dropout-{}.svg", report.shape));
    std::fs::write(&path, report.to_svg()).map_err(|error| {
        let path = path.display();
        Failure::failed(format!("--plot: {path} cannot be written ({error}); name a folder you may write to"))
    })
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn the_whole_benchmark_runs_by_default_and_a_part_of_it_by_name() {
        let whole = options(&parse(&[]).unwrap());
        assert_eq!((whole.shape, whole.seeds.len(), whole.churns.len()), (Shape::MAIN, 4, Churn::ALL.len()));
        assert_eq!(whole.routers, Policy::ALL);
        let words = ["--quick", "--router", "iwrr", "--churn", "C5,C5", "--seeds", "3", "--minutes", "2"];
        let part = options(&parse(&words).unwrap());
        assert_eq!((part.shape, part.length), (Shape::SMALL, Duration::from_secs(120)));
        assert_eq!(
            (part.routers, part.churns, part.seeds),
            (vec![Policy::Iwrr], vec![Churn::Crashes(5)], vec![3])
        );
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for (words, part) in [
            (["--shape", "8"], "is no shape"),
            (["--churn", "C100"], "is no churn"),
            (["--router", "best"], "least-outstanding"),
            (["--minutes", "0"], "1..=1440"),
            (["--tier", "x"], "[possible values: s, r]"),
        ] {
            let error = parse::<Arguments>(&words).unwrap_err();
            assert!(error.contains(part), "{part} is not in {error}");
        }
        let real = run(&parse(&["--tier", "r"]).unwrap()).unwrap_err();
        assert!(format!("{real:?}").contains("does not exist yet"));
    }
}
