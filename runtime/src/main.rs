//! The `swarmline` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarmline::cli::main()
}
