//! Looks for the driver, the libraries and the devices of CUDA.

use cudarc::driver::{result, sys};

use super::cache::Cache;
use super::libraries::{compiler_version, driver_version, has_blas, refused};
use crate::report::{CudaDevice, CudaReport, Unavailable, Version};

/// The parts of CUDA that this machine has.
pub(crate) fn report() -> CudaReport {
    let driver = driver_version();
    let devices = driver.clone().and_then(|_| devices());
    CudaReport {
        driver: match &driver {
            Ok(version) | Err(Unavailable::DriverTooOld { found: version, .. }) => Some(*version),
            Err(_) => None,
        },
        compiler: compiler_version(),
        blas: has_blas(),
        unavailable: devices.as_ref().err().cloned(),
        devices: devices.unwrap_or_default(),
        cache: Cache::of_user().report(),
    }
}

fn devices() -> Result<Vec<CudaDevice>, Unavailable> {
    let inspect = || {
        result::init()?;
        (0..result::device::get_count()?).map(device).collect::<Result<Vec<_>, result::DriverError>>()
    };
    match inspect() {
        Ok(devices) if devices.is_empty() => Err(Unavailable::NoDevice),
        Ok(devices) => Ok(devices),
        Err(error) => Err(refused(&error)),
    }
}

fn device(ordinal: i32) -> Result<CudaDevice, result::DriverError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(ordinal)?;
    // SAFETY: the handle is the driver's own.
    let attribute = |which| unsafe { result::device::get_attribute(device, which) };
    let number = |value: i32| u32::try_from(value).unwrap_or(0);
    let capability = Version { major: number(attribute(MAJOR)?), minor: number(attribute(MINOR)?) };
    // SAFETY: as above.
    let memory_bytes = unsafe { result::device::total_mem(device) }?;
    Ok(CudaDevice { name: result::device::get_name(device)?, capability, memory_bytes })
}
