//! Rows of a table, gathered by token id and their gradients scattered back.

use super::{columns, threads::Threads};
use crate::Write;

/// Rows of one job of the gather.
const BLOCK_ROWS: usize = 64;
/// Columns of one job of the scatter: a cache line or more, so that threads do not share lines.
const BLOCK_COLUMNS: usize = 64;

/// `x[N,w] (= | +=) table[ids]`
pub(super) fn gather(
    threads: &Threads,
    x: &mut [f32],
    ids: &[u32],
    table: &[f32],
    width: usize,
    write: Write,
) {
    threads.each(
        x.chunks_mut((BLOCK_ROWS * width).max(1)).zip(ids.chunks(BLOCK_ROWS)),
        #[inline(always)]
        |(x, ids)| {
            for (x, &id) in x.chunks_exact_mut(width).zip(ids) {
                let row = &table[id as usize * width..][..width];
                match write {
                    Write::Set => x.copy_from_slice(row),
                    Write::Add => x.iter_mut().zip(row).for_each(|(x, y)| *x += y),
                }
            }
        },
    );
}

/// `dtable[ids] += dx[N,w]`, rows in order: each job owns some columns of the whole table.
pub(super) fn scatter(threads: &Threads, dtable: &mut [f32], dx: &[f32], ids: &[u32], width: usize) {
    if width == 0 {
        return;
    }
    let rows = dtable.len() / width;
    let block = if threads.count() == 1 { width } else { BLOCK_COLUMNS };
    let jobs = columns::split(&mut dtable[..rows * width], width, rows, block);
    threads.each(
        jobs.zip((0..width).step_by(block)),
        #[inline(always)]
        |(mut dtable, column)| {
            for (&id, dx) in ids.iter().zip(dx.chunks_exact(width)) {
                let sum = dtable.row(id as usize);
                sum.iter_mut().zip(&dx[column..]).for_each(|(sum, x)| *sum += x);
            }
        },
    );
}
