//! Packed formats of numbers, identical on every backend.

/// Layout of a packed tensor of `rows x width` numbers.
///
/// `Q8` and `Q4` store, per row: the step between levels (absmax / largest level) as little-endian bf16, rounded
/// up so that no level overflows, then the levels. Before quantising, a row is multiplied by random signs over the
/// root of the block and by a Hadamard matrix (natural order) in blocks of the largest power of two that divides
/// the width, which spreads outliers; levels are rounded stochastically, so the packing is unbiased. `Q4` packs two
/// levels a byte, two's complement, low nibble first; an odd width leaves the last high nibble 0.
///
/// A row whose step would be below the smallest normal f32 packs to zeros. A row with a magnitude from
/// `f32::MAX / (2 b^1.5)` on, `b` the block, is refused as not finite, since adding up a block could overflow.
///
/// Random words come from [`crate::random::philox4x32`] with [`crate::random::key`] of the run. The sign of column
/// `c` is bit `c % 32` (set: minus) of word `c / 32 % 4` at counter `(c / 128, 0, tensor low, tensor high)`, domain
/// `Signs`. The level of row `r`, column `c` is `floor(x / step + (u + 0.5) / 65536)`, where `u` is the low
/// (`c / 16` even) or high half of word `c / 32 % 4` at counter
/// `(16 (c / 128) + c % 16, r, tensor low, tensor high)`, domain `Rounding`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PackedFormat {
    /// Little-endian f32.
    F32,
    /// Little-endian bf16, rounded to nearest even.
    Bf16,
    /// 8-bit levels -127..=127.
    Q8,
    /// 4-bit levels -7..=7.
    Q4,
}

impl PackedFormat {
    /// Bytes of a packed tensor of `rows x width` numbers; `None` if that overflows `usize`.
    #[must_use]
    pub fn packed_len(self, rows: usize, width: usize) -> Option<usize> {
        let row = match self {
            Self::F32 => width.checked_mul(4)?,
            Self::Bf16 => width.checked_mul(2)?,
            Self::Q8 => width.checked_add(2)?,
            Self::Q4 => width.div_ceil(2).checked_add(2)?,
        };
        rows.checked_mul(row)
    }

    /// The largest level; 0 for formats without levels.
    #[must_use]
    pub fn top_level(self) -> i8 {
        match self {
            Self::F32 | Self::Bf16 => 0,
            Self::Q8 => 127,
            Self::Q4 => 7,
        }
    }

    /// Checks that `bytes` has the length of a packed tensor of `rows x width` numbers, and returns that length.
    ///
    /// # Errors
    ///
    /// [`PackingError::Length`] if the length differs.
    pub fn check_len(self, bytes: &[u8], rows: usize, width: usize) -> Result<usize, PackingError> {
        let expected = self.packed_len(rows, width).unwrap_or(usize::MAX);
        let found = bytes.len();
        if found == expected { Ok(expected) } else { Err(PackingError::Length { expected, found }) }
    }
}

/// Key of the random signs and of the stochastic rounding of one tensor.
///
/// Equal keys give equal bytes, so a tensor that is sent again has the same bytes. The caller derives the key from (run
/// seed, microbatch, boundary, direction), never from the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RoundingKey {
    /// Shared by a whole run.
    pub run: u64,
    /// Unique to the tensor within the run.
    pub tensor: u64,
}

/// Reasons why a tensor cannot be packed or unpacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PackingError {
    /// A NaN, an infinity, or a magnitude that the format cannot hold.
    #[error("a number in row {row} is not finite")]
    NonFinite {
        /// The first row with a NaN or an infinity; without one, the first row that overflows.
        row: usize,
    },
    /// The bytes do not have the length the shape demands.
    #[error("{found} bytes where {expected} were expected")]
    Length {
        /// Bytes the shape demands.
        expected: usize,
        /// Bytes found.
        found: usize,
    },
}
