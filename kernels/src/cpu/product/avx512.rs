//! The micro-kernel of AVX-512: 28 sums, a row of two vectors of `b`, one number of `a`.

use super::tile::{Compute, Kernel};
use std::arch::x86_64::*;

/// Numbers of a vector.
pub(super) const LANES: usize = 16;
/// Rows of a tile.
pub(super) const HEIGHT: usize = 14;
/// Vectors of a row of a tile.
pub(super) const VECTORS: usize = 2;
/// Terms a panel is fetched ahead: the second cache answers sooner than these are summed, even when shared.
pub(super) const AHEAD: usize = 8;

pub(super) static KERNEL: Kernel = kernel(false, compute);

/// A kernel of the shape that [`micro_kernel`] makes.
pub(super) const fn kernel(pairs: bool, compute: Compute) -> Kernel {
    Kernel { rows: HEIGHT, columns: VECTORS * LANES, heights: &[HEIGHT, 4, 2, 1], pairs, compute }
}

/// Makes the `compute` of a kernel that needs `$features` and multiplies words with `$multiply_add`. It is a macro
/// because a function is compiled for the features that it names, and inlines only functions that need no more.
macro_rules! micro_kernel {
    ($features:literal, $multiply_add:ident) => {
        /// # Safety
        ///
        /// As [`Kernel`] says; needs the features.
        unsafe fn compute(tile: &mut $crate::cpu::product::tile::Tile<'_>) {
            // SAFETY: passed on to the caller.
            unsafe {
                match tile.rows {
                    4 => wide::<4>(tile),
                    2 => wide::<2>(tile),
                    1 => wide::<1>(tile),
                    _ => wide::<HEIGHT>(tile),
                }
            }
        }

        /// # Safety
        ///
        /// As [`block`].
        #[target_feature(enable = $features)]
        unsafe fn wide<const R: usize>(tile: &mut $crate::cpu::product::tile::Tile<'_>) {
            use $crate::cpu::product::tile::{PITCH, ROWS};
            // SAFETY: passed on to the caller.
            unsafe {
                match (tile.columns.div_ceil(LANES), tile.strip.by_term) {
                    (1, false) => block::<R, 1, PITCH, 1>(tile),
                    (1, true) => block::<R, 1, 1, ROWS>(tile),
                    (2, false) => block::<R, 2, PITCH, 1>(tile),
                    (2, true) => block::<R, 2, 1, ROWS>(tile),
                    (_, false) => block::<R, VECTORS, PITCH, 1>(tile),
                    (_, true) => block::<R, VECTORS, 1, ROWS>(tile),
                }
            }
        }

        /// `R` rows, `V` vectors of columns; rows of `a` are `ROW` apart, its terms `TERM`.
        ///
        /// # Safety
        ///
        /// As [`compute`]; the tile has `R` rows and `V` vectors of columns, of which the last may be cut off.
        #[target_feature(enable = $features)]
        unsafe fn block<const R: usize, const V: usize, const ROW: usize, const TERM: usize>(
            tile: &mut $crate::cpu::product::tile::Tile<'_>,
        ) {
            let mut sums = [[_mm512_setzero_ps(); V]; R];
            // Only a tile that adds reads `c`: its rows are fetched while the sums are made.
            let rows = if tile.add { R } else { 0 };
            for r in 0..rows {
                for v in 0..V {
                    let c = tile.c.as_ptr().wrapping_add(r * tile.stride + v * LANES);
                    _mm_prefetch::<_MM_HINT_T0>(c.cast());
                }
            }
            // SAFETY: the strip holds `ROWS` rows of `DEPTH` terms and the panel `depth` rows of `VECTORS`
            // vectors; every index below is smaller.
            unsafe {
                let mut a = tile.strip.numbers().as_ptr().add(tile.from * ROW);
                let mut b = tile.panel.as_ptr();
                for _ in 0..tile.depth {
                    let mut columns = [_mm512_setzero_ps(); V];
                    for v in 0..V {
                        columns[v] = _mm512_loadu_ps(b.add(v * LANES));
                        _mm_prefetch::<_MM_HINT_T0>(b.wrapping_add((AHEAD * VECTORS + v) * LANES).cast());
                    }
                    for r in 0..R {
                        let factor = _mm512_set1_ps(*a.add(r * ROW));
                        for v in 0..V {
                            sums[r][v] = $multiply_add(factor, columns[v], sums[r][v]);
                        }
                    }
                    a = a.wrapping_add(TERM);
                    b = b.wrapping_add(VECTORS * LANES);
                }
            }
            for r in 0..R {
                for v in 0..V {
                    // The first columns of the vector, at most all.
                    let mask = u16::MAX >> (LANES - LANES.min(tile.columns - v * LANES));
                    let c = tile.c.as_mut_ptr().wrapping_add(r * tile.stride + v * LANES);
                    // SAFETY: `mask` keeps to the columns of the tile, which lie inside `c`.
                    unsafe {
                        let mut sum = sums[r][v];
                        if tile.add {
                            sum = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, c), sum);
                        }
                        _mm512_mask_storeu_ps(c, mask, sum);
                    }
                }
            }
        }
    };
}
pub(super) use micro_kernel;

micro_kernel!("avx512f", _mm512_fmadd_ps);
