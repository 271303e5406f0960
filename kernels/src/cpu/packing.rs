//! Numbers to bytes and back; [`PackedFormat`] has the layout.
//!
//! A row is taken in passes, each a plain loop over the whole row that fills vector registers; between two passes
//! the row stays in the first cache.

mod hadamard;
mod magnitude;
mod quantiser;
#[cfg(test)]
mod tests;

use super::{scratch::Scratch, threads::Threads};
use crate::{PackedFormat, PackingError, RoundingKey};
use magnitude::{INFINITE, largest_bits, magnitude};
use pulp::Arch;
use quantiser::{GROUP, Quantiser};
use std::{
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Rows of one job.
pub(super) const BLOCK_ROWS: usize = 32;

/// Packs or unpacks the rows of one tensor, in one piece or block by block, and notes the first rows with a fault.
#[derive(Debug)]
pub(super) struct Packer<'a> {
    threads: &'a Threads,
    scratch: &'a Scratch,
    format: PackedFormat,
    width: usize,
    quantiser: Quantiser<'a>,
    not_finite: FirstRow,
    overflowing: FirstRow,
}

impl<'a> Packer<'a> {
    pub(super) fn new(
        threads: &'a Threads,
        scratch: &'a Scratch,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Self {
        let fused = !matches!(threads.arch(), Arch::Scalar);
        let top = format.top_level();
        let quantiser = Quantiser::new(scratch, if top > 0 { width } else { 0 }, top, fused, key);
        let (not_finite, overflowing) = (FirstRow::default(), FirstRow::default());
        Self { threads, scratch, format, width, quantiser, not_finite, overflowing }
    }

    /// Packs the rows `x[_,width]`, which are those from `first` on, into `bytes`, which has their packed length.
    pub(super) fn pack(&self, bytes: &mut [u8], x: &[f32], first: usize) {
        if self.width == 0 {
            bytes.fill(0);
            return;
        }
        let blocks = bytes.chunks_mut(BLOCK_ROWS * self.row_bytes()).zip(x.chunks(BLOCK_ROWS * self.width));
        self.threads.each(
            (first..).step_by(BLOCK_ROWS).zip(blocks),
            #[inline(always)]
            |(first, (bytes, x))| match self.format {
                PackedFormat::F32 => self.pack_each(bytes, x, first, f32_bytes),
                PackedFormat::Bf16 => self.pack_each(bytes, x, first, bf16_bytes),
                PackedFormat::Q8 | PackedFormat::Q4 => self.pack_levels(bytes, x, first),
            },
        );
    }

    /// Reads the rows `x[_,width]`, which are those from `first` on, from `bytes`, which has their packed length.
    pub(super) fn unpack(&self, x: &mut [f32], bytes: &[u8], first: usize) {
        if self.width == 0 {
            return;
        }
        let blocks = x.chunks_mut(BLOCK_ROWS * self.width).zip(bytes.chunks(BLOCK_ROWS * self.row_bytes()));
        self.threads.each(
            (first..).step_by(BLOCK_ROWS).zip(blocks),
            #[inline(always)]
            |(first, (x, bytes))| match self.format {
                PackedFormat::F32 => self.unpack_each(x, bytes, first, u32::from_le_bytes),
                PackedFormat::Bf16 => self.unpack_each(x, bytes, first, bf16_bits),
                PackedFormat::Q8 | PackedFormat::Q4 => self.unpack_levels(x, bytes, first),
            },
        );
    }

    /// Refuses the first row with a number that is not finite, else the first that overflows the format.
    pub(super) fn check(self) -> Result<(), PackingError> {
        match self.not_finite.found().or_else(|| self.overflowing.found()) {
            Some(row) => Err(PackingError::NonFinite { row }),
            None => Ok(()),
        }
    }

    /// The bytes of the packed `rows`.
    pub(super) fn bytes_of(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.row_bytes()..rows.end * self.row_bytes()
    }

    /// Bytes of a packed row.
    fn row_bytes(&self) -> usize {
        // The width is that of numbers in memory.
        self.format.packed_len(1, self.width).unwrap_or_default()
    }

    /// Packs number by number; `encode` gives the bytes and the bits of the number they will be read as.
    #[inline(always)]
    fn pack_each<const N: usize>(
        &self,
        bytes: &mut [u8],
        x: &[f32],
        first: usize,
        encode: impl Fn(u32) -> ([u8; N], u32),
    ) {
        let rows = bytes.chunks_exact_mut(N * self.width).zip(x.chunks_exact(self.width));
        for (row, (bytes, x)) in (first..).zip(rows) {
            let (mut largest, mut packed) = (0, 0);
            for (bytes, x) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(x) {
                let bits = x.to_bits();
                let (encoded, read) = encode(bits);
                *bytes = encoded;
                largest = largest.max(magnitude(bits));
                packed = packed.max(magnitude(read));
            }
            if largest >= INFINITE {
                self.not_finite.add(row);
            } else if packed >= INFINITE {
                self.overflowing.add(row);
            }
        }
    }

    #[inline(always)]
    fn unpack_each<const N: usize>(
        &self,
        x: &mut [f32],
        bytes: &[u8],
        first: usize,
        decode: impl Fn([u8; N]) -> u32,
    ) {
        let rows = x.chunks_exact_mut(self.width).zip(bytes.chunks_exact(N * self.width));
        for (row, (x, bytes)) in (first..).zip(rows) {
            let mut largest = 0;
            for (x, bytes) in x.iter_mut().zip(bytes.as_chunks::<N>().0) {
                let bits = decode(*bytes);
                *x = f32::from_bits(bits);
                largest = largest.max(magnitude(bits));
            }
            if largest >= INFINITE {
                self.not_finite.add(row);
            }
        }
    }

    #[inline(always)]
    fn pack_levels(&self, bytes: &mut [u8], x: &[f32], first: usize) {
        let (quantiser, width) = (&self.quantiser, self.width);
        let groups = width.div_ceil(GROUP);
        let mut loan = self.scratch.take(width + groups * GROUP);
        let [turned, uniforms] = loan.parts([width, groups * GROUP]);
        let rows = bytes.chunks_exact_mut(self.row_bytes()).zip(x.chunks_exact(width));
        for (row, (bytes, x)) in (first..).zip(rows) {
            let largest = largest_bits(x);
            if largest >= INFINITE {
                self.not_finite.add(row);
            } else if f32::from_bits(largest as u32) >= quantiser.limit {
                self.overflowing.add(row);
            } else {
                quantiser.pack_row(bytes, x, row, turned, uniforms);
            }
        }
    }

    #[inline(always)]
    fn unpack_levels(&self, x: &mut [f32], bytes: &[u8], first: usize) {
        let rows = x.chunks_exact_mut(self.width).zip(bytes.chunks_exact(self.row_bytes()));
        for (row, (x, bytes)) in (first..).zip(rows) {
            self.quantiser.unpack_row(x, bytes);
            if largest_bits(x) >= INFINITE {
                self.not_finite.add(row);
            }
        }
    }
}

/// The first row with a fault that a job on any thread found.
#[derive(Debug)]
struct FirstRow(AtomicUsize);

impl Default for FirstRow {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

impl FirstRow {
    fn add(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    fn found(self) -> Option<usize> {
        let row = self.0.into_inner();
        (row < usize::MAX).then_some(row)
    }
}

#[inline(always)]
fn f32_bytes(bits: u32) -> ([u8; 4], u32) {
    (bits.to_le_bytes(), bits)
}

/// Rounds to nearest even, which can carry the largest numbers over to infinity; not for NaN.
#[inline(always)]
fn bf16_bytes(bits: u32) -> ([u8; 2], u32) {
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    (((rounded >> 16) as u16).to_le_bytes(), rounded & 0xFFFF_0000)
}

#[inline(always)]
fn bf16_bits(bytes: [u8; 2]) -> u32 {
    u32::from(u16::from_le_bytes(bytes)) << 16
}
