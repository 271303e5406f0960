//! Packed format, rounding key and length of the tensors and token ids of a run on the wire.
//!
//! All lengths follow from the [`Run`], never from the bytes: the length of an incoming code is checked before memory
//! is allocated or the code is read.

mod tokens;

use swarmline_kernels::{Backend, PackedFormat, PackingError, RoundingKey};
use swarmline_scheduler::MicrobatchId;

use crate::config::{Packing, Run};
use crate::hashing;
use crate::subspace::Subspace;

pub use tokens::{TokenCodec, TokenError, Tokens};

/// Direction in which a tensor crosses a cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// The activation, downstream.
    Forward,
    /// The gradient of the activation, upstream.
    Backward,
}

/// Errors of packing and unpacking a code.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CodeError {
    /// A number is a NaN or an infinity.
    #[error("a number in row {row} of a code is not finite")]
    NonFinite {
        /// First row with such a number.
        row: usize,
    },
    /// The bytes do not have the length the run demands.
    #[error("a code of {found} bytes where the run demands {expected}")]
    Length {
        /// Bytes the run demands.
        expected: usize,
        /// Length of the code, bytes.
        found: usize,
    },
    /// The device failed.
    #[error(transparent)]
    Device(swarmline_kernels::Error),
}

impl From<swarmline_kernels::Error> for CodeError {
    fn from(error: swarmline_kernels::Error) -> Self {
        use swarmline_kernels::Error;
        match error {
            Error::Packing(PackingError::NonFinite { row }) => Self::NonFinite { row },
            Error::Packing(PackingError::Length { expected, found }) => Self::Length { expected, found },
            other => Self::Device(other),
        }
    }
}

/// Shape and format of the tensors that cross one cut, the same in both directions.
///
/// A code of width 0 has 0 bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Codec {
    layer: usize,
    rows: usize,
    width: usize,
    format: PackedFormat,
    seed: u64,
}

impl Codec {
    /// The codec of the cut in front of `layer`. Its width is 0 in front of layer 0 and behind the last layer.
    #[must_use]
    pub fn in_front_of(run: &Run, layer: usize) -> Self {
        Self {
            layer,
            rows: run.tokens_per_microbatch(),
            width: run.code_width(layer),
            format: packed_format(run.boundary.packing),
            seed: run.seed,
        }
    }

    /// Width of a code: `d`, `k` or 0.
    #[must_use]
    pub fn width(&self) -> usize {
        self.width
    }

    /// Exact number of bytes of a packed code.
    #[must_use]
    pub fn byte_len(&self) -> usize {
        if self.width == 0 {
            return 0;
        }
        // A code that does not fit the address space matches no frame.
        self.format.packed_len(self.rows, self.width).unwrap_or(usize::MAX)
    }

    /// Packs `x[N, width]`.
    ///
    /// # Errors
    /// [`CodeError::NonFinite`] if the numbers are not finite, [`CodeError::Device`] if the device fails.
    pub fn encode<B: Backend>(
        &self,
        backend: &mut B,
        x: &B::Tensor,
        microbatch: MicrobatchId,
        direction: Direction,
    ) -> Result<Vec<u8>, CodeError> {
        let mut bytes = Vec::new();
        if self.width > 0 {
            let key = self.rounding_key(microbatch, direction);
            backend.pack(&mut bytes, x, self.rows, self.width, self.format, key)?;
        }
        Ok(bytes)
    }

    /// `x[N, width] =` the numbers in `bytes`; `x` is unchanged if the width is 0.
    ///
    /// # Errors
    /// [`CodeError::Length`] or [`CodeError::NonFinite`] if the bytes are wrong, [`CodeError::Device`] if the
    /// device fails. `x` is undefined then.
    pub fn decode<B: Backend>(
        &self,
        backend: &mut B,
        x: &mut B::Tensor,
        bytes: &[u8],
        microbatch: MicrobatchId,
        direction: Direction,
    ) -> Result<(), CodeError> {
        let expected = self.byte_len();
        if bytes.len() != expected {
            return Err(CodeError::Length { expected, found: bytes.len() });
        }
        if self.width > 0 {
            let key = self.rounding_key(microbatch, direction);
            backend.unpack(x, bytes, self.rows, self.width, self.format, key)?;
        }
        Ok(())
    }

    /// Packs the coordinates of the dense gradient `dx[N,d]`, which flows back through [`Codec::decode_lifted`].
    ///
    /// # Errors
    /// As [`Codec::encode`], for the coordinates.
    pub(crate) fn encode_projected<B: Backend>(
        &self,
        backend: &mut B,
        space: &Subspace<B>,
        dx: &B::Tensor,
        microbatch: MicrobatchId,
    ) -> Result<Vec<u8>, CodeError> {
        let (mut bytes, key) = (Vec::new(), self.rounding_key(microbatch, Direction::Backward));
        space.lift_packed_backward(backend, &mut bytes, dx, self.format, key)?;
        Ok(bytes)
    }

    /// `x[N,d] = anchor[N,d] + z[N,k] U^T`, where `bytes` hold the coordinates `z`.
    ///
    /// # Errors
    /// As [`Codec::decode`].
    pub(crate) fn decode_lifted<B: Backend>(
        &self,
        backend: &mut B,
        space: &Subspace<B>,
        x: &mut B::Tensor,
        anchor: &B::Tensor,
        bytes: &[u8],
        microbatch: MicrobatchId,
    ) -> Result<(), CodeError> {
        let key = self.rounding_key(microbatch, Direction::Forward);
        Ok(space.lift_packed(backend, x, bytes, anchor, self.format, key)?)
    }

    /// The key does not depend on the attempt: a tensor that is sent again has the same bytes.
    fn rounding_key(&self, microbatch: MicrobatchId, direction: Direction) -> RoundingKey {
        let direction: &[u8] = match direction {
            Direction::Forward => b"forward",
            Direction::Backward => b"backward",
        };
        let layer = self.layer as u64;
        let tensor = hashing::key(&[&microbatch.0.to_le_bytes(), &layer.to_le_bytes(), direction]);
        RoundingKey { run: self.seed, tensor }
    }
}

/// The kernels' format for the packing of a run.
#[must_use]
pub fn packed_format(packing: Packing) -> PackedFormat {
    match packing {
        Packing::F32 => PackedFormat::F32,
        Packing::Bf16 => PackedFormat::Bf16,
        Packing::Q8 => PackedFormat::Q8,
        Packing::Q4 => PackedFormat::Q4,
    }
}

#[cfg(test)]
mod tests;
