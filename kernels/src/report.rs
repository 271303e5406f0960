//! Reports of the devices of a machine, and reasons why a device cannot be used.

use std::fmt;
use std::path::PathBuf;

/// Reasons why a CUDA device cannot be used. Messages name cause and remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Unavailable {
    /// This program was built without the feature `cuda`.
    #[error("this program was built without CUDA; build it with the feature `cuda`, or use --device cpu")]
    NotBuilt,
    /// `libcuda` cannot be loaded: the machine has no NVIDIA driver.
    #[error(
        "no NVIDIA driver: libcuda cannot be loaded; install the driver of the GPU (in a container: start it \
         with its GPUs), or use --device cpu"
    )]
    NoDriver,
    /// The driver is older than the functions that the program calls.
    #[error(
        "the NVIDIA driver speaks CUDA {found}, {needed} is needed; install a newer driver, or use --device cpu"
    )]
    DriverTooOld {
        /// The CUDA version of the driver.
        found: Version,
        /// The lowest version that works.
        needed: Version,
    },
    /// A library lacks a function that the program calls.
    #[error(
        "{library} has no `{symbol}`: it is a stub or damaged; reinstall the NVIDIA driver, or use --device cpu"
    )]
    Incomplete {
        /// The library, without version and ending.
        library: &'static str,
        /// The first function that is missing.
        symbol: &'static str,
    },
    /// The driver finds no device.
    #[error(
        "the NVIDIA driver finds no device; see whether nvidia-smi lists one and CUDA_VISIBLE_DEVICES hides \
         none, or use --device cpu"
    )]
    NoDevice,
    /// The ordinal is beyond the devices of this machine.
    #[error("there is no cuda:{ordinal}: this machine has {count} CUDA device(s), counted from 0")]
    NoSuchDevice {
        /// The requested ordinal, counted from 0.
        ordinal: usize,
        /// Devices of this machine.
        count: usize,
    },
    /// The device lacks instructions that the kernels need.
    #[error(
        "{name} has compute capability {found}, the kernels need {needed} (Ampere or later); use --device cpu"
    )]
    DeviceTooOld {
        /// Name of the device.
        name: String,
        /// Compute capability of the device.
        found: Version,
        /// The lowest capability that works.
        needed: Version,
    },
    /// The driver loads neither the kernels compiled here nor the precompiled kernels.
    #[error("the kernels cannot be loaded ({compiled}; precompiled ones: {precompiled}); use --device cpu")]
    NoKernels {
        /// Why no kernels are compiled here, or the driver's error for them.
        compiled: String,
        /// The driver's error for the kernels built into this program.
        precompiled: String,
    },
    /// The driver refuses for another reason; the text is the driver's.
    #[error("the NVIDIA driver refuses: {0}; see the output of nvidia-smi, or use --device cpu")]
    Driver(String),
}

/// A CUDA version or a compute capability, written `major.minor`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Version {
    /// The number in front of the point.
    pub major: u32,
    /// The number behind the point.
    pub minor: u32,
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

/// The parts of the processor that the CPU backend uses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuReport {
    /// Threads that run at once.
    pub cores: usize,
    /// The instruction sets of the processor among AVX2, FMA, AVX-512F and AVX512-BF16.
    pub instruction_sets: Vec<&'static str>,
    /// Instructions that the loops use: `AVX-512`, `AVX2 and FMA` or `baseline`.
    pub loops: &'static str,
    /// Whether the processor and `SWARMLINE_ISA` allow [`Profile::Fast`](crate::Profile::Fast).
    pub fast: bool,
}

/// The parts of CUDA that a machine has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaReport {
    /// The CUDA version of the driver, even if it is too old; `None` without a driver.
    pub driver: Option<Version>,
    /// The version of NVRTC; without it a device runs the precompiled kernels.
    pub compiler: Option<Version>,
    /// Whether cuBLASLt can be loaded; without it the crate's own kernels compute all products.
    pub blas: bool,
    /// The devices, by ordinal.
    pub devices: Vec<CudaDevice>,
    /// Why no device at all can be used.
    pub unavailable: Option<Unavailable>,
    /// The cache of compiled kernels.
    pub cache: CacheReport,
}

/// A CUDA device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CudaDevice {
    /// Name of the device, from the driver.
    pub name: String,
    /// Compute capability; the kernels need [`CAPABILITY_MIN`].
    pub capability: Version,
    /// Memory of the device, bytes.
    pub memory_bytes: usize,
}

/// The folder in which compiled kernels are kept between starts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CacheReport {
    /// `$XDG_CACHE_HOME/swarmline/kernels`, else `~/.cache/swarmline/kernels`; `None` if neither variable is set.
    pub folder: Option<PathBuf>,
    /// Number of compiled modules, one for each kind of device and version of the compiler.
    pub entries: usize,
    /// Whether the folder can be written; if not, kernels are compiled at every start.
    pub writable: bool,
}

/// The lowest compute capability of the kernels: the first with bf16 on tensor cores.
pub const CAPABILITY_MIN: Version = Version { major: 8, minor: 0 };

impl CudaReport {
    /// The report of a machine without CUDA, for this reason.
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

    /// Checks that the device with this ordinal can be used.
    ///
    /// # Errors
    ///
    /// [`CudaReport::unavailable`] if there is a reason for all devices, else [`Unavailable::NoSuchDevice`] or
    /// [`Unavailable::DeviceTooOld`].
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
