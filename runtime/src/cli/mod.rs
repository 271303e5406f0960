//! The commands of `swarmline`: arguments in, exit code out; the library does the work.

mod bench;
mod check;
mod computing;
mod coordinator;
mod demo;
mod doctor;
mod duration;
mod export;
mod failure;
mod feed;
mod generate;
mod join;
mod keep;
mod key;
mod member;
mod output;
mod own_keeper;
mod saved;
mod simulate;
mod stop;
mod train;

use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use failure::Failure;
use stop::{Leash, StopRequest};

use crate::report::{Audience, Reporter};

/// Trains transformers that no single machine holds.
#[derive(Debug, Parser)]
#[command(version, about, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train a small model on this machine with a swarm of real processes, and end with a table
    Demo(demo::Arguments),
    /// Launch a run: place peers on stages, sign the membership table, lease microbatch ids
    Coordinator(coordinator::Arguments),
    /// Serve a stage of a run
    Join(join::Arguments),
    /// Draw text and inject microbatches into a run
    Feed(feed::Arguments),
    /// Keep checkpoints of a run in a folder or a bucket
    Keep(keep::Arguments),
    /// Train the model of a run file in this one process: the reference
    Train(train::Arguments),
    /// Turn the weights of a run into a folder that Hugging Face `transformers` loads
    Export(export::Arguments),
    /// Continue a prompt with the model of a run or of a Hugging Face folder
    Generate(generate::Arguments),
    /// Print the public key of a key file, for a coordinator to list in its run file
    Key(key::Arguments),
    /// Look at this machine: processor, GPUs, driver, compiler of kernels, and missing parts
    Doctor(doctor::Arguments),
    /// Print a run file with every default filled in, or name its mistake
    Check(check::Arguments),
    /// Measure the cost of training on this machine, and the throughput of swarms
    Bench(bench::Arguments),
    /// Play a swarm in virtual time, as a plan describes it, and print what became of it
    Simulate(simulate::Arguments),
}

/// Runs the command line of this process.
#[must_use]
pub fn main() -> ExitCode {
    init_logging();
    let command = Arguments::parse().command;
    let json = command.prints_json();
    let outcome = match command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Coordinator(arguments) => coordinator::run(&arguments),
        Command::Join(arguments) => join::run(&arguments),
        Command::Feed(arguments) => feed::run(&arguments),
        Command::Keep(arguments) => keep::run(&arguments),
        Command::Train(arguments) => train::run(&arguments),
        Command::Export(arguments) => export::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Key(arguments) => key::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Check(arguments) => check::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Simulate(arguments) => simulate::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(json),
    }
}

impl Command {
    /// Whether standard output is for a program.
    fn prints_json(&self) -> bool {
        match self {
            Self::Demo(arguments) => arguments.json,
            Self::Coordinator(arguments) => arguments.json,
            Self::Join(arguments) => arguments.member.json,
            Self::Feed(arguments) => arguments.member.json,
            Self::Keep(arguments) => arguments.member.json,
            Self::Train(arguments) => arguments.json,
            Self::Export(arguments) => arguments.json,
            Self::Generate(arguments) => arguments.json,
            Self::Key(arguments) => arguments.json,
            Self::Doctor(arguments) => arguments.json,
            Self::Check(_) | Self::Bench(_) | Self::Simulate(_) => false,
        }
    }
}

/// Logs go to standard error, none unless `SWARMLINE_LOG` asks (e.g. `SWARMLINE_LOG=swarmline=debug`).
fn init_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SWARMLINE_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
}

fn reporter(json: bool) -> Reporter {
    Reporter::new(if json { Audience::Programs } else { Audience::People })
}

/// The reporter of a process that other peers wait for.
fn unhindered_reporter(json: bool) -> Reporter {
    Reporter::unhindered(if json { Audience::Programs } else { Audience::People })
}

/// Runs the asynchronous part of a command; compute has threads of its own. What still runs on other threads when the work
/// is done, such as the reading of a long text, is not awaited.
fn block_on<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(NETWORK_THREADS)
        .enable_all()
        .build()
        .map_err(|error| Failure::failed(format!("cannot start the network threads: {error}")))?;
    let done = runtime.block_on(work);
    runtime.shutdown_background();
    done
}

/// Frames are few and large; two threads keep the sockets served while one encrypts.
const NETWORK_THREADS: usize = 2;

fn all_cores() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// The folder of a run file: relative paths in the file start from it.
fn folder_of(run_file: &Path) -> PathBuf {
    run_file.parent().map_or_else(PathBuf::new, Path::to_owned)
}
