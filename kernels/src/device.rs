//! The device that computes: choices of a caller, and reports of a machine.
//!
//! A [`DeviceChoice`] is the text of a person. [`DeviceChoice::resolve`] turns it into a [`Device`] of this machine, or
//! says why the device is [`Unavailable`]. A [`Setup`] adds a [`Profile`] and a number of threads.
//!
//! ```
//! use swarmline_kernels::device::{DeviceChoice, Setup};
//!
//! let device = "auto".parse::<DeviceChoice>()?.resolve()?;
//! let setup = Setup::new(device).with_threads(4);
//! assert_eq!(setup.profile, device.usual_profile());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

use std::fmt;
use std::str::FromStr;

use crate::backend::Backend;
use crate::cpu::Cpu;
use crate::error::Result;
use crate::profile::Profile;

pub use crate::report::{
    CAPABILITY_MIN, CacheReport, CpuReport, CudaDevice, CudaReport, Unavailable, Version,
};

/// The device that a caller requests, written `auto`, `cpu`, `cuda` (which means `cuda:0`) or `cuda:N`.
///
/// A choice names no device of this machine before [`DeviceChoice::resolve`]. The default is `auto`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceChoice {
    /// The first CUDA device if the kernels run on it, else the CPU. `auto` always resolves.
    #[default]
    Auto,
    /// This device or an error: no other device stands in for it.
    Exactly(Device),
}

/// A device that computes, written `cpu` or `cuda:N`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Device {
    /// The processor.
    Cpu,
    /// The CUDA device with this ordinal, counted from 0 in the order of the driver (`CUDA_VISIBLE_DEVICES` applies).
    Cuda(usize),
}

/// A device, its profile and its threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Setup {
    /// The device that computes.
    pub device: Device,
    /// Requested arithmetic. [`Setup::effective_profile`] is the profile after the limits of the device.
    pub profile: Profile,
    /// Threads of the CPU backend; 0 counts as 1, and a CUDA device ignores them. They change the speed, never the
    /// results.
    pub threads: usize,
}

/// Work that every backend can do, for [`Setup::run`].
pub trait Work {
    /// The result of the work.
    type Output;
    /// Does the work. Each call of `open` makes a further backend on the same device, or fails.
    fn on<B: Backend>(self, open: impl FnMut() -> Result<B>) -> Self::Output;
}

impl DeviceChoice {
    /// The device of this machine that the choice means.
    ///
    /// # Errors
    ///
    /// [`Unavailable`] if the choice is exactly a CUDA device that is missing, too old or refused by its driver. `auto`
    /// and `cpu` always resolve.
    pub fn resolve(self) -> std::result::Result<Device, Unavailable> {
        match self {
            Self::Exactly(Device::Cpu) => Ok(Device::Cpu),
            Self::Auto | Self::Exactly(Device::Cuda(_)) => self.resolve_with(&cuda_report()),
        }
    }

    /// [`DeviceChoice::resolve`] on a machine with the CUDA of `cuda`.
    ///
    /// # Errors
    ///
    /// As [`DeviceChoice::resolve`].
    pub fn resolve_with(self, cuda: &CudaReport) -> std::result::Result<Device, Unavailable> {
        match self {
            Self::Auto => Ok(if cuda.usable(0).is_ok() { Device::Cuda(0) } else { Device::Cpu }),
            Self::Exactly(Device::Cpu) => Ok(Device::Cpu),
            Self::Exactly(Device::Cuda(ordinal)) => cuda.usable(ordinal).map(|()| Device::Cuda(ordinal)),
        }
    }
}

impl Device {
    /// The profile this device has by default: [`Profile::Repro`] on the CPU, [`Profile::Fast`] on a CUDA device.
    #[must_use]
    pub fn usual_profile(self) -> Profile {
        match self {
            Self::Cpu => Profile::Repro,
            Self::Cuda(_) => Profile::Fast,
        }
    }
}

impl Setup {
    /// `device` in its [usual profile](Device::usual_profile), on one thread.
    #[must_use]
    pub fn new(device: Device) -> Self {
        Self { device, profile: device.usual_profile(), threads: 1 }
    }

    /// The CPU in [`Profile::Repro`] on `threads` threads.
    #[must_use]
    pub fn cpu(threads: usize) -> Self {
        Self::new(Device::Cpu).with_threads(threads)
    }

    /// The same device on `threads` threads.
    #[must_use]
    pub fn with_threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    /// The same device in `profile`.
    #[must_use]
    pub fn with_profile(self, profile: Profile) -> Self {
        Self { profile, ..self }
    }

    /// Does `work` on backends of this setup.
    pub fn run<W: Work>(self, work: W) -> W::Output {
        let Self { device, profile, threads } = self;
        match device {
            Device::Cpu => work.on(|| Cpu::with_profile(threads, profile)),
            #[cfg(feature = "cuda")]
            Device::Cuda(ordinal) => work.on(|| crate::Cuda::with_profile(ordinal, profile)),
            #[cfg(not(feature = "cuda"))]
            Device::Cuda(_) => work.on(|| Err::<Cpu, _>(Unavailable::NotBuilt.into())),
        }
    }

    /// The profile that runs: [`Profile::Repro`] on a CPU that does not multiply bf16, else the requested profile.
    #[must_use]
    pub fn effective_profile(self) -> Profile {
        match self.device {
            Device::Cpu if !cpu_report().fast => Profile::Repro,
            Device::Cpu | Device::Cuda(_) => self.profile,
        }
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => write!(f, "cpu"),
            Self::Cuda(ordinal) => write!(f, "cuda:{ordinal}"),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => write!(f, "auto"),
            Self::Exactly(device) => device.fmt(f),
        }
    }
}

/// A text that names no device; the message quotes it and lists the names.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no device; say auto, cpu, cuda or cuda:N")]
pub struct NoSuchChoice(String);

impl FromStr for DeviceChoice {
    type Err = NoSuchChoice;

    fn from_str(text: &str) -> std::result::Result<Self, NoSuchChoice> {
        let none = || NoSuchChoice(text.to_owned());
        match text.split_once(':') {
            None if text == "auto" => Ok(Self::Auto),
            None if text == "cpu" => Ok(Self::Exactly(Device::Cpu)),
            None if text == "cuda" => Ok(Self::Exactly(Device::Cuda(0))),
            Some(("cuda", ordinal)) if ordinal.bytes().all(|byte| byte.is_ascii_digit()) => {
                ordinal.parse().map(|ordinal| Self::Exactly(Device::Cuda(ordinal))).map_err(|_| none())
            }
            _ => Err(none()),
        }
    }
}

/// Cores and instruction sets of the processor, and the profile it can compute in.
#[must_use]
pub fn cpu_report() -> CpuReport {
    crate::cpu::probe::report()
}

/// The driver, the run-time compiler, the libraries and the devices of CUDA on this machine.
///
/// Takes no memory on any device. A missing part is `None`, `false` or [`CudaReport::unavailable`], never a panic.
#[must_use]
pub fn cuda_report() -> CudaReport {
    #[cfg(feature = "cuda")]
    return crate::cuda::report();
    #[cfg(not(feature = "cuda"))]
    CudaReport::nothing(Unavailable::NotBuilt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_read_as_they_are_written() {
        for text in ["auto", "cpu", "cuda:0", "cuda:7"] {
            assert_eq!(text.parse::<DeviceChoice>().unwrap().to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Exactly(Device::Cuda(0))));
        for text in
            ["", "gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:+1", "cpu:0", "CPU", "cuda:99999999999999999999"]
        {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_processor_is_always_there() {
        assert_eq!("cpu".parse::<DeviceChoice>().unwrap().resolve(), Ok(Device::Cpu));
        assert!(DeviceChoice::Auto.resolve().is_ok());
    }

    #[test]
    fn a_machine_without_a_driver_says_so() {
        let report = cuda_report();
        if report.driver.is_some() {
            return;
        }
        let reason = report.usable(0).unwrap_err();
        let expected = if cfg!(feature = "cuda") { Unavailable::NoDriver } else { Unavailable::NotBuilt };
        assert_eq!(reason, expected);
        assert!(reason.to_string().contains("--device cpu"));
        assert_eq!(DeviceChoice::Auto.resolve(), Ok(Device::Cpu));
    }
}
