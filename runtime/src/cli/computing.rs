//! What computes and how exactly: the arguments of every command that trains.

use swarmline_kernels::Profile;
use swarmline_kernels::device::{DeviceChoice, Setup, Unavailable};

use crate::report::Event;

/// The device and its profile.
#[derive(Debug, clap::Args)]
pub(super) struct Computing {
    /// What computes: auto (a GPU if there is one), cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value_t)]
    device: DeviceChoice,
    /// How exactly: repro (f32, the same bits everywhere) or fast (products in bf16, where the device has them)
    /// [default: repro on a CPU, fast on a GPU]
    #[arg(long, value_name = "PROFILE")]
    profile: Option<Profile>,
}

impl Computing {
    /// What this means on this machine, with so many threads if that is the CPU.
    pub(super) fn setup(&self, threads: usize) -> Result<Setup, Unavailable> {
        let device = self.device.resolve()?;
        let profile = self.profile.unwrap_or(device.usual_profile());
        Ok(Setup::new(device).with_profile(profile).with_threads(threads))
    }
}

/// Says what computes.
pub(super) fn announcement(setup: Setup) -> Event {
    Event::Computing { device: setup.device.to_string(), profile: setup.effective_profile().to_string() }
}
