//! Which device computes, what a machine has, and why something cannot be had.

pub(crate) mod report;

use std::fmt;
use std::str::FromStr;

use crate::{Backend, Cpu, Profile, Result};

pub use report::{CAPABILITY_MIN, CacheReport, CpuReport, CudaDevice, CudaReport, Unavailable, Version};

/// What somebody asks for: `auto`, `cpu`, `cuda` or `cuda:N`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first GPU if one can be used, else the CPU.
    #[default]
    Auto,
    /// Exactly this.
    Exactly(Device),
}

/// A device that computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Device {
    /// The processor.
    Cpu,
    /// The CUDA device with this ordinal.
    Cuda(usize),
}

/// A device and how it is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// What computes.
    pub device: Device,
    /// How exactly.
    pub profile: Profile,
    /// Threads that compute, if that is the CPU.
    pub threads: usize,
}

/// Work that is the same on every device.
pub trait Work {
    /// What comes out of it.
    type Output;
    /// Does it on backends that `open` makes.
    fn on<B: Backend>(self, open: impl FnMut() -> Result<B>) -> Self::Output;
}

impl DeviceChoice {
    /// The device this means on this machine.
    ///
    /// # Errors
    ///
    /// Why a CUDA device that was asked for cannot be used.
    pub fn resolve(self) -> std::result::Result<Device, Unavailable> {
        match self {
            Self::Exactly(Device::Cpu) => Ok(Device::Cpu),
            Self::Auto | Self::Exactly(Device::Cuda(_)) => self.resolve_with(&cuda_report()),
        }
    }

    /// The device this means where CUDA is as reported.
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
    /// What this device is best used with: the same bits everywhere on a CPU, tensor cores on a GPU.
    #[must_use]
    pub fn usual_profile(self) -> Profile {
        match self {
            Self::Cpu => Profile::Repro,
            Self::Cuda(_) => Profile::Fast,
        }
    }
}

impl Setup {
    /// The CPU with so many threads, reproducibly.
    #[must_use]
    pub fn cpu(threads: usize) -> Self {
        Self { device: Device::Cpu, profile: Profile::Repro, threads }
    }

    /// Does `work` with it.
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

    /// The profile that really runs: a CPU that does not multiply bf16 computes reproducibly.
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

/// A text that names no device.
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

/// Looks at the processor.
#[must_use]
pub fn cpu_report() -> CpuReport {
    crate::cpu::probe::report()
}

/// Looks for driver, compiler, libraries and devices. Takes no memory on any device and never panics.
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
