//! Operands copied into the order in which a micro-kernel reads them.

use super::{DEPTH, bf16};
use crate::cpu::{aligned::Line, view::Matrix};
use std::cell::RefCell;

/// Most rows of a strip.
pub(super) const ROWS: usize = 16;
/// Distance of the rows of a strip: one cache line more than a chunk, lest they all compete for a few sets.
pub(super) const PITCH: usize = DEPTH + Line::LEN;
/// Side of the squares that are turned at a time.
const SQUARE: usize = 8;
/// Rows that are fetched ahead of the one copied: about what memory delivers at once to a core.
const TERMS_AHEAD: usize = 8;

/// A chunk of terms of some rows of the left factor, in the order that needs no turning.
#[derive(Debug)]
pub(super) struct Strip {
    lines: [Line; ROWS * PITCH / Line::LEN],
    /// Whether the numbers of one term lie side by side, [`ROWS`] apart from the next, or else those of one
    /// row, [`PITCH`] apart from the next.
    pub(super) by_term: bool,
}

thread_local! {
    static STRIP: RefCell<Strip> =
        const { RefCell::new(Strip { lines: [Line::ZERO; ROWS * PITCH / Line::LEN], by_term: false }) };
}

impl Strip {
    /// Packs `a[rows, depth]` into this thread's strip and lends it to `work`.
    pub(super) fn with(a: Matrix<'_>, rows: usize, depth: usize, pairs: bool, work: impl FnOnce(&Self)) {
        STRIP.with_borrow_mut(|strip| {
            strip.pack(a, rows, depth);
            if pairs {
                strip.pair(rows, depth);
            }
            work(strip);
        });
    }

    pub(super) fn numbers(&self) -> &[f32] {
        Line::numbers(&self.lines)
    }

    fn pack(&mut self, a: Matrix<'_>, rows: usize, depth: usize) {
        self.by_term = by_term(a);
        let lines = Line::numbers_mut(&mut self.lines);
        if self.by_term {
            return copy_terms(lines.as_chunks_mut().0, a, rows, depth);
        }
        for (row, line) in lines.chunks_exact_mut(PITCH).take(rows).enumerate() {
            if a.column_stride == 1 {
                line[..depth].copy_from_slice(&a.data[row * a.row_stride..][..depth]);
            } else {
                (0..depth).for_each(|term| line[term] = a.at(row, term));
            }
        }
    }

    fn pair(&mut self, rows: usize, depth: usize) {
        let lines = Line::numbers_mut(&mut self.lines);
        if self.by_term {
            return bf16::pair_terms(lines, ROWS, depth);
        }
        for line in lines.chunks_exact_mut(PITCH).take(rows) {
            bf16::pair_terms(line, 1, depth);
        }
    }
}

/// Whether the numbers of a term lie side by side rather than those of a row.
fn by_term(a: Matrix<'_>) -> bool {
    a.row_stride == 1 && a.column_stride != 1
}

/// Copies the first `rows` numbers of each term, and more behind them that are never read: a copy of known length is a
/// few moves rather than a call. The last terms may have no more behind them.
fn copy_terms(lines: &mut [[f32; ROWS]], a: Matrix<'_>, rows: usize, depth: usize) {
    let whole = a.data.len().checked_sub(ROWS).map_or(0, |last| last / a.column_stride + 1).min(depth);
    let (whole_lines, lines) = lines[..depth].split_at_mut(whole);
    for (term, line) in whole_lines.iter_mut().enumerate() {
        line.copy_from_slice(&a.data[term * a.column_stride..][..ROWS]);
    }
    for (term, line) in (whole..).zip(lines) {
        line[..rows].copy_from_slice(&a.data[term * a.column_stride..][..rows]);
    }
}

/// Fetches part `part` of `parts` of what a strip will be packed from, so that packing does not wait for memory.
/// Fetching beyond the last row does no harm.
pub(super) fn fetch(a: Matrix<'_>, rows: usize, depth: usize, part: usize, parts: usize) {
    if by_term(a) {
        // The last row of a term, as the first has come with the strip before.
        return (part..depth).step_by(parts).for_each(|term| fetch_line(a, rows - 1, term));
    }
    for term in (part * Line::LEN..depth).step_by(parts * Line::LEN) {
        (0..rows).for_each(|row| fetch_line(a, row, term));
    }
}

/// Fetches the line with this number into the second cache. It may lie outside the matrix.
fn fetch_line(a: Matrix<'_>, row: usize, column: usize) {
    let at = a.data.as_ptr().wrapping_add(row * a.row_stride + column * a.column_stride);
    #[cfg(target_arch = "x86_64")]
    // SAFETY: every x86-64 has it, and it may name any address.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T1>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Packs `b[depth, columns]` into panels of [`DEPTH`] rows of `width`; missing columns are 0.
pub(super) fn columns(panels: &mut [f32], b: Matrix<'_>, width: usize, columns: usize, depth: usize) {
    if !columns.is_multiple_of(width) {
        panels[columns / width * DEPTH * width..][..depth * width].fill(0.0);
    }
    match (b.column_stride, width) {
        // Copies of known length are a few moves rather than a call.
        (1, 32) => copy::<32>(panels, b, columns, depth),
        (1, 16) => copy::<16>(panels, b, columns, depth),
        (1, _) => unreachable!("no micro-kernel is {width} columns wide"),
        _ => {
            for (panel, first) in panels.chunks_mut(DEPTH * width).zip((0..columns).step_by(width)) {
                turn_all(panel, b.part(0, first), width, width.min(columns - first), depth);
            }
        }
    }
}

/// Row by row over all panels, so that memory is read as it lies.
fn copy<const WIDTH: usize>(panels: &mut [f32], b: Matrix<'_>, columns: usize, depth: usize) {
    for term in 0..depth {
        // A few lines from each of many rows: no processor guesses which are next.
        (0..columns).step_by(Line::LEN).for_each(|column| fetch_line(b, term + TERMS_AHEAD, column));
        let row = &b.data[term * b.row_stride..][..columns];
        let (whole, cut) = row.as_chunks::<WIDTH>();
        let mut panels = panels.chunks_exact_mut(DEPTH * WIDTH);
        for (part, panel) in whole.iter().zip(panels.by_ref()) {
            panel[term * WIDTH..][..WIDTH].copy_from_slice(part);
        }
        if let Some(panel) = panels.next() {
            panel[term * WIDTH..][..cut.len()].copy_from_slice(cut);
        }
    }
}

/// Copies `b[depth, columns]`, whose rows are not contiguous, into rows of `width`.
fn turn_all(panel: &mut [f32], b: Matrix<'_>, width: usize, columns: usize, depth: usize) {
    for column in (0..columns).step_by(SQUARE) {
        for term in (0..depth).step_by(SQUARE) {
            let (part, to) = (b.part(term, column), &mut panel[term * width + column..]);
            turn(to, part, width, SQUARE.min(columns - column), SQUARE.min(depth - term));
        }
    }
}

/// Copies `b[terms, columns]`, whose columns are contiguous or nearly so, into rows of `width`.
fn turn(to: &mut [f32], b: Matrix<'_>, width: usize, columns: usize, terms: usize) {
    if columns == SQUARE && terms == SQUARE && b.row_stride == 1 {
        let mut square = [[0.0; SQUARE]; SQUARE];
        for column in 0..SQUARE {
            let from = &b.data[column * b.column_stride..][..SQUARE];
            for term in 0..SQUARE {
                square[term][column] = from[term];
            }
        }
        for term in 0..SQUARE {
            to[term * width..][..SQUARE].copy_from_slice(&square[term]);
        }
        return;
    }
    for term in 0..terms {
        for column in 0..columns {
            to[term * width + column] = b.at(term, column);
        }
    }
}
