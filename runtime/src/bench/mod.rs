//! The cost of training on this machine, beside the peaks of the machine and beside PyTorch, and the throughput of a swarm
//! whose peers come and go ([`dropout`]).
//!
//! [`kernels`] measures one stage that holds a whole model. Machines are shared and noisy, so every figure is a ratio of
//! two measurements in one call: an operation to the peaks of this machine ([`Peaks`]), the whole step ([`step`]) to
//! PyTorch's, run in turn ([`comparison`]). Every measurement is bounded in count and in time.

pub mod comparison;
pub mod dropout;
mod error;
pub mod flops;
pub mod kernels;
mod machine;
mod operations;
mod peaks;
mod process;
mod size;
pub mod statistics;
pub mod step;
mod table;
mod timing;
mod torch;

pub use error::BenchError;
pub use machine::Machine;
pub use operations::{OperationReport, Work};
pub use peaks::Peaks;
pub use size::Size;
pub use torch::{Torch, TorchError, TorchMode};

use swarmline_kernels::{Cpu, Profile, Result};

/// Note on a machine without profile `fast`.
pub const NO_FAST: &str = "fast runs where the CPU has AVX512-BF16";

/// The CPU in `profile` on `threads` threads; `None` where the profile does not run.
///
/// # Errors
/// If the system refuses the threads.
pub fn cpu(profile: Profile, threads: usize) -> Result<Option<Cpu>> {
    let cpu = Cpu::with_profile(threads, profile)?;
    Ok((cpu.profile() == profile).then_some(cpu))
}
