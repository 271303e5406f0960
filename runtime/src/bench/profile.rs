//! Which arithmetic is measured.

use serde::{Deserialize, Serialize};
use swarmline_kernels::{Cpu, Result};

/// The arithmetic of products.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Profile {
    /// The same bits on every machine.
    Repro,
    /// Whatever is fastest here.
    Fast,
}

impl Profile {
    /// As on the command line and in files.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Repro => "repro",
            Self::Fast => "fast",
        }
    }

    /// The device in this profile on so many threads; nothing where it does not run.
    ///
    /// # Errors
    /// If the system refuses the threads.
    pub fn cpu(self, threads: usize) -> Result<Option<Cpu>> {
        let wanted = match self {
            Self::Repro => swarmline_kernels::Profile::Repro,
            Self::Fast => swarmline_kernels::Profile::Fast,
        };
        let cpu = Cpu::with_profile(threads, wanted)?;
        Ok((cpu.profile() == wanted).then_some(cpu))
    }

    /// Why [`Profile::cpu`] has nothing.
    #[must_use]
    pub fn absence(self) -> &'static str {
        match self {
            Self::Repro => "repro runs everywhere",
            Self::Fast => "fast runs where the CPU has AVX512-BF16",
        }
    }
}
