//! The micro-kernel for every processor, and the meaning of the others.

use super::tile::{Kernel, PITCH, ROWS, Tile};

const COLUMNS: usize = 16;

pub(super) static KERNEL: Kernel =
    Kernel { rows: 4, columns: COLUMNS, heights: &[4, 1], pairs: false, compute };

/// Safe for every tile: all indices are checked.
fn compute(tile: &mut Tile<'_>) {
    match tile.rows {
        4 => block::<4>(tile),
        _ => block::<1>(tile),
    }
}

fn block<const R: usize>(tile: &mut Tile<'_>) {
    let (row_step, term_step) = if tile.strip.by_term { (1, ROWS) } else { (PITCH, 1) };
    let a = &tile.strip.numbers()[tile.from * row_step..];
    let mut sums = [[0.0_f32; COLUMNS]; R];
    for (term, b) in tile.panel.as_chunks::<COLUMNS>().0.iter().take(tile.depth).enumerate() {
        for r in 0..R {
            let factor = a[r * row_step + term * term_step];
            for i in 0..COLUMNS {
                sums[r][i] = factor.mul_add(b[i], sums[r][i]);
            }
        }
    }
    for (r, sums) in sums.iter().enumerate() {
        store(&mut tile.c[r * tile.stride..][..tile.columns], sums, tile.add);
    }
}

/// `c (= | +=) sums`, for the columns of `c`.
pub(super) fn store(c: &mut [f32], sums: &[f32], add: bool) {
    for (c, &sum) in c.iter_mut().zip(sums) {
        *c = if add { *c + sum } else { sum };
    }
}
