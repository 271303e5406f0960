//! Pairs of bf16 and the micro-kernel that multiplies them.
//!
//! A word of a strip or panel holds two terms that follow each other; one instruction adds both products to an
//! f32. For the rest such words pass for f32 numbers, so packing and tiles are those of the other kernels.

#[cfg(test)]
pub(super) use model::KERNEL as MODEL;

/// The bf16 nearest to `x`, ties to even; NaN stays NaN.
fn round(x: f32) -> u16 {
    let bits = x.to_bits();
    if x.is_nan() {
        // Cutting off the low half could leave an infinity: set the bit that marks a quiet NaN.
        return (bits >> 16) as u16 | 0x0040;
    }
    let odd = (bits >> 16) & 1;
    ((bits + 0x7FFF + odd) >> 16) as u16
}

/// Two terms as one word, the first in the low half.
fn pair(first: f32, second: f32) -> f32 {
    f32::from_bits(u32::from(round(first)) | u32::from(round(second)) << 16)
}

/// Turns `depth` rows of `width` numbers into half as many rows of pairs, in place; a missing partner is 0.
pub(super) fn pair_terms(rows: &mut [f32], width: usize, depth: usize) {
    for at in 0..depth.div_ceil(2) {
        for i in 0..width {
            let first = rows[2 * at * width + i];
            let second = if 2 * at + 1 < depth { rows[(2 * at + 1) * width + i] } else { 0.0 };
            rows[at * width + i] = pair(first, second);
        }
    }
}

#[cfg(target_arch = "x86_64")]
pub(super) mod instruction {
    //! With the instruction itself.

    use super::super::{
        avx512::{AHEAD, HEIGHT, LANES, VECTORS, kernel, micro_kernel},
        tile::Kernel,
    };
    use std::{arch::x86_64::*, mem::transmute};

    pub(in super::super) static KERNEL: Kernel = kernel(true, compute);

    /// `sum + a0 b0 + a1 b1` in every lane.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bf16")]
    fn multiply_add(a: __m512, b: __m512, sum: __m512) -> __m512 {
        // SAFETY: both types are 64 bytes of which all patterns are values.
        let [a, b] = unsafe { [transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)] };
        _mm512_dpbf16_ps(sum, a, b)
    }

    micro_kernel!("avx512f,avx512bf16", multiply_add);
}

#[cfg(test)]
mod model {
    //! The instruction as its manual describes it, for processors without it.

    use super::super::{
        pack::{PITCH, ROWS},
        scalar,
        tile::{Kernel, Tile},
    };

    const COLUMNS: usize = 32;

    pub(in super::super) static KERNEL: Kernel =
        Kernel { rows: 14, columns: COLUMNS, heights: &[14, 8, 4, 2, 1], pairs: true, compute };

    fn compute(tile: &mut Tile<'_>) {
        let (row_step, term_step) = if tile.strip.by_term { (1, ROWS) } else { (PITCH, 1) };
        for r in 0..tile.rows {
            let mut sums = [0.0; COLUMNS];
            for (term, b) in tile.panel.as_chunks::<COLUMNS>().0.iter().take(tile.depth).enumerate() {
                let a = tile.strip.numbers()[(tile.from + r) * row_step + term * term_step];
                for i in 0..COLUMNS {
                    sums[i] = multiply_add(a, b[i], sums[i]);
                }
            }
            scalar::store(&mut tile.c[r * tile.stride..][..tile.columns], &sums, tile.add);
        }
    }

    /// The second product first; subnormal operands and sums count as 0.
    fn multiply_add(a: f32, b: f32, sum: f32) -> f32 {
        let flush = |x: f32| if x.is_subnormal() { 0.0 * x } else { x };
        let low = |x: f32| flush(f32::from_bits(x.to_bits() << 16));
        let high = |x: f32| flush(f32::from_bits(x.to_bits() & 0xFFFF_0000));
        let sum = flush(high(a).mul_add(high(b), flush(sum)));
        flush(low(a).mul_add(low(b), sum))
    }
}

#[cfg(test)]
mod tests {
    use super::{pair, pair_terms, round};
    use half::bf16;

    #[test]
    fn rounding_is_to_nearest_and_ties_go_to_even() {
        let corners =
            [0.0, -0.0, f32::MAX, f32::MIN, f32::INFINITY, f32::NEG_INFINITY, f32::MIN_POSITIVE, 1e-45];
        let ties = [0x3F80_8000, 0x3F81_8000, 0x3F80_7FFF, 0x3F80_8001, 0x7F7F_8000].map(f32::from_bits);
        let spread = (0..1_000_000_u32).map(|i| f32::from_bits(i.wrapping_mul(0x9E37_79B9)));
        for x in corners.into_iter().chain(ties).chain(spread).filter(|x| !x.is_nan()) {
            assert_eq!(round(x), bf16::from_f32(x).to_bits(), "{x:e}");
        }
        for nan in [f32::NAN, f32::from_bits(0x7F80_0001), f32::from_bits(0xFFFF_FFFF)] {
            assert!(bf16::from_bits(round(nan)).is_nan());
        }
    }

    #[test]
    fn pairs_are_neighbours_in_the_order_of_terms() {
        let mut rows = [1.0, 10.0, 2.0, 20.0, 3.0, 30.0, 9.0, 9.0];
        pair_terms(&mut rows, 2, 3);
        let expected = [pair(1.0, 2.0), pair(10.0, 20.0), pair(3.0, 0.0), pair(30.0, 0.0)];
        assert_eq!(rows[..4].iter().map(|x| x.to_bits()).collect::<Vec<_>>(), expected.map(f32::to_bits));
        assert_eq!(pair(1.0, 2.0).to_bits(), 0x4000_3F80);
    }
}
