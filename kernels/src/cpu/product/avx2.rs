//! The micro-kernel of AVX2 with fused multiply-add: twelve sums, two vectors of `b`, one number of `a`.

use super::{
    scalar,
    tile::{Kernel, PITCH, ROWS, Tile},
};
use std::arch::x86_64::*;

const LANES: usize = 8;
const COLUMNS: usize = 2 * LANES;

pub(super) static KERNEL: Kernel =
    Kernel { rows: 6, columns: COLUMNS, heights: &[6, 4, 2, 1], pairs: false, compute };

/// # Safety
///
/// As [`Kernel::compute`]; needs AVX2 and FMA.
unsafe fn compute(tile: &mut Tile<'_>) {
    // SAFETY: passed on to the caller.
    unsafe {
        match (tile.rows, tile.strip.by_term) {
            (6, false) => block::<6, PITCH, 1>(tile),
            (6, true) => block::<6, 1, ROWS>(tile),
            (4, false) => block::<4, PITCH, 1>(tile),
            (4, true) => block::<4, 1, ROWS>(tile),
            (2, false) => block::<2, PITCH, 1>(tile),
            (2, true) => block::<2, 1, ROWS>(tile),
            (_, false) => block::<1, PITCH, 1>(tile),
            (_, true) => block::<1, 1, ROWS>(tile),
        }
    }
}

/// `R` rows; those of `a` are `ROW` apart, its terms `TERM`.
///
/// # Safety
///
/// As [`compute`]; the tile has `R` rows.
#[target_feature(enable = "avx2,fma")]
unsafe fn block<const R: usize, const ROW: usize, const TERM: usize>(tile: &mut Tile<'_>) {
    let mut sums = [[_mm256_setzero_ps(); 2]; R];
    // SAFETY: the strip holds `ROWS` rows of `DEPTH` terms and the panel `depth` rows of `COLUMNS`; every index
    // below is smaller.
    unsafe {
        let mut a = tile.strip.numbers().as_ptr().add(tile.from * ROW);
        let mut b = tile.panel.as_ptr();
        for _ in 0..tile.depth {
            let columns = [_mm256_loadu_ps(b), _mm256_loadu_ps(b.add(LANES))];
            for r in 0..R {
                let factor = _mm256_set1_ps(*a.add(r * ROW));
                for v in 0..2 {
                    sums[r][v] = _mm256_fmadd_ps(factor, columns[v], sums[r][v]);
                }
            }
            a = a.wrapping_add(TERM);
            b = b.wrapping_add(COLUMNS);
        }
    }
    for r in 0..R {
        let c = &mut tile.c[r * tile.stride..][..tile.columns];
        if let Some(c) = c.first_chunk_mut::<COLUMNS>() {
            for v in 0..2 {
                // SAFETY: both vectors lie inside `c`.
                unsafe {
                    let c = c.as_mut_ptr().add(v * LANES);
                    let kept =
                        if tile.add { _mm256_add_ps(_mm256_loadu_ps(c), sums[r][v]) } else { sums[r][v] };
                    _mm256_storeu_ps(c, kept);
                }
            }
        } else {
            let mut spilled = [0.0; COLUMNS];
            for v in 0..2 {
                // SAFETY: both vectors lie inside `spilled`.
                unsafe { _mm256_storeu_ps(spilled.as_mut_ptr().add(v * LANES), sums[r][v]) };
            }
            scalar::store(c, &spilled, tile.add);
        }
    }
}
