//! Device and profile: arguments of every command that trains.

use std::num::NonZeroUsize;

use swarmline_kernels::Profile;
use swarmline_kernels::device::{DeviceChoice, Setup, Unavailable};

use crate::report::Event;

/// Arguments for the device and its profile.
#[derive(Debug, clap::Args)]
pub(super) struct Computing {
    /// Device that computes: auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
    /// Arithmetic: repro (f32, the same bits everywhere) or fast (products in bf16, where the device has them)
    /// [default: repro on a CPU, fast on a GPU]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
}

impl Computing {
    /// Device and profile on this machine. `threads` applies to the CPU.
    pub(super) fn setup(&self, threads: usize) -> Result<Setup, Unavailable> {
        let device = self.device.resolve()?;
        let profile = self.profile.unwrap_or(device.usual_profile());
        Ok(Setup::new(device).with_profile(profile).with_threads(threads))
    }
}

/// The event that names device and profile.
pub(super) fn announcement(setup: Setup) -> Event {
    Event::Computing { device: setup.device.to_string(), profile: setup.effective_profile().to_string() }
}

/// Most threads that compute: more than any machine has, few enough to start.
const THREADS_MAX: usize = 1_024;

/// The number of an option `--threads`.
pub(super) fn parse_threads(text: &str) -> Result<NonZeroUsize, String> {
    let threads = text.parse().ok().filter(|threads: &NonZeroUsize| threads.get() <= THREADS_MAX);
    threads.ok_or_else(|| format!("a whole number from 1 to {THREADS_MAX} is needed"))
}
