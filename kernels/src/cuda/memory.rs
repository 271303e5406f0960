//! Buffers on the device, and the addresses that kernels take.
//!
//! Buffers are allocated and freed in the order of the compute stream. The bindings' event tracking is off: all work is
//! on that stream except the copies of the boundary, which `boundary.rs` orders.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::sys::{CUdeviceptr, CUmemPool_attribute, CUresult};
use cudarc::driver::{
    CudaContext, CudaSlice, CudaStream, DevicePtr, DeviceRepr, DriverError, ValidAsZeroBits, result,
};

use crate::{Error, Result};

/// A flat buffer on the device.
#[derive(Debug)]
pub(super) struct Buffer<T> {
    slice: CudaSlice<T>,
    len: usize,
    address: CUdeviceptr,
}

/// An address from which a kernel reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct In<'a, T>(pub(super) CUdeviceptr, PhantomData<&'a T>);

/// An address to which a kernel writes.
#[derive(Debug)]
pub(super) struct Out<'a, T>(pub(super) CUdeviceptr, PhantomData<&'a mut T>);

impl<T: DeviceRepr + ValidAsZeroBits> Buffer<T> {
    /// `len` zeros.
    pub(super) fn zeros(stream: &Arc<CudaStream>, len: usize) -> Result<Self> {
        // The driver has no empty allocations.
        let slice = stream.alloc_zeros(len.max(1)).map_err(|error| {
            let needed = len.saturating_mul(size_of::<T>());
            allocation_error(error, needed, || stream.context().mem_get_info().map_or(0, |(free, _)| free))
        })?;
        let address = slice.device_ptr(stream).0;
        Ok(Self { slice, len, address })
    }

    /// Makes the buffer at least `len` long. A buffer that grows loses its numbers and holds zeros.
    pub(super) fn grow(&mut self, stream: &Arc<CudaStream>, len: usize) -> Result<()> {
        if self.len < len {
            *self = Self::zeros(stream, len)?;
        }
        Ok(())
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// The first `len` numbers, to read.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(super) fn input(&self, len: usize) -> In<'_, T> {
        assert!(len <= self.len, "{len} numbers of a buffer of {}", self.len);
        In(self.address, PhantomData)
    }

    /// The first `len` numbers, to write.
    ///
    /// # Panics
    ///
    /// If there are fewer.
    pub(super) fn output(&mut self, len: usize) -> Out<'_, T> {
        assert!(len <= self.len, "{len} numbers of a buffer of {}", self.len);
        Out(self.address, PhantomData)
    }

    /// `self[..src.len()] = src`; the host may change `src` afterwards.
    pub(super) fn upload(&mut self, stream: &Arc<CudaStream>, src: &[T]) -> Result<()> {
        assert!(src.len() <= self.len, "{} numbers into a buffer of {}", src.len(), self.len);
        if src.is_empty() {
            return Ok(());
        }
        let mut part = self.slice.slice_mut(..src.len());
        stream.memcpy_htod(src, &mut part).map_err(device_error)?;
        // The driver stages pageable memory before the call returns, except for devices that read it themselves.
        stream.synchronize().map_err(device_error)
    }

    /// `dst = self[..dst.len()]`, once all work queued before is done.
    pub(super) fn download(&self, stream: &Arc<CudaStream>, dst: &mut [T]) -> Result<()> {
        assert!(dst.len() <= self.len, "{} numbers of a buffer of {}", dst.len(), self.len);
        if dst.is_empty() {
            return Ok(());
        }
        stream.memcpy_dtoh(&self.slice.slice(..dst.len()), dst).map_err(device_error)?;
        stream.synchronize().map_err(device_error)
    }
}

impl Buffer<u8> {
    /// `head` values of `H` from the beginning on and `len` values of `T` from byte `offset` on.
    ///
    /// # Panics
    ///
    /// If a value lies outside the buffer, is not aligned or overlaps another.
    pub(super) fn split<H, T>(&mut self, head: usize, offset: usize, len: usize) -> (Out<'_, H>, Out<'_, T>) {
        let end = len.checked_mul(size_of::<T>()).and_then(|bytes| bytes.checked_add(offset));
        assert!(end.is_some_and(|end| end <= self.len), "{len} values at {offset} of {} bytes", self.len);
        assert!(offset.is_multiple_of(size_of::<T>()), "values at an odd place");
        assert!(head * size_of::<H>() <= offset, "{head} values in {offset} bytes");
        (Out(self.address, PhantomData), Out(self.address + offset as CUdeviceptr, PhantomData))
    }
}

impl<'a, T> Out<'a, T> {
    /// The same address, to read.
    pub(super) fn read(self) -> In<'a, T> {
        In(self.0, PhantomData)
    }
}

/// Lets the driver keep freed memory for the next allocation. By default the driver returns all of it whenever the host
/// waits for the device, which is every microbatch.
pub(super) fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    if !context.has_async_alloc() {
        return Ok(());
    }
    let mut threshold = u64::MAX;
    let attribute = CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
    // SAFETY: device and pool are the driver's own; the attribute is one 64-bit number.
    unsafe {
        let pool = result::device::get_mem_pool(context.cu_device()).map_err(device_error)?;
        result::mem_pool::set_attribute(pool, attribute, (&raw mut threshold).cast())
    }
    .map_err(device_error)
}

/// An error of the driver as an error of the device.
pub(super) fn device_error(error: DriverError) -> Error {
    Error::Device(error.to_string())
}

fn allocation_error(error: DriverError, needed: usize, free: impl FnOnce() -> usize) -> Error {
    match error.0 {
        CUresult::CUDA_ERROR_OUT_OF_MEMORY => Error::OutOfMemory { needed, free: free() },
        _ => device_error(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_memory_says_how_much_is_needed_and_free() {
        let full = DriverError(CUresult::CUDA_ERROR_OUT_OF_MEMORY);
        let message = allocation_error(full, 4096, || 17).to_string();
        assert!(message.contains("4096 bytes needed, 17 bytes free"), "{message}");
    }
}
