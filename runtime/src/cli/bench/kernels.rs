//! `swarmline bench kernels`.

use std::io::Write as _;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use swarmline_kernels::Profile;

use super::super::computing::parse_threads;
use super::super::{Failure, output};
use super::once;
use super::results::ResultFile;
use crate::bench::kernels::{self, Options};
use crate::bench::{Size, Torch};

/// Rounds at most; more would take hours.
const ROUNDS_MAX: u64 = 100;

/// Arguments of `swarmline bench kernels`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Models to measure, separated by commas
    #[arg(long, value_name = "SIZES", value_enum, value_delimiter = ',', default_value = "s")]
    config: Vec<Size>,
    /// Measure PyTorch in turn with this program; the path of torch_llama.py
    #[arg(long, value_name = "FILE")]
    against: Option<PathBuf>,
    /// Interpreter that has PyTorch
    #[arg(long, value_name = "FILE", default_value = "python3")]
    python: PathBuf,
    /// Threads that compute, here and in PyTorch
    #[arg(long, value_name = "N", default_value = "1", value_parser = parse_threads)]
    threads: NonZeroUsize,
    /// Times the whole step is measured
    #[arg(long, value_name = "N", default_value = "3", value_parser = clap::value_parser!(u64).range(1..=ROUNDS_MAX))]
    rounds: u64,
    /// Arithmetic to measure, separated by commas
    #[arg(long, value_name = "PROFILES", value_delimiter = ',', default_value = "repro")]
    profile: Vec<Profile>,
    /// Write everything into this file as one JSON object
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let options = options(arguments)?;
    let file = arguments.json.as_deref().map(ResultFile::prepare).transpose()?;
    let report = kernels::measure(&options, |line| {
        let _ = writeln!(std::io::stderr(), "{line}");
    })?;
    file.map_or(Ok(()), |file| file.write(&report))?;
    output::print(&report.to_string())
}

/// The options of the arguments. Mistakes are found here, before the first measurement.
fn options(arguments: &Arguments) -> Result<Options, Failure> {
    let program = std::env::current_exe().map_err(|error| {
        Failure::failed(format!("cannot find this program: {error}; start it by its path"))
    })?;
    let find = |script: &PathBuf| Torch::find(&arguments.python, script);
    let torch = arguments.against.as_ref().map(find).transpose();
    let mut options = Options::new(program);
    options.sizes = once(&arguments.config);
    options.profiles = once(&arguments.profile);
    options.threads = arguments.threads.get();
    options.rounds = usize::try_from(arguments.rounds).unwrap_or(usize::MAX);
    options.torch = torch.map_err(|error| Failure::usage(error.to_string()))?;
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    #[test]
    fn the_small_model_on_one_thread_is_measured_by_default() {
        let options = options(&parse(&[]).unwrap()).unwrap();
        assert_eq!((options.sizes, options.profiles), (vec![Size::S], vec![Profile::Repro]));
        assert_eq!((options.threads, options.rounds, options.torch.is_none()), (1, 3, true));
    }

    #[test]
    fn lists_are_separated_by_commas_and_name_each_once() {
        let arguments = parse(&["--config", "m,s,m", "--profile", "fast,repro"]).unwrap();
        let options = options(&arguments).unwrap();
        assert_eq!(options.sizes, [Size::M, Size::S]);
        assert_eq!(options.profiles, [Profile::Fast, Profile::Repro]);
    }

    #[test]
    fn wrong_arguments_are_refused() {
        for (words, part) in [
            (["--config", "x"], "[possible values: t, s, m, l]"),
            (["--profile", "slow"], "say repro or fast"),
            (["--threads", "0"], "--threads"),
            (["--rounds", "0"], "--rounds"),
            (["--rounds", "101"], "1..=100"),
        ] {
            let error = parse::<Arguments>(&words).unwrap_err();
            assert!(error.contains(part), "{part} is not in {error}");
        }
    }
}
