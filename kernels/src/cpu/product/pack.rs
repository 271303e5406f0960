//! Copies operands into the order in which a micro-kernel reads them.

use super::tile::{DEPTH, PITCH, ROWS, Strip};
use crate::cpu::{aligned::Line, view::MatrixView};
use std::cell::RefCell;

/// Side of the squares that are turned at a time.
const SQUARE: usize = 8;
/// Rows fetched ahead of the one copied: about as many as memory delivers to a core at once.
const TERMS_AHEAD: usize = 8;

thread_local! {
    static STRIP: RefCell<Strip> = const { RefCell::new(Strip::EMPTY) };
}

/// Packs `a[rows, depth]` into this thread's strip and lends it to `work`.
pub(super) fn with_strip(
    a: MatrixView<'_>,
    rows: usize,
    depth: usize,
    pairs: bool,
    work: impl FnOnce(&Strip),
) {
    STRIP.with_borrow_mut(|strip| {
        pack_strip(strip, a, rows, depth);
        if pairs {
            pair_strip(strip, rows, depth);
        }
        work(strip);
    });
}

fn pack_strip(strip: &mut Strip, a: MatrixView<'_>, rows: usize, depth: usize) {
    strip.by_term = by_term(a);
    if strip.by_term {
        return copy_terms(strip.numbers_mut().as_chunks_mut().0, a, rows, depth);
    }
    for (row, line) in strip.numbers_mut().chunks_exact_mut(PITCH).take(rows).enumerate() {
        if a.column_stride == 1 {
            line[..depth].copy_from_slice(&a.data[row * a.row_stride..][..depth]);
        } else {
            (0..depth).for_each(|term| line[term] = a.at(row, term));
        }
    }
}

fn pair_strip(strip: &mut Strip, rows: usize, depth: usize) {
    if strip.by_term {
        return pair_terms(strip.numbers_mut(), ROWS, depth);
    }
    for line in strip.numbers_mut().chunks_exact_mut(PITCH).take(rows) {
        pair_terms(line, 1, depth);
    }
}

/// Whether the numbers of a term lie side by side rather than those of a row.
fn by_term(a: MatrixView<'_>) -> bool {
    a.row_stride == 1 && a.column_stride != 1
}

/// Copies the first `rows` numbers of each term, and further numbers that are never read: a copy of known length is a
/// few moves rather than a call. From the last terms, which may have no further numbers, it copies exactly `rows`.
fn copy_terms(lines: &mut [[f32; ROWS]], a: MatrixView<'_>, rows: usize, depth: usize) {
    let whole = a.data.len().checked_sub(ROWS).map_or(0, |last| last / a.column_stride + 1).min(depth);
    let (whole_lines, lines) = lines[..depth].split_at_mut(whole);
    for (term, line) in whole_lines.iter_mut().enumerate() {
        line.copy_from_slice(&a.data[term * a.column_stride..][..ROWS]);
    }
    for (term, line) in (whole..).zip(lines) {
        line[..rows].copy_from_slice(&a.data[term * a.column_stride..][..rows]);
    }
}

/// Fetches part `part` of `parts` of the numbers of the next strip, so that its packing does not wait for memory. A
/// fetch beyond the last row is harmless.
pub(super) fn fetch(a: MatrixView<'_>, rows: usize, depth: usize, part: usize, parts: usize) {
    if by_term(a) {
        // The last row of a term, as the first has come with the strip before.
        return (part..depth).step_by(parts).for_each(|term| fetch_line(a, rows - 1, term));
    }
    for term in (part * Line::LEN..depth).step_by(parts * Line::LEN) {
        (0..rows).for_each(|row| fetch_line(a, row, term));
    }
}

/// Fetches the line of number `(row, column)`, which may lie outside the matrix, into the second cache.
fn fetch_line(a: MatrixView<'_>, row: usize, column: usize) {
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
pub(super) fn columns(panels: &mut [f32], b: MatrixView<'_>, width: usize, columns: usize, depth: usize) {
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
fn copy<const WIDTH: usize>(panels: &mut [f32], b: MatrixView<'_>, columns: usize, depth: usize) {
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

/// Copies `b[depth, columns]` with non-contiguous rows into rows of `width`.
fn turn_all(panel: &mut [f32], b: MatrixView<'_>, width: usize, columns: usize, depth: usize) {
    for column in (0..columns).step_by(SQUARE) {
        for term in (0..depth).step_by(SQUARE) {
            let (part, to) = (b.part(term, column), &mut panel[term * width + column..]);
            turn(to, part, width, SQUARE.min(columns - column), SQUARE.min(depth - term));
        }
    }
}

/// Copies `b[terms, columns]` with contiguous or nearly contiguous columns into rows of `width`.
fn turn(to: &mut [f32], b: MatrixView<'_>, width: usize, columns: usize, terms: usize) {
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
