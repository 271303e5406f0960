//! Tiles of a result, the strips they are computed from, and the micro-kernels that compute them.

use crate::cpu::aligned::Line;

/// Terms of a chunk of a sum; part of the specification of every product.
pub(super) const DEPTH: usize = 256;
/// Most rows of a strip.
pub(super) const ROWS: usize = 16;
/// Distance of the rows of a strip: one cache line more than a chunk, so that rows do not all compete for a few sets.
pub(super) const PITCH: usize = DEPTH + Line::LEN;

/// A chunk of terms of some rows of the left factor, in the order that needs no turning.
#[derive(Debug)]
pub(super) struct Strip {
    lines: [Line; ROWS * PITCH / Line::LEN],
    /// Whether the numbers of a term are contiguous, with terms [`ROWS`] apart; otherwise the numbers of a row are,
    /// with rows [`PITCH`] apart.
    pub(super) by_term: bool,
}

impl Strip {
    /// Zeros, row by row.
    pub(super) const EMPTY: Self = Self { lines: [Line::ZERO; ROWS * PITCH / Line::LEN], by_term: false };

    pub(super) fn numbers(&self) -> &[f32] {
        Line::numbers(&self.lines)
    }

    pub(super) fn numbers_mut(&mut self) -> &mut [f32] {
        Line::numbers_mut(&mut self.lines)
    }
}

/// `c[rows, columns] (= | +=) a b` over one chunk of terms, `c` in rows `stride` apart.
#[derive(Debug)]
pub(super) struct Tile<'a> {
    /// Rows of `a`; this tile begins at row `from`.
    pub(super) strip: &'a Strip,
    pub(super) from: usize,
    /// Columns of `b`.
    pub(super) panel: &'a [f32],
    pub(super) depth: usize,
    pub(super) c: &'a mut [f32],
    pub(super) stride: usize,
    pub(super) rows: usize,
    pub(super) columns: usize,
    pub(super) add: bool,
}

/// Computes a tile.
///
/// # Safety
///
/// The processor has the instructions, and the tile lies inside its buffers as [`Kernel::run`] asserts.
pub(super) type Compute = unsafe fn(&mut Tile<'_>);

/// A micro-kernel. Its instructions are those of this processor.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a tile.
    pub(super) columns: usize,
    /// Heights of tiles that `compute` takes, the largest first; the last is 1.
    pub(super) heights: &'static [usize],
    /// Whether a word of the operands is a pair of bf16 rather than one f32.
    pub(super) pairs: bool,
    /// Computes a tile with a height of `heights`.
    pub(super) compute: Compute,
}

impl Kernel {
    /// Computes a tile of any height up to `rows`.
    pub(super) fn run(&self, mut tile: Tile<'_>) {
        let Tile { rows, columns, stride, depth, .. } = tile;
        assert!(0 < rows && rows <= self.rows && 0 < columns && columns <= self.columns && depth <= DEPTH);
        assert!(tile.from == 0 && self.rows <= ROWS && tile.panel.len() >= depth * self.columns);
        assert!(tile.c.len() >= (rows - 1) * stride + columns, "a tile leaves its buffer");
        if self.pairs {
            tile.depth = depth.div_ceil(2);
        }
        let mut left = rows;
        for &height in self.heights {
            while left >= height {
                tile.rows = height;
                // SAFETY: the kernel was chosen for this processor; the asserts above hold for all rows, so they
                // hold for these.
                unsafe { (self.compute)(&mut tile) };
                left -= height;
                tile.from += height;
                let skip = if left > 0 { height * stride } else { 0 };
                tile.c = &mut std::mem::take(&mut tile.c)[skip..];
            }
        }
    }
}
