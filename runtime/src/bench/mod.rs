//! What the product costs on this machine, beside what the machine could do and what others do with it.
//!
//! [`kernels`] measures one stage that holds a whole model. Machines are shared and noisy, so every figure is a
//! ratio of two things measured in one call: operations are held against the peaks of this machine
//! ([`Peaks`]), the whole step ([`step`]) against PyTorch's, run in turn ([`comparison`]). Every measurement is
//! bounded in count and in time.

pub mod comparison;
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

pub use machine::Machine;
pub use operations::{OperationReport, Work};
pub use peaks::Peaks;
pub use size::Size;
pub use torch::{Mode, Peer, PeerError};

use swarmline_kernels::{Cpu, Profile, Result};

/// Why [`cpu`] has nothing.
pub const NO_FAST: &str = "fast runs where the CPU has AVX512-BF16";

/// The CPU in this profile on so many threads; nothing where the profile does not run.
///
/// # Errors
/// If the system refuses the threads.
pub fn cpu(profile: Profile, threads: usize) -> Result<Option<Cpu>> {
    let cpu = Cpu::with_profile(threads, profile)?;
    Ok((cpu.profile() == profile).then_some(cpu))
}
