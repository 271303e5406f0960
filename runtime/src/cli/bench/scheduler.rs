//! `swarmline bench scheduler`: runs the criterion benchmark of the scheduler, which is part of the sources.

use std::path::Path;
use std::process::Command;

use super::super::Failure;

/// Arguments of `swarmline bench scheduler`.
#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Measure only the costs with this text in their name, such as `feeder` or `replica/1024`
    #[arg(value_name = "FILTER")]
    filter: Option<String>,
    /// Measure each cost for a moment only
    #[arg(long)]
    quick: bool,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    if !sources.is_dir() {
        let folder = sources.display();
        return Err(Failure::usage(format!(
            "bench scheduler: the sources are gone from {folder}; run it with the program of a checkout"
        )));
    }
    let status = command(sources, arguments).status().map_err(|error| {
        Failure::failed(format!("bench scheduler: cannot start cargo ({error}); install Rust, see rustup.rs"))
    })?;
    if status.success() {
        Ok(())
    } else {
        Err(Failure::failed(format!("bench scheduler: cargo ended with {status}; its message is above")))
    }
}

fn command(sources: &Path, arguments: &Arguments) -> Command {
    let mut cargo = Command::new("cargo");
    cargo.current_dir(sources);
    cargo.args([
        "bench",
        "--quiet",
        "--locked",
        "--package",
        "swarmline-scheduler",
        "--bench",
        "scheduler",
        "--",
    ]);
    cargo.args(arguments.quick.then_some("--quick"));
    cargo.args(&arguments.filter);
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(arguments: &Arguments) -> Vec<String> {
        let command = command(Path::new("."), arguments);
        command.get_args().map(|word| word.to_string_lossy().into_owned()).collect()
    }

    #[test]
    fn the_filter_and_the_haste_reach_criterion() {
        let words = words(&Arguments { filter: Some("feeder".to_owned()), quick: true });
        assert_eq!(words[5..], ["--bench", "scheduler", "--", "--quick", "feeder"]);
    }

    #[test]
    fn the_benchmark_is_among_the_sources() {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
        assert!(sources.join("../scheduler/benches/scheduler/main.rs").is_file());
    }
}
