//! What a machine has to compute with, and why a device cannot be used.

use std::fmt;
use std::path::PathBuf;

/// Why no CUDA device, or not the one asked for, can be used. The message names cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unavailable {
    /// This program was built without CUDA.
    #[error("this program was built without CUDA; build it with the feature `cuda`, or use --device cpu")]
    NotBuilt,
    /// No NVIDIA driver on this machine.
    #[error(
        "no NVIDIA driver: libcuda cannot be loaded; install the driver of the GPU (in a container: start it \
         with its GPUs), or use --device cpu"
    )]
    NoDriver,
    /// The driver is older than what the program calls.
    #[error(
        "the NVIDIA driver speaks CUDA {found}, {needed} is needed; install a newer driver, or use --device cpu"
    )]
    DriverTooOld {
        /// What it speaks.
        found: Version,
        /// What is needed.
        needed: Version,
    },
    /// A library lacks a function that the program calls.
    #[error(
        "{library} has no `{symbol}`: it is a stub or damaged; reinstall the NVIDIA driver, or use --device cpu"
    )]
    Incomplete {
        /// Which library.
        library: &'static str,
        /// The first function that is missing.
        symbol: &'static str,
    },
    /// The driver is there but drives nothing.
    #[error(
        "the NVIDIA driver finds no device; see whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES hides \
         none, or use --device cpu"
    )]
    NoDevice,
    /// Fewer devices than the ordinal asks for.
    #[error("there is no cuda:{ordinal}: this machine has {count} CUDA device(s), counted from 0")]
    NoSuchDevice {
        /// Which was asked for.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
    /// The device lacks instructions that the kernels need.
    #[error(
        "{name} has compute capability {found}, the kernels need {needed} (Ampere or later); use --device cpu"
    )]
    DeviceTooOld {
        /// Its name.
        name: String,
        /// Its compute capability.
        found: Version,
        /// The lowest that works.
        needed: Version,
    },
    /// Kernels were compiled, but the device does not take them.
    #[error("the kernels cannot be loaded ({compiled}; precompiled ones: {precompiled}); use --device cpu")]
    NoKernels {
        /// What came of compiling them here.
        compiled: String,
        /// What the driver said to those that came with the program.
        precompiled: String,
    },
    /// The driver refuses for another reason.
    #[error("the NVIDIA driver refuses: {0}; see what nvidia-smi says, or use --device cpu")]
    Driver(String),
}

/// Two numbers with a point: a CUDA version or a compute capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// In front of the point.
    pub major: u32,
    /// Behind the point.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// What the processor can do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuReport {
    /// Threads that can run at once.
    pub cores: usize,
    /// Instruction sets it has of those that matter here.
    pub instruction_sets: Vec<&'static str>,
    /// What the loops run with.
    pub loops: &'static str,
    /// Whether it multiplies bf16, as [`Profile::Fast`] needs.
    pub fast: bool,
}

/// What of CUDA a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaReport {
    /// The CUDA version the driver speaks, if there is a driver.
    pub driver: Option<Version>,
    /// The version of the run-time compiler, if there is one.
    pub compiler: Option<Version>,
    /// Whether the vendor's library for large products is there; own kernels stand in for it.
    pub blas: bool,
    /// The devices, by ordinal.
    pub devices: Vec<CudaDevice>,
    /// Why no device can be used.
    pub unavailable: Option<Unavailable>,
    /// Where compiled kernels are kept.
    pub cache: CacheReport,
}

/// A CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// As its maker calls it.
    pub name: String,
    /// What it can do.
    pub capability: Version,
    /// Memory in bytes.
    pub memory_bytes: usize,
}

/// Where compiled kernels are kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// The folder, if this user has one for caches.
    pub folder: Option<PathBuf>,
    /// Kernels in it.
    pub entries: usize,
    /// Whether more can be written; if not, kernels are compiled at every start.
    pub writable: bool,
}

/// The lowest compute capability the kernels run on: asynchronous copies and bf16 on tensor cores.
pub const CAPABILITY_MIN: Version = Version { major: 8, minor: 0 };

impl CudaReport {
    /// A machine where nothing of CUDA was found.
    #[must_use]
    pub fn nothing(reason: Unavailable) -> Self {
        Self {
            driver: None,
            compiler: None,
            blas: false,
            devices: Vec::new(),
            unavailable: Some(reason),
            cache: CacheReport::default(),
        }
    }

    /// Whether the device with this ordinal can be used.
    ///
    /// # Errors
    ///
    /// Why not.
    pub fn usable(&self, ordinal: usize) -> Result<(), Unavailable> {
        if let Some(reason) = &self.unavailable {
            return Err(reason.clone());
        }
        let count = self.devices.len();
        let device = self.devices.get(ordinal).ok_or(Unavailable::NoSuchDevice { ordinal, count })?;
        if device.capability < CAPABILITY_MIN {
            let (name, found) = (device.name.clone(), device.capability);
            return Err(Unavailable::DeviceTooOld { name, found, needed: CAPABILITY_MIN });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(capabilities: &[u32]) -> CudaReport {
        let device = |&major| CudaDevice {
            name: format!("device of {major}"),
            capability: Version { major, minor: 0 },
            memory_bytes: 1 << 30,
        };
        CudaReport {
            driver: Some(Version { major: 12, minor: 4 }),
            compiler: Some(Version { major: 12, minor: 9 }),
            blas: true,
            devices: capabilities.iter().map(device).collect(),
            unavailable: None,
            cache: CacheReport::default(),
        }
    }

    #[test]
    fn a_device_that_is_missing_or_too_old_is_refused_with_the_remedy() {
        assert_eq!(machine(&[8, 9]).usable(1), Ok(()));
        let missing = machine(&[8]).usable(1).unwrap_err().to_string();
        assert!(missing.contains("no cuda:1") && missing.contains("1 CUDA device"), "{missing}");
        let old = machine(&[7]).usable(0).unwrap_err().to_string();
        assert!(old.contains("device of 7") && old.contains("8.0"), "{old}");
    }
}
