//! The product of two matrices, packed and blocked.
//!
//! **One order of summation.** The terms of a number of the result are taken in the order of `k`, in chunks of
//! [`DEPTH`]: a chunk is one chain of fused multiply-adds that starts at zero, and the chunks are added to the
//! result one after the other. Threads, blocks and instruction sets divide rows and columns only, so they do not
//! change the bits.
//!
//! **One way through memory.** Chunk by chunk, a block of columns of `b` is packed into panels as wide as a
//! register tile, which together fill the second cache. Then one job for each panel of rows packs those rows of `a`,
//! which stay in the first cache while all panels of `b` pass by, and a micro-kernel keeps one tile of the result in
//! registers for the whole chunk.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod bf16;
mod choose;
#[cfg(test)]
mod emulated;
mod pack;
mod scalar;
#[cfg(test)]
mod tests;
mod tile;

use super::isa::Isa;
use super::{
    aligned::Line,
    threads::{Team, Threads},
    view::MatrixView,
};
use crate::{Profile, Write};
use tile::{DEPTH, Kernel, Tile};

/// Columns of `b` packed at a time: with [`DEPTH`] terms 0.5 MiB, half of the second cache of a large core.
const BLOCK_COLUMNS: usize = 512;
/// Panels packed side by side: enough to read memory in stretches, few enough that their lines, which compete for the
/// same few places of the first cache, all stay there.
const PANELS_TOGETHER: usize = 4;
/// Multiply-adds below which waking other threads costs more than they save.
const ALONE: usize = 1 << 17;

/// Computes products and keeps their scratch.
#[derive(Debug)]
pub(super) struct Products {
    kernel: &'static Kernel,
    panels: Vec<Line>,
}

impl Products {
    /// Products with the instructions of `isa` and, if `profile` asks for it, of bf16.
    pub(super) fn new(isa: Isa, profile: Profile) -> Self {
        Self::with_kernel(choose::kernel(isa, profile))
    }

    fn with_kernel(kernel: &'static Kernel) -> Self {
        Self { kernel, panels: Vec::new() }
    }

    /// The profile that runs.
    pub(super) fn profile(&self) -> Profile {
        if self.kernel.pairs { Profile::Fast } else { Profile::Repro }
    }

    /// `c[m,n] (= | +=) a[m,k] b[k,n]`, `c` in rows of `n`.
    pub(super) fn run(
        &mut self,
        threads: &Threads,
        c: &mut [f32],
        a: MatrixView<'_>,
        b: MatrixView<'_>,
        [m, n, k]: [usize; 3],
        write: Write,
    ) {
        a.check(m, k);
        b.check(k, n);
        assert!(c.len() >= m * n, "product {m}x{n} leaves its buffer");
        let c = &mut c[..m * n];
        if k == 0 && write == Write::Set {
            c.fill(0.0);
        }
        if c.is_empty() || k == 0 {
            return;
        }
        let team = if m * n * k < ALONE { Team::ALONE } else { threads.team() };
        let width = self.block_columns(n);
        team.inside(|| {
            for first in (0..n).step_by(width) {
                let columns = width.min(n - first);
                for from in (0..k).step_by(DEPTH) {
                    let depth = DEPTH.min(k - from);
                    let add = write == Write::Add || from > 0;
                    self.pack(team, b.part(from, first), columns, depth);
                    self.chunk(team, c, a.part(0, from), [n, first, columns, depth], add);
                }
            }
        });
    }

    /// Columns of a block: whole panels, blocks of about the same size.
    fn block_columns(&self, n: usize) -> usize {
        n.div_ceil(n.div_ceil(BLOCK_COLUMNS)).next_multiple_of(self.kernel.columns)
    }

    fn pack(&mut self, team: Team<'_>, b: MatrixView<'_>, columns: usize, depth: usize) {
        let width = self.kernel.columns;
        let len = columns.div_ceil(width) * DEPTH * width / Line::LEN;
        if self.panels.len() < len {
            self.panels.resize(len, Line::ZERO);
        }
        let (panels, kernel) = (Line::numbers_mut(&mut self.panels[..len]), self.kernel);
        team.chunks(panels, PANELS_TOGETHER * DEPTH * width, |index, panels| {
            let first = index * PANELS_TOGETHER * width;
            let columns = columns - first;
            pack::columns(panels, b.part(0, first), width, columns.min(PANELS_TOGETHER * width), depth);
            if kernel.pairs {
                panels.chunks_mut(DEPTH * width).for_each(|panel| pack::pair_terms(panel, width, depth));
            }
        });
    }

    /// Adds one chunk of terms to columns `first..first + columns` of `c[m,n]`, or sets them to it.
    fn chunk(
        &self,
        team: Team<'_>,
        c: &mut [f32],
        a: MatrixView<'_>,
        [n, first, columns, depth]: [usize; 4],
        add: bool,
    ) {
        let Kernel { rows: height, columns: width, pairs, .. } = *self.kernel;
        let (m, parts) = (c.len() / n, columns.div_ceil(width));
        let panels = Line::numbers(&self.panels).chunks(DEPTH * width).take(parts);
        team.chunks(c, height * n, |index, c| {
            let (row, rows) = (index * height, c.len() / n);
            let next = (row + height < m).then(|| a.part(row + height, 0));
            pack::with_strip(a.part(row, 0), rows, depth, pairs, |strip| {
                for (part, panel) in panels.clone().enumerate() {
                    if let Some(next) = next {
                        pack::fetch(next, height, depth, part, parts);
                    }
                    let at = part * width;
                    let (c, columns) = (&mut c[first + at..], width.min(columns - at));
                    self.kernel.run(Tile { strip, panel, depth, c, stride: n, from: 0, rows, columns, add });
                }
            });
        });
    }
}
