//! The one binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    swarmline::cli::main()
}
