//! The residual stream at a cut: anchors of tokens, coordinates in a subspace.

use super::{
    packing::{self, Packer},
    product::Products,
    scratch::Scratch,
    threads::Threads,
    view::MatrixView,
};
use crate::{
    Write,
    random::{Domain, LANES, key, philox_lanes},
};
use std::ops::Range;

/// Rows of one job.
const BLOCK_ROWS: usize = 32;
/// Coordinates of a block that is projected and packed, or unpacked and lifted: 256 KiB, which stay in the second
/// cache.
const CACHED: usize = 1 << 16;
/// Least rows of such a block: the product packs the basis again for every block.
const CACHED_ROWS_MIN: usize = 1024;
/// Deviation of a sum of eight uniform bytes: sqrt(8 (256^2 - 1) / 12).
const DEVIATION: f64 = 209.022_327_2;

/// `x[N,d] = scale * E0[ids]`
///
/// Column `c` of token `id` is made from Philox at counter `(16 (c / 32) + c % 16, id, 0, 0)` in the anchor domain
/// of `seed`: the sum of the eight bytes of words 0 and 1 if `c / 16` is even, of words 2 and 3 if it is odd,
/// centred, times `scale / deviation` in f32.
pub(super) fn anchor(threads: &Threads, x: &mut [f32], ids: &[u32], seed: u64, width: usize, scale: f32) {
    let key = key(seed, Domain::Anchor);
    let factor = (f64::from(scale) / DEVIATION) as f32;
    threads.each(
        x.chunks_mut((BLOCK_ROWS * width).max(1)).zip(ids.chunks(BLOCK_ROWS)),
        #[inline(always)]
        |(x, ids)| {
            for (x, &id) in x.chunks_exact_mut(width).zip(ids) {
                anchor_row(x, id, key, factor);
            }
        },
    );
}

#[inline(always)]
fn anchor_row(x: &mut [f32], id: u32, key: [u32; 2], factor: f32) {
    for (group, x) in (0u32..).zip(x.chunks_mut(2 * LANES)) {
        let [a, b, c, d] = philox_lanes(group * LANES as u32, [id, 0, 0], key);
        let mut values = [0.0; 2 * LANES];
        for lane in 0..LANES {
            values[lane] = (bytes(a[lane]) + bytes(b[lane])) as i32 as f32;
            values[LANES + lane] = (bytes(c[lane]) + bytes(d[lane])) as i32 as f32;
        }
        for (x, value) in x.iter_mut().zip(values) {
            *x = (value - 1020.0) * factor;
        }
    }
}

/// Sum of the four bytes of a word.
#[inline(always)]
fn bytes(word: u32) -> u32 {
    let pairs = (word & 0x00FF_00FF) + ((word >> 8) & 0x00FF_00FF);
    (pairs & 0xFFFF) + (pairs >> 16)
}

/// `z[N,k] (= | +=) x[N,d] basis[k,d]^T`
pub(super) fn project(
    products: &mut Products,
    threads: &Threads,
    z: &mut [f32],
    x: &[f32],
    basis: &[f32],
    rows: usize,
    width: usize,
    code: usize,
    write: Write,
) {
    let (x, basis) = (MatrixView::rows(x, width), MatrixView::rows(basis, width).transposed());
    products.run(threads, z, x, basis, [rows, code, width], write);
}

/// `x[N,d] = anchor[N,d] + z[N,k] basis[k,d]`
pub(super) fn reconstruct(
    products: &mut Products,
    threads: &Threads,
    x: &mut [f32],
    z: &[f32],
    basis: &[f32],
    anchor: &[f32],
    rows: usize,
    width: usize,
    code: usize,
) {
    x[..rows * width].copy_from_slice(&anchor[..rows * width]);
    let (z, basis) = (MatrixView::rows(z, code), MatrixView::rows(basis, width));
    products.run(threads, x, z, basis, [rows, width, code], Write::Add);
}

/// `bytes =` packed `x[N,d] basis[k,d]^T`, in blocks of rows, so the coordinates are never in memory all together.
/// `packer` packs the coordinates.
pub(super) fn project_pack(
    products: &mut Products,
    threads: &Threads,
    scratch: &Scratch,
    packer: &Packer<'_>,
    bytes: &mut [u8],
    x: &[f32],
    basis: &[f32],
    rows: usize,
    width: usize,
    code: usize,
) {
    each_block(scratch, rows, code, |block, z| {
        let x = &x[block.start * width..];
        project(products, threads, z, x, basis, block.len(), width, code, Write::Set);
        packer.pack(&mut bytes[packer.bytes_of(&block)], z, block.start);
    });
}

/// `x[N,d] = anchor[N,d] + z[N,k] basis[k,d]` with the packed coordinates `bytes`, as [`project_pack`].
pub(super) fn unpack_reconstruct(
    products: &mut Products,
    threads: &Threads,
    scratch: &Scratch,
    packer: &Packer<'_>,
    x: &mut [f32],
    bytes: &[u8],
    basis: &[f32],
    anchor: &[f32],
    rows: usize,
    width: usize,
    code: usize,
) {
    each_block(scratch, rows, code, |block, z| {
        packer.unpack(z, &bytes[packer.bytes_of(&block)], block.start);
        let (x, anchor) = (&mut x[block.start * width..], &anchor[block.start * width..]);
        reconstruct(products, threads, x, z, basis, anchor, block.len(), width, code);
    });
}

/// Calls `work` with block after block of the rows and room for their coordinates.
fn each_block(scratch: &Scratch, rows: usize, code: usize, mut work: impl FnMut(Range<usize>, &mut [f32])) {
    let len = block_rows(code);
    let mut z = scratch.take(len.min(rows) * code);
    for first in (0..rows).step_by(len) {
        let block = first..rows.min(first + len);
        let z = &mut z[..block.len() * code];
        work(block, z);
    }
}

/// Rows of coordinates of width `code` that are cached together: whole jobs of the packing.
fn block_rows(code: usize) -> usize {
    (CACHED / code.max(1)).max(CACHED_ROWS_MIN).next_multiple_of(packing::BLOCK_ROWS)
}

#[cfg(test)]
mod tests {
    use super::block_rows;
    use crate::{
        Backend, PackedFormat, RoundingKey, Write,
        cpu::check::{close, cpu, gradients, same_on_any_threads, tensor, wide},
        random::orthonormal_rows,
    };

    #[test]
    fn anchors_are_near_normal_rows_of_their_ids() {
        let (width, vocab) = (256, 400);
        let all: Vec<u32> = (0..vocab).collect();
        let ids = cpu().ids(&all, 400).unwrap();
        let mut x = tensor(400 * width, 1);
        cpu().anchor(&mut x, &ids, 5, width, 3.0).unwrap();
        let moment = |power| {
            x.as_slice().iter().map(|&x| (f64::from(x) / 3.0).powi(power)).sum::<f64>()
                / x.as_slice().len() as f64
        };
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.015, "{} {}", moment(1), moment(2));
        // Eight uniforms: kurtosis 3 - 1.2/8.
        assert!((moment(4) - 2.85).abs() < 0.06, "{}", moment(4));

        let some = cpu().ids(&[7, 399, 7], 400).unwrap();
        let mut y = tensor(3 * width, 1);
        cpu().anchor(&mut y, &some, 5, width, 3.0).unwrap();
        let row = |r: usize| &x.as_slice()[r * width..][..width];
        assert_eq!(y.as_slice(), [row(7), row(399), row(7)].concat());
        cpu().anchor(&mut y, &some, 6, width, 3.0).unwrap();
        assert_ne!(&y.as_slice()[..width], row(7));
    }

    #[test]
    fn an_odd_width_is_a_prefix() {
        let ids = cpu().ids(&[3], 4).unwrap();
        let (mut odd, mut even) = (tensor(5, 1), tensor(6, 1));
        cpu().anchor(&mut odd, &ids, 1, 5, 1.0).unwrap();
        cpu().anchor(&mut even, &ids, 1, 6, 1.0).unwrap();
        assert_eq!(odd.as_slice(), &even.as_slice()[..5]);
    }

    #[test]
    fn projection_undoes_reconstruction() {
        let (rows, width, code) = (9, 24, 5);
        let basis = orthonormal_rows(1, code, width).into();
        let (z, anchor) = (tensor(rows * code, 1), tensor(rows * width, 2));
        let (mut x, mut back) = (tensor(rows * width, 3), tensor(rows * code, 4));
        cpu().reconstruct(&mut x, &z, &basis, &anchor, rows, width, code).unwrap();
        cpu().add_scaled(&mut x, &anchor, -1.0, rows * width).unwrap();
        cpu().project(&mut back, &x, &basis, rows, width, code, Write::Set).unwrap();
        close(back.as_slice(), &wide(z.as_slice()), 2e-6);
        cpu().project(&mut back, &x, &basis, rows, width, code, Write::Add).unwrap();
        let twice: Vec<f64> = wide(z.as_slice()).iter().map(|z| 2.0 * z).collect();
        close(back.as_slice(), &twice, 4e-6);
    }

    /// `inputs` are `z`, `basis` and `anchor`.
    fn naive_reconstruct(inputs: &[Vec<f64>], width: usize, code: usize) -> Vec<f64> {
        let (z, basis, anchor) = (&inputs[0], &inputs[1], &inputs[2]);
        let at = |i: usize| {
            let (row, column) = (i / width, i % width);
            let sum: f64 = (0..code).map(|k| z[row * code + k] * basis[k * width + column]).sum();
            anchor[i] + sum
        };
        (0..anchor.len()).map(at).collect()
    }

    #[test]
    fn projection_is_the_backward_of_reconstruction() {
        for (rows, width, code) in [(1, 1, 1), (3, 8, 5), (4, 17, 2)] {
            let (z, basis) = (tensor(rows * code, 1), tensor(code * width, 2));
            let (anchor, dx) = (tensor(rows * width, 3), tensor(rows * width, 4));
            let inputs = [&z, &basis, &anchor].map(|x| x.as_slice());
            let mut x = tensor(rows * width, 5);
            cpu().reconstruct(&mut x, &z, &basis, &anchor, rows, width, code).unwrap();
            close(x.as_slice(), &naive_reconstruct(&inputs.map(wide), width, code), 2e-6);

            let slopes = gradients(|x| naive_reconstruct(x, width, code), &inputs, dx.as_slice());
            let mut dz = tensor(rows * code, 6);
            cpu().project(&mut dz, &dx, &basis, rows, width, code, Write::Set).unwrap();
            close(dz.as_slice(), &slopes[0], 2e-6);
        }
    }

    /// Bytes and numbers are the same in one pass and in two.
    #[test]
    fn one_pass_is_the_sequence_of_two() {
        let key = RoundingKey { run: 3, tensor: 1 << 40 };
        // More than one block of rows; the last one is short.
        let long = (2 * block_rows(96) + 17, 40, 96);
        for (rows, width, code) in [(0, 3, 2), (1, 1, 1), (9, 24, 5), (70, 300, 64), long, (3, 4, 0)] {
            let (x, basis, anchor) =
                (tensor(rows * width, 1), tensor(code * width, 2), tensor(rows * width, 3));
            for format in [PackedFormat::F32, PackedFormat::Bf16, PackedFormat::Q8, PackedFormat::Q4] {
                let (mut z, mut want, mut got) = (tensor(rows * code, 4), Vec::new(), vec![7; 3]);
                cpu().project(&mut z, &x, &basis, rows, width, code, Write::Set).unwrap();
                cpu().pack(&mut want, &z, rows, code, format, key).unwrap();
                cpu().project_pack(&mut got, &x, &basis, rows, width, code, format, key).unwrap();
                assert_eq!(got, want, "{rows}x{width} to {code}, {format:?}");

                let [mut want, mut back] = [5, 6].map(|stream| tensor(rows * width, stream));
                cpu().unpack(&mut z, &got, rows, code, format, key).unwrap();
                cpu().reconstruct(&mut want, &z, &basis, &anchor, rows, width, code).unwrap();
                cpu()
                    .unpack_reconstruct(&mut back, &got, &basis, &anchor, rows, width, code, format, key)
                    .unwrap();
                assert_eq!(back, want, "{rows}x{width} from {code}, {format:?}");
            }
        }
    }

    #[test]
    fn one_pass_refuses_the_rows_that_two_refuse() {
        let (key, code) = (RoundingKey { run: 3, tensor: 5 }, 1024);
        let (rows, width) = (3 * block_rows(code), 2);
        let basis = tensor(code * width, 2);
        let cases: [&[(usize, f32)]; 4] = [
            &[(70, f32::NAN)],
            &[(5, f32::MAX)],
            &[(5, f32::MAX), (90, f32::INFINITY)],
            &[(90, f32::NAN), (40, f32::NAN)],
        ];
        for format in [PackedFormat::F32, PackedFormat::Bf16, PackedFormat::Q8, PackedFormat::Q4] {
            for case in cases {
                let mut x = tensor(rows * width, 1);
                case.iter().for_each(|&(row, bad)| x.as_mut_slice()[row * width] = bad);
                let (mut z, mut bytes) = (tensor(rows * code, 3), Vec::new());
                cpu().project(&mut z, &x, &basis, rows, width, code, Write::Set).unwrap();
                let want = cpu().pack(&mut bytes, &z, rows, code, format, key);
                let got = cpu().project_pack(&mut bytes, &x, &basis, rows, width, code, format, key);
                assert_eq!(format!("{got:?}"), format!("{want:?}"), "{case:?}, {format:?}");
            }
            let len = format.packed_len(rows, code).unwrap();
            for bytes in [vec![0xFF; len], vec![0; len - 1]] {
                let (mut z, mut x, anchor) =
                    (tensor(rows * code, 3), tensor(rows * width, 4), tensor(rows * width, 5));
                let want = cpu().unpack(&mut z, &bytes, rows, code, format, key);
                let got =
                    cpu().unpack_reconstruct(&mut x, &bytes, &basis, &anchor, rows, width, code, format, key);
                assert_eq!(format!("{got:?}"), format!("{want:?}"), "{format:?}");
            }
        }
    }

    #[test]
    fn threads_do_not_show() {
        let (rows, width, code) = (100, 48, 6);
        let basis = orthonormal_rows(1, code, width).into();
        let z = tensor(rows * code, 1);
        let ids: Vec<u32> = (0..rows as u32).collect();
        same_on_any_threads(|cpu| {
            let ids = cpu.ids(&ids, rows).unwrap();
            let [mut anchor, mut x] = [2, 3].map(|stream| tensor(rows * width, stream));
            let mut back = tensor(rows * code, 4);
            cpu.anchor(&mut anchor, &ids, 1, width, 1.0).unwrap();
            cpu.reconstruct(&mut x, &z, &basis, &anchor, rows, width, code).unwrap();
            cpu.project(&mut back, &x, &basis, rows, width, code, Write::Set).unwrap();
            vec![anchor, x, back]
        });
    }
}
