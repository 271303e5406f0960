//! Packs tensors for the wire and unpacks them.
//!
//! Bytes pass through pinned memory on a stream of their own, so incoming bytes are copied while the device computes. A
//! header in front of them has the first rows in which the kernels found a fault.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaStream, PinnedHostSlice, result, sys::CUdeviceptr};

use super::launch::{Kernels, Launch, int};
use super::memory::{Buffer, device_error};
use super::products;
use crate::{PackedFormat, PackingError, Result, RoundingKey, Write};

/// Bytes of the header: two row numbers, and room to keep the packed bytes aligned.
const HEADER: usize = 16;
/// The row number of a header without a fault; kernels lower it to the first row with one.
const NO_ROW: i32 = i32::MAX;

/// Packs and unpacks tensors; owns the buffers and the stream for their bytes.
#[derive(Debug)]
pub(super) struct Boundary {
    compute: Arc<CudaStream>,
    copies: Arc<CudaStream>,
    device: Buffer<u8>,
    /// Coordinates for formats without a kernel that projects and packs in one pass.
    coordinates: Option<Buffer<f32>>,
    pinned: PinnedHostSlice<u8>,
    computed: CudaEvent,
    copied: CudaEvent,
}

impl Boundary {
    pub(super) fn new(compute: &Arc<CudaStream>) -> Result<Self> {
        let context = compute.context();
        Ok(Self {
            compute: Arc::clone(compute),
            copies: context.new_stream().map_err(device_error)?,
            device: Buffer::zeros(compute, HEADER)?,
            coordinates: None,
            pinned: pinned(context, HEADER)?,
            computed: context.new_event(None).map_err(device_error)?,
            copied: context.new_event(None).map_err(device_error)?,
        })
    }

    /// Packs `x[rows,width]` into `bytes`.
    pub(super) fn pack(
        &mut self,
        kernels: &Kernels,
        bytes: &mut Vec<u8>,
        x: &Buffer<f32>,
        [rows, width]: [usize; 2],
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        bytes.clear();
        let x = x.input(rows * width);
        // No format is longer than its numbers and two bytes a row: the length of numbers in memory fits.
        let len = format.packed_len(rows, width).unwrap_or_default();
        if rows * width == 0 {
            bytes.resize(len, 0);
            return Ok(());
        }
        self.begin_packing(len)?;
        let (columns, each) = (int(width)?, Launch::each(rows * width, 256));
        match format {
            PackedFormat::F32 => {
                let (bad, _) = self.device.split::<i32, u8>(2, HEADER, 0);
                kernels.swl_check_finite(Launch::row(rows, 128), bad, x, columns)?;
            }
            PackedFormat::Bf16 => {
                let (bad, packed) = self.device.split::<i32, u16>(2, HEADER, rows * width);
                kernels.swl_pack_bf16(each, packed, bad, x, int(rows)?, columns)?;
            }
            PackedFormat::Q8 | PackedFormat::Q4 => {
                let (bad, packed) = self.device.split::<i32, u8>(2, HEADER, len);
                let row = Launch::row(rows, 256).shared(4 * width);
                kernels.swl_pack_levels(
                    row,
                    packed,
                    bad,
                    x,
                    columns,
                    format.top_level().into(),
                    key.run,
                    key.tensor,
                )?;
            }
        }
        self.finish_packing(bytes, len, (format == PackedFormat::F32).then_some(x.0))
    }

    /// Packs `x[rows,width] basis[code,width]^T` into `bytes`.
    pub(super) fn project_pack(
        &mut self,
        kernels: &Kernels,
        bytes: &mut Vec<u8>,
        x: &Buffer<f32>,
        basis: &Buffer<f32>,
        [rows, width, code]: [usize; 3],
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        if rows * code == 0 || matches!(format, PackedFormat::F32 | PackedFormat::Bf16) {
            let mut z = self.take_coordinates(rows * code)?;
            products::project(kernels, &mut z, x, basis, [rows, width, code], Write::Set)?;
            let packed = self.pack(kernels, bytes, &z, [rows, code], format, key);
            self.coordinates = Some(z);
            return packed;
        }
        bytes.clear();
        let (x, basis) = (x.input(rows * width), basis.input(code * width));
        // No format is longer than its numbers and two bytes a row: the length fits, as in `pack`.
        let len = format.packed_len(rows, code).unwrap_or_default();
        self.begin_packing(len)?;
        let (bad, packed) = self.device.split::<i32, u8>(2, HEADER, len);
        let row = Launch::row(rows, 256).shared(size_of::<f32>() * (width + code));
        let (width, code, top) = (int(width)?, int(code)?, format.top_level().into());
        kernels.swl_project_pack(row, packed, bad, x, basis, width, code, top, key.run, key.tensor)?;
        self.finish_packing(bytes, len, None)
    }

    /// Unpacks `x[rows,width]` from `bytes`.
    pub(super) fn unpack(
        &mut self,
        kernels: &Kernels,
        x: &mut Buffer<f32>,
        bytes: &[u8],
        [rows, width]: [usize; 2],
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        let expected = format.check_len(bytes, rows, width)?;
        let numbers = rows * width;
        if numbers == 0 {
            return Ok(());
        }
        self.begin_unpacking(bytes)?;
        let (columns, each, to) = (int(width)?, Launch::each(numbers, 256), x.output(numbers));
        match format {
            PackedFormat::F32 => {
                let (_, packed) = self.device.split::<i32, f32>(2, HEADER, numbers);
                kernels.swl_copy(each, to, packed.read(), int(numbers)?)?;
                let (bad, _) = self.device.split::<i32, u8>(2, HEADER, 0);
                kernels.swl_check_finite(Launch::row(rows, 128), bad, x.input(numbers), columns)?;
            }
            PackedFormat::Bf16 => {
                let (bad, packed) = self.device.split::<i32, u16>(2, HEADER, numbers);
                kernels.swl_unpack_bf16(each, to, bad, packed.read(), int(rows)?, columns)?;
            }
            PackedFormat::Q8 | PackedFormat::Q4 => {
                let (bad, packed) = self.device.split::<i32, u8>(2, HEADER, expected);
                let (row, top) = (Launch::row(rows, 256).shared(4 * width), format.top_level().into());
                kernels.swl_unpack_levels(row, to, bad, packed.read(), columns, top, key.run, key.tensor)?;
            }
        }
        self.finish_unpacking()
    }

    /// `x[rows,width] = anchor[rows,width] + z[rows,code] basis[code,width]` with `z` from `bytes`.
    pub(super) fn unpack_reconstruct(
        &mut self,
        kernels: &Kernels,
        x: &mut Buffer<f32>,
        bytes: &[u8],
        basis: &Buffer<f32>,
        anchor: &Buffer<f32>,
        [rows, width, code]: [usize; 3],
        format: PackedFormat,
        key: RoundingKey,
    ) -> Result<()> {
        let numbers = rows * width;
        if numbers * code == 0 || matches!(format, PackedFormat::F32 | PackedFormat::Bf16) {
            let mut z = self.take_coordinates(rows * code)?;
            let unpacked = self.unpack(kernels, &mut z, bytes, [rows, code], format, key);
            let lifted = unpacked.and_then(|()| {
                let (from, to) = (anchor.input(numbers), x.output(numbers));
                kernels.swl_copy(Launch::each(numbers, 256), to, from, int(numbers)?)?;
                products::expand(kernels, x, &z, basis, [rows, width, code])
            });
            self.coordinates = Some(z);
            return lifted;
        }
        format.check_len(bytes, rows, code)?;
        self.begin_unpacking(bytes)?;
        let (bad, packed) = self.device.split::<i32, u8>(2, HEADER, bytes.len());
        let (x, anchor, basis) = (x.output(numbers), anchor.input(numbers), basis.input(code * width));
        let row = Launch::row(rows, 256).shared(size_of::<f32>() * code);
        let (width, code, top) = (int(width)?, int(code)?, format.top_level().into());
        let packed = packed.read();
        kernels.swl_unpack_reconstruct(
            row, x, bad, packed, basis, anchor, width, code, top, key.run, key.tensor,
        )?;
        self.finish_unpacking()
    }

    /// Room for `len` coordinates, lent until the caller puts it back.
    fn take_coordinates(&mut self, len: usize) -> Result<Buffer<f32>> {
        match self.coordinates.take() {
            Some(mut z) => z.grow(&self.compute, len).map(|()| z),
            None => Buffer::zeros(&self.compute, len),
        }
    }

    /// Makes room for `len` packed bytes, with no fault found yet.
    fn begin_packing(&mut self, len: usize) -> Result<()> {
        self.reserve(len)?;
        self.write_header()?;
        self.copy_in(HEADER, &self.compute)
    }

    /// Waits for the kernels, checks the header and appends `len` packed bytes: those at `elsewhere`, or else those
    /// behind the header.
    fn finish_packing(
        &mut self,
        bytes: &mut Vec<u8>,
        len: usize,
        elsewhere: Option<CUdeviceptr>,
    ) -> Result<()> {
        self.wait_for_compute()?;
        let behind = if elsewhere.is_some() { 0 } else { len };
        self.copy_out(self.device.input(HEADER + behind).0, 0, HEADER + behind)?;
        if let Some(packed) = elsewhere {
            self.copy_out(packed, HEADER, len)?;
        }
        self.copies.synchronize().map_err(device_error)?;
        let packed = self.pinned.as_slice().map_err(device_error)?;
        check_header(packed)?;
        bytes.extend_from_slice(&packed[HEADER..HEADER + len]);
        Ok(())
    }

    /// Brings packed bytes to the device, with no fault found yet.
    fn begin_unpacking(&mut self, bytes: &[u8]) -> Result<()> {
        self.reserve(bytes.len())?;
        self.write_header()?;
        let staged = self.pinned.as_mut_slice().map_err(device_error)?;
        staged[HEADER..HEADER + bytes.len()].copy_from_slice(bytes);
        // No kernel reads the last bytes any more: the host has waited for their header.
        self.copy_in(HEADER + bytes.len(), &self.copies)?;
        self.copied.record(&self.copies).map_err(device_error)?;
        self.compute.wait(&self.copied).map_err(device_error)
    }

    /// Waits for the kernels and checks the header.
    fn finish_unpacking(&mut self) -> Result<()> {
        self.wait_for_compute()?;
        self.copy_out(self.device.input(HEADER).0, 0, HEADER)?;
        self.copies.synchronize().map_err(device_error)?;
        check_header(self.pinned.as_slice().map_err(device_error)?)
    }

    /// Copies queued from here on wait for the kernels queued so far.
    fn wait_for_compute(&self) -> Result<()> {
        self.computed.record(&self.compute).map_err(device_error)?;
        self.copies.wait(&self.computed).map_err(device_error)
    }

    /// Makes room for `len` packed bytes. Buffers only grow, so a run allocates for its first microbatch alone.
    fn reserve(&mut self, len: usize) -> Result<()> {
        let len = HEADER + len;
        if self.device.len() < len {
            self.device = Buffer::zeros(&self.compute, len)?;
            self.pinned = pinned(self.compute.context(), len)?;
            // The other stream must not get ahead of the allocation.
            self.compute.synchronize().map_err(device_error)?;
        }
        Ok(())
    }

    fn write_header(&mut self) -> Result<()> {
        let header = self.pinned.as_mut_slice().map_err(device_error)?;
        for row in header[..HEADER].chunks_exact_mut(4) {
            row.copy_from_slice(&NO_ROW.to_ne_bytes());
        }
        Ok(())
    }

    fn copy_in(&self, len: usize, stream: &CudaStream) -> Result<()> {
        let to = self.device.input(len).0;
        let staged = self.pinned.as_slice().map_err(device_error)?;
        stream.context().bind_to_thread().map_err(device_error)?;
        // SAFETY: both sides are `len` long; the host waits for the stream before it writes there again.
        unsafe { result::memcpy_htod_async(to, &staged[..len], stream.cu_stream()) }.map_err(device_error)
    }

    fn copy_out(&mut self, from: CUdeviceptr, to: usize, len: usize) -> Result<()> {
        self.copies.context().bind_to_thread().map_err(device_error)?;
        let staged = self.pinned.as_mut_slice().map_err(device_error)?;
        // SAFETY: the caller names `len` bytes on the device; the host waits for the stream before it reads.
        unsafe { result::memcpy_dtoh_async(&mut staged[to..to + len], from, self.copies.cu_stream()) }
            .map_err(device_error)
    }
}

/// Page-locked memory that both sides read and write.
fn pinned(context: &Arc<CudaContext>, len: usize) -> Result<PinnedHostSlice<u8>> {
    // SAFETY: any byte is a valid u8, and all that are read were written before.
    unsafe { context.alloc_pinned_with_flags(len, 0) }.map_err(device_error)
}

/// Refuses the first row with a number that is not finite, else the first that overflows the format.
fn check_header(header: &[u8]) -> Result<()> {
    let rows = header[..8].as_chunks::<4>().0.iter().map(|&row| i32::from_ne_bytes(row));
    match rows.into_iter().find(|&row| row != NO_ROW) {
        Some(row) => Err(PackingError::NonFinite { row: row.unsigned_abs() as usize }.into()),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Error;

    #[test]
    fn a_number_that_is_not_finite_comes_before_one_that_overflows() {
        let check = |rows: [i32; 2]| {
            let header: Vec<u8> = rows.iter().flat_map(|row| row.to_ne_bytes()).chain([0; 8]).collect();
            check_header(&header)
        };
        assert!(check([NO_ROW, NO_ROW]).is_ok());
        for (rows, first) in [([3, NO_ROW], 3), ([NO_ROW, 2], 2), ([5, 1], 5)] {
            let Err(Error::Packing(PackingError::NonFinite { row })) = check(rows) else { panic!() };
            assert_eq!(row, first);
        }
    }
}
