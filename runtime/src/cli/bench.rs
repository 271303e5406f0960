//! `swarmline bench ...`: a command per benchmark.

mod dropout;
mod kernels;
mod results;
mod scheduler;
mod step;

use clap::Subcommand;

use super::Failure;

/// Arguments of `swarmline bench`.
#[derive(Debug, clap::Args)]
#[command(arg_required_else_help = true)]
pub(super) struct Arguments {
    #[command(subcommand)]
    bench: Bench,
}

#[derive(Debug, Subcommand)]
enum Bench {
    /// Every operation against the peaks of this machine, the whole step against PyTorch
    Kernels(kernels::Arguments),
    /// Throughput while peers come and go, of every router, and where the rest of the capacity went
    Dropout(dropout::Arguments),
    /// The cost of the decisions of feeder, replica and coordinator in swarms of 64 to 10,000 peers
    Scheduler(scheduler::Arguments),
    /// One measurement of the whole step, for `kernels`, which starts it as a process of its own
    #[command(hide = true)]
    Step(step::Arguments),
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    match &arguments.bench {
        Bench::Dropout(arguments) => dropout::run(arguments),
        Bench::Kernels(arguments) => kernels::run(arguments),
        Bench::Scheduler(arguments) => scheduler::run(arguments),
        Bench::Step(arguments) => step::run(arguments),
    }
}

/// The arguments in these words, or what is said of them.
#[cfg(test)]
fn parse<A: clap::Args>(words: &[&str]) -> Result<A, String> {
    #[derive(Debug, clap::Parser)]
    struct Line<A: clap::Args> {
        #[command(flatten)]
        arguments: A,
    }
    let line = <Line<A> as clap::Parser>::try_parse_from(std::iter::once(&"bench").chain(words));
    line.map(|line| line.arguments).map_err(|error| error.to_string())
}

/// Each name once, in the order given.
fn once<T: Copy + PartialEq>(named: &[T]) -> Vec<T> {
    let mut once = Vec::new();
    for name in named {
        if !once.contains(name) {
            once.push(*name);
        }
    }
    once
}
