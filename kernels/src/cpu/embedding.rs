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
                    Write::Add => {
                        for (x, y) in x.iter_mut().zip(row) {
                            *x += y;
                        }
                    }
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
                for (sum, x) in dtable.row(id as usize).iter_mut().zip(&dx[column..]) {
                    *sum += x;
                }
            }
        },
    );
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend, Error, Write,
        cpu::check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
        random::uniform_u64,
    };

    const IDS: [u32; 7] = [3, 0, 3, 4, 3, 1, 0];

    fn naive(table: &[f64], width: usize) -> Vec<f64> {
        IDS.iter().flat_map(|&id| &table[id as usize * width..][..width]).copied().collect()
    }

    #[test]
    fn gather_and_scatter_agree_with_f64() {
        for width in [1, 5, 16, 130] {
            let (table, dx) = (tensor(5 * width, 1), tensor(7 * width, 2));
            let ids = cpu().ids(&IDS, 5).unwrap();
            let rows = naive(&wide(table.as_slice()), width);
            let mut x = tensor(7 * width, 3);
            let sums: Vec<f64> = rows.iter().zip(x.as_slice()).map(|(r, &x)| r + f64::from(x)).collect();
            cpu().embedding(&mut x, &ids, &table, width, Write::Add).unwrap();
            close(x.as_slice(), &sums, 1e-6);
            cpu().embedding(&mut x, &ids, &table, width, Write::Set).unwrap();
            close(x.as_slice(), &rows, 0.0);

            let slopes = gradients(|t| naive(&t[0], width), &[table.as_slice()], dx.as_slice());
            let mut dtable = tensor(5 * width, 4);
            let before = wide(dtable.as_slice());
            cpu().embedding_backward(&mut dtable, &dx, &ids, width).unwrap();
            let expected: Vec<f64> = slopes[0].iter().zip(before).map(|(s, b)| s + b).collect();
            close(dtable.as_slice(), &expected, 1e-6);
        }
    }

    #[test]
    fn an_id_outside_the_vocabulary_is_refused() {
        let refused = cpu().ids(&[1, 5, 9], 5);
        assert!(matches!(refused, Err(Error::TokenOutOfRange { id: 5, vocab: 5 })));
    }

    #[test]
    fn threads_do_not_show() {
        let (rows, width, vocab) = (500, 150, 11);
        let ids: Vec<u32> = (0..rows).map(|i| (uniform_u64(1, 0, i) % vocab) as u32).collect();
        let dx = tensor(ids.len() * width, 1);
        same_on_any_threads(|cpu| {
            let ids = cpu.ids(&ids, vocab as usize).unwrap();
            let mut dtable = tensor(vocab as usize * width, 2);
            cpu.embedding_backward(&mut dtable, &dx, &ids, width).unwrap();
            let mut x = tensor(rows as usize * width, 3);
            cpu.embedding(&mut x, &ids, &dtable, width, Write::Add).unwrap();
            vec![dtable, x]
        });
    }
}
