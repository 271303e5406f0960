//! Checks that the vendor's libraries can be called.
//!
//! The bindings load a library at the first call and panic if the library or a function is missing. So this module
//! first looks for each library, then for every function that is called before another check could refuse; after the
//! version check of the driver all its other functions exist. No call panics, so no panic has to be caught.

use cudarc::driver::{result, sys};
use cudarc::{cublaslt, nvrtc};

use crate::report::{Unavailable, Version};

/// The oldest CUDA version of a driver that works: it has every called function, including stream-ordered memory, and
/// reads the precompiled kernels.
pub(super) const DRIVER_MIN: Version = Version { major: 12, minor: 0 };

/// Functions of the driver called before or for the version check, and the newest of those called later.
const DRIVER_SYMBOLS: &[&str] = &[
    "cuInit",
    "cuDriverGetVersion",
    "cuGetErrorName",
    "cuGetErrorString",
    "cuDeviceGetCount",
    "cuDevicePrimaryCtxRetain",
    "cuMemAllocAsync",
    "cuLaunchKernel",
];

/// All functions of the compiler that are called.
const COMPILER_SYMBOLS: &[&str] = &[
    "nvrtcVersion",
    "nvrtcCreateProgram",
    "nvrtcCompileProgram",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcDestroyProgram",
];

/// All functions of cuBLASLt that are called.
const BLAS_SYMBOLS: &[&str] = &[
    "cublasLtCreate",
    "cublasLtDestroy",
    "cublasLtMatmul",
    "cublasLtMatmulAlgoGetHeuristic",
    "cublasLtMatmulDescCreate",
    "cublasLtMatmulDescDestroy",
    "cublasLtMatmulDescSetAttribute",
    "cublasLtMatrixLayoutCreate",
    "cublasLtMatrixLayoutDestroy",
    "cublasLtMatmulPreferenceCreate",
    "cublasLtMatmulPreferenceDestroy",
    "cublasLtMatmulPreferenceSetAttribute",
];

/// Whether a library that is loaded has a function.
macro_rules! has_symbol {
    ($library:expr, $name:expr) => {
        // SAFETY: the library is loaded; the function is looked up and not called.
        unsafe { $library.get::<unsafe extern "C" fn()>($name.as_bytes()) }.is_ok()
    };
}

/// The CUDA version of the driver, or why it cannot be used.
pub(super) fn driver_version() -> Result<Version, Unavailable> {
    // SAFETY: loading a library runs its initialisers; the driver's are made to be loaded by any program.
    if !unsafe { sys::is_culib_present() } {
        return Err(Unavailable::NoDriver);
    }
    let missing = DRIVER_SYMBOLS.iter().find(|name| !has_symbol!(sys::culib(), name));
    if let Some(symbol) = missing {
        return Err(Unavailable::Incomplete { library: "libcuda", symbol });
    }
    let mut version = 0;
    // SAFETY: the function exists and writes one integer; it may be called before `cuInit`.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|error| refused(&error))?;
    let version = u32::try_from(version).unwrap_or(0);
    let found = Version { major: version / 1000, minor: version % 1000 / 10 };
    if found < DRIVER_MIN {
        return Err(Unavailable::DriverTooOld { found, needed: DRIVER_MIN });
    }
    Ok(found)
}

/// The version of NVRTC; `None` if it is missing or lacks a function.
pub(super) fn compiler_version() -> Option<Version> {
    // SAFETY: loading the compiler's library runs initialisers made for that.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return None;
    }
    if !COMPILER_SYMBOLS.iter().all(|name| has_symbol!(nvrtc::sys::culib(), name)) {
        return None;
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the function exists and writes two integers.
    unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) }.result().ok()?;
    Some(Version { major: u32::try_from(major).ok()?, minor: u32::try_from(minor).ok()? })
}

/// Whether cuBLASLt can be loaded and lacks no function.
pub(super) fn has_blas() -> bool {
    // SAFETY: loading the library runs initialisers made for that.
    let present = unsafe { cublaslt::sys::is_culib_present() };
    present && BLAS_SYMBOLS.iter().all(|name| has_symbol!(cublaslt::sys::culib(), name))
}

/// The reason behind a refusal of the driver.
pub(super) fn refused(error: &result::DriverError) -> Unavailable {
    match error.0 {
        sys::CUresult::CUDA_ERROR_NO_DEVICE => Unavailable::NoDevice,
        sys::CUresult::CUDA_ERROR_STUB_LIBRARY => {
            Unavailable::Incomplete { library: "libcuda", symbol: "cuInit" }
        }
        _ => Unavailable::Driver(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_of_the_driver_have_reasons_of_their_own() {
        let refusal = |code| refused(&result::DriverError(code));
        assert_eq!(refusal(sys::CUresult::CUDA_ERROR_NO_DEVICE), Unavailable::NoDevice);
        let stub = refusal(sys::CUresult::CUDA_ERROR_STUB_LIBRARY);
        assert!(matches!(stub, Unavailable::Incomplete { .. }));
    }
}
