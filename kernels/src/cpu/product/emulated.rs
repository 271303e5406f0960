//! The instruction of [`bf16`](super::bf16) as its manual describes it, for processors without it.

use super::{
    scalar,
    tile::{Kernel, PITCH, ROWS, Tile},
};

const COLUMNS: usize = 32;

pub(super) static KERNEL: Kernel =
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
