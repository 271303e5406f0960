//! One tile of a result and the micro-kernels that compute it.

use super::{
    DEPTH, Isa, Profile,
    pack::{self, Strip},
    scalar,
};
#[cfg(target_arch = "x86_64")]
use super::{avx2, avx512, bf16};

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

/// # Safety
///
/// The processor has the instructions, and the tile lies inside its buffers as [`Kernel::run`] asserts.
pub(super) type Compute = unsafe fn(&mut Tile<'_>);

/// A micro-kernel.
#[derive(Debug)]
pub(super) struct Kernel {
    /// Rows of a tile.
    pub(super) rows: usize,
    /// Columns of a tile.
    pub(super) columns: usize,
    /// Heights it computes, the largest first; the last is 1.
    pub(super) heights: &'static [usize],
    /// Whether a word of its operands is a pair of bf16 rather than one f32.
    pub(super) pairs: bool,
    /// Computes a tile whose height is one of `heights`.
    pub(super) compute: Compute,
}

impl Kernel {
    pub(super) fn choose(isa: Isa, profile: Profile) -> &'static Self {
        // A kernel must never be chosen that the processor lacks: `run` relies on it.
        match isa.min(Isa::best()) {
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 if profile == Profile::Fast && is_x86_feature_detected!("avx512bf16") => {
                &bf16::instruction::KERNEL
            }
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::KERNEL,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::KERNEL,
            _ => &scalar::KERNEL,
        }
    }

    /// Computes a tile of any height up to `rows`.
    pub(super) fn run(&self, mut tile: Tile<'_>) {
        let Tile { rows, columns, stride, depth, .. } = tile;
        assert!(0 < rows && rows <= self.rows && 0 < columns && columns <= self.columns && depth <= DEPTH);
        assert!(tile.from == 0 && self.rows <= pack::ROWS && tile.panel.len() >= depth * self.columns);
        assert!(tile.c.len() >= (rows - 1) * stride + columns, "a tile leaves its buffer");
        if self.pairs {
            tile.depth = depth.div_ceil(2);
        }
        let mut left = rows;
        for &height in self.heights {
            while left >= height {
                tile.rows = height;
                // SAFETY: `choose` took a kernel of this processor; the asserts above hold for all rows, so
                // they hold for these.
                unsafe { (self.compute)(&mut tile) };
                left -= height;
                tile.from += height;
                let skip = if left > 0 { height * stride } else { 0 };
                tile.c = &mut std::mem::take(&mut tile.c)[skip..];
            }
        }
    }
}
