//! Numbers to bytes and back; [`PackedFormat`] has the layout.
//!
//! A row is taken in passes, each a plain loop over the whole row that fills vector registers; between two passes
//! the row stays in the first cache.

use super::{
    scratch::{Loan, Scratch},
    threads::Threads,
};
use crate::{
    PackedFormat, PackingError, RoundingKey,
    random::{Domain, LANES, high, key as domain_key, low, philox4x32},
};
use half::bf16;
use pulp::Arch;
use std::{
    hint::black_box,
    ops::Range,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Rows of one job.
pub(super) const BLOCK_ROWS: usize = 32;
/// Numbers rounded by one group of sixteen Philox calls: eight 16-bit halves each.
const GROUP: usize = 8 * LANES;
/// Added to a small integer, it leaves that integer in the low bits of the sum: 1.5 * 2^23.
const INTEGER: f32 = 12_582_912.0;
/// The bits of infinity: what is not below, without its sign, is not finite.
const INFINITE: i32 = 0x7F80_0000;

/// Packs or unpacks the rows of one tensor, in one piece or block by block, and gathers what is wrong with them.
#[derive(Debug)]
pub(super) struct Packer<'a> {
    threads: &'a Threads,
    scratch: &'a Scratch,
    format: PackedFormat,
    width: usize,
    quantiser: Quantiser<'a>,
    not_finite: FirstRow,
    overflowing: FirstRow,
}

impl<'a> Packer<'a> {
    pub(super) fn new(
        threads: &'a Threads,
        scratch: &'a Scratch,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Self {
        let fused = !matches!(threads.arch(), Arch::Scalar);
        let top = format.top_level();
        let quantiser = Quantiser::new(scratch, if top > 0 { width } else { 0 }, top, fused, key);
        let (not_finite, overflowing) = (FirstRow::default(), FirstRow::default());
        Self { threads, scratch, format, width, quantiser, not_finite, overflowing }
    }

    /// Packs the rows `x[_,width]`, which are those from `first` on, into `bytes`, which has their packed length.
    pub(super) fn pack(&self, bytes: &mut [u8], x: &[f32], first: usize) {
        if self.width == 0 {
            bytes.fill(0);
            return;
        }
        let blocks = bytes.chunks_mut(BLOCK_ROWS * self.row_bytes()).zip(x.chunks(BLOCK_ROWS * self.width));
        self.threads.each(
            (first..).step_by(BLOCK_ROWS).zip(blocks),
            #[inline(always)]
            |(first, (bytes, x))| match self.format {
                PackedFormat::F32 => self.pack_each(bytes, x, first, f32_bytes),
                PackedFormat::Bf16 => self.pack_each(bytes, x, first, bf16_bytes),
                PackedFormat::Q8 | PackedFormat::Q4 => self.pack_levels(bytes, x, first),
            },
        );
    }

    /// Reads the rows `x[_,width]`, which are those from `first` on, from `bytes`, which has their packed length.
    pub(super) fn unpack(&self, x: &mut [f32], bytes: &[u8], first: usize) {
        if self.width == 0 {
            return;
        }
        let blocks = x.chunks_mut(BLOCK_ROWS * self.width).zip(bytes.chunks(BLOCK_ROWS * self.row_bytes()));
        self.threads.each(
            (first..).step_by(BLOCK_ROWS).zip(blocks),
            #[inline(always)]
            |(first, (x, bytes))| match self.format {
                PackedFormat::F32 => self.unpack_each(x, bytes, first, u32::from_le_bytes),
                PackedFormat::Bf16 => self.unpack_each(x, bytes, first, bf16_bits),
                PackedFormat::Q8 | PackedFormat::Q4 => self.unpack_levels(x, bytes, first),
            },
        );
    }

    /// Refuses the first row with a number that is not finite, else the first one that overflows the format.
    pub(super) fn check(self) -> Result<(), PackingError> {
        match self.not_finite.found().or_else(|| self.overflowing.found()) {
            Some(row) => Err(PackingError::NonFinite { row }),
            None => Ok(()),
        }
    }

    /// Where the packed `rows` lie.
    pub(super) fn bytes_of(&self, rows: &Range<usize>) -> Range<usize> {
        rows.start * self.row_bytes()..rows.end * self.row_bytes()
    }

    /// Bytes of a packed row.
    fn row_bytes(&self) -> usize {
        // The width is that of numbers in memory.
        self.format.packed_len(1, self.width).unwrap_or_default()
    }

    /// Packs every number by itself; `encode` also gives the bits of what will be read.
    #[inline(always)]
    fn pack_each<const N: usize>(
        &self,
        bytes: &mut [u8],
        x: &[f32],
        first: usize,
        encode: impl Fn(u32) -> ([u8; N], u32),
    ) {
        let rows = bytes.chunks_exact_mut(N * self.width).zip(x.chunks_exact(self.width));
        for (row, (bytes, x)) in (first..).zip(rows) {
            let (mut largest, mut packed) = (0, 0);
            for (bytes, x) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(x) {
                let bits = x.to_bits();
                let (encoded, read) = encode(bits);
                *bytes = encoded;
                largest = largest.max(magnitude(bits));
                packed = packed.max(magnitude(read));
            }
            if largest >= INFINITE {
                self.not_finite.add(row);
            } else if packed >= INFINITE {
                self.overflowing.add(row);
            }
        }
    }

    #[inline(always)]
    fn unpack_each<const N: usize>(
        &self,
        x: &mut [f32],
        bytes: &[u8],
        first: usize,
        decode: impl Fn([u8; N]) -> u32,
    ) {
        let rows = x.chunks_exact_mut(self.width).zip(bytes.chunks_exact(N * self.width));
        for (row, (x, bytes)) in (first..).zip(rows) {
            let mut largest = 0;
            for (x, bytes) in x.iter_mut().zip(bytes.as_chunks::<N>().0) {
                let bits = decode(*bytes);
                *x = f32::from_bits(bits);
                largest = largest.max(magnitude(bits));
            }
            if largest >= INFINITE {
                self.not_finite.add(row);
            }
        }
    }

    #[inline(always)]
    fn pack_levels(&self, bytes: &mut [u8], x: &[f32], first: usize) {
        let (quantiser, width) = (&self.quantiser, self.width);
        let groups = width.div_ceil(GROUP);
        let mut loan = self.scratch.take(width + groups * GROUP);
        let [turned, uniforms] = loan.parts([width, groups * GROUP]);
        let rows = bytes.chunks_exact_mut(self.row_bytes()).zip(x.chunks_exact(width));
        for (row, (bytes, x)) in (first..).zip(rows) {
            let largest = largest_bits(x);
            if largest >= INFINITE {
                self.not_finite.add(row);
            } else if f32::from_bits(largest as u32) >= quantiser.limit {
                self.overflowing.add(row);
            } else {
                quantiser.pack_row(bytes, x, row, turned, uniforms);
            }
        }
    }

    #[inline(always)]
    fn unpack_levels(&self, x: &mut [f32], bytes: &[u8], first: usize) {
        let rows = x.chunks_exact_mut(self.width).zip(bytes.chunks_exact(self.row_bytes()));
        for (row, (x, bytes)) in (first..).zip(rows) {
            self.quantiser.unpack_row(x, bytes);
            if largest_bits(x) >= INFINITE {
                self.not_finite.add(row);
            }
        }
    }
}

/// The first of the rows that jobs on any thread found.
#[derive(Debug)]
struct FirstRow(AtomicUsize);

impl Default for FirstRow {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

impl FirstRow {
    fn add(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    fn found(self) -> Option<usize> {
        let row = self.0.into_inner();
        (row < usize::MAX).then_some(row)
    }
}

/// The bits of `|x|`, in the order of the numbers, with NaN on top; signed, as every instruction set compares those.
#[inline(always)]
fn magnitude(bits: u32) -> i32 {
    (bits & 0x7FFF_FFFF) as i32
}

/// The bits of the largest magnitude of `x`, 0 if there is none.
#[inline(always)]
fn largest_bits(x: &[f32]) -> i32 {
    let mut largest = 0;
    for x in x {
        largest = largest.max(magnitude(x.to_bits()));
    }
    largest
}

#[inline(always)]
fn f32_bytes(bits: u32) -> ([u8; 4], u32) {
    (bits.to_le_bytes(), bits)
}

/// Rounds to nearest even, which can carry the largest numbers over to infinity; not for NaN.
#[inline(always)]
fn bf16_bytes(bits: u32) -> ([u8; 2], u32) {
    let rounded = bits.wrapping_add(0x7FFF + (bits >> 16 & 1));
    (((rounded >> 16) as u16).to_le_bytes(), rounded & 0xFFFF_0000)
}

#[inline(always)]
fn bf16_bits(bytes: [u8; 2]) -> u32 {
    u32::from(u16::from_le_bytes(bytes)) << 16
}

/// The rotation and rounding of one tensor in `Q8` or `Q4`.
#[derive(Debug)]
struct Quantiser<'a> {
    /// Largest level.
    top: i8,
    /// Width of a Hadamard block.
    block: usize,
    /// Whether multiply-adds are instructions.
    fused: bool,
    /// Magnitude from which adding up a block, here or in unpacking, could overflow.
    limit: f32,
    /// `+-1/sqrt(block)` per column.
    signs: Loan<'a>,
    rounding: [u32; 2],
    tensor: u64,
}

impl<'a> Quantiser<'a> {
    fn new(scratch: &'a Scratch, width: usize, top: i8, fused: bool, key: RoundingKey) -> Self {
        let block = if width == 0 { 1 } else { 1 << width.trailing_zeros() };
        let root = (block as f32).sqrt();
        let mut signs = scratch.take(width);
        draw_signs(&mut signs, 1.0 / root, key);
        Self {
            top,
            block,
            fused,
            limit: f32::MAX / (2.0 * root * root * root),
            signs,
            rounding: domain_key(key.run, Domain::Rounding),
            tensor: key.tensor,
        }
    }

    /// Packs row `row` of the tensor; the last two are scratch.
    #[inline(always)]
    fn pack_row(&self, bytes: &mut [u8], x: &[f32], row: usize, turned: &mut [f32], uniforms: &mut [f32]) {
        for ((turned, x), sign) in turned.iter_mut().zip(x).zip(&self.signs[..]) {
            *turned = x * sign;
        }
        hadamard(turned, self.block, self.fused);
        let scale = self.scale(turned);
        let (head, body) = bytes.split_at_mut(2);
        head.copy_from_slice(&scale.to_le_bytes());
        if scale == bf16::ZERO {
            body.fill(0);
            return;
        }
        self.draw_uniforms(uniforms, row);
        let (inverse, top) = (1.0 / scale.to_f32(), f32::from(self.top));
        if self.top == 7 {
            let ((pairs, odd), (drawn, _)) = (turned.as_chunks::<2>(), uniforms.as_chunks::<2>());
            for ((byte, x), uniform) in body.iter_mut().zip(pairs).zip(drawn) {
                let [lower, upper] = [0, 1].map(
                    #[inline(always)]
                    |i| level(x[i], inverse, uniform[i], top),
                );
                *byte = lower & 0xF | upper << 4;
            }
            if let (&[x], Some(byte)) = (odd, body.last_mut()) {
                *byte = level(x, inverse, uniforms[2 * pairs.len()], top) & 0xF;
            }
        } else {
            for ((byte, x), uniform) in body.iter_mut().zip(&*turned).zip(&*uniforms) {
                *byte = level(*x, inverse, *uniform, top);
            }
        }
    }

    /// The step between levels: absmax / top, rounded up to bf16.
    #[inline(always)]
    fn scale(&self, turned: &[f32]) -> bf16 {
        let step = f32::from_bits(largest_bits(turned) as u32) / f32::from(self.top);
        // Below the normal numbers 1/step would overflow; such a row is zero for every purpose.
        if step < f32::MIN_POSITIVE {
            return bf16::ZERO;
        }
        let bits = step.to_bits();
        bf16::from_bits(((bits >> 16) + u32::from(bits & 0xFFFF != 0)) as u16)
    }

    /// What rounds the columns of row `row`: column `c` draws the low (`c / 16` even) or high half of word
    /// `c / 32 % 4` of Philox at counter `(16 (c / 128) + c % 16, r, tensor low, tensor high)` in the rounding
    /// domain of the run.
    #[inline(always)]
    fn draw_uniforms(&self, uniforms: &mut [f32], row: usize) {
        for (group, uniforms) in (0u32..).zip(uniforms.as_chunks_mut::<GROUP>().0) {
            let mut columns = [[0.0; LANES]; GROUP / LANES];
            for lane in 0..LANES {
                let counter =
                    [group * LANES as u32 + lane as u32, row as u32, low(self.tensor), high(self.tensor)];
                // One statement a row: a loop over the words keeps the loop over the lanes from its registers.
                let [a, b, c, d] = philox4x32(counter, self.rounding);
                columns[0][lane] = uniform(a & 0xFFFF);
                columns[1][lane] = uniform(a >> 16);
                columns[2][lane] = uniform(b & 0xFFFF);
                columns[3][lane] = uniform(b >> 16);
                columns[4][lane] = uniform(c & 0xFFFF);
                columns[5][lane] = uniform(c >> 16);
                columns[6][lane] = uniform(d & 0xFFFF);
                columns[7][lane] = uniform(d >> 16);
            }
            uniforms.copy_from_slice(columns.as_flattened());
        }
    }

    #[inline(always)]
    fn unpack_row(&self, x: &mut [f32], bytes: &[u8]) {
        let (head, body) = bytes.split_at(2);
        let scale = bf16::from_le_bytes([head[0], head[1]]).to_f32();
        if self.top == 7 {
            let (pairs, odd) = x.as_chunks_mut::<2>();
            for (pair, &byte) in pairs.iter_mut().zip(body) {
                *pair = [f32::from((byte << 4) as i8 >> 4) * scale, f32::from(byte as i8 >> 4) * scale];
            }
            if let ([x], Some(&byte)) = (odd, body.last()) {
                *x = f32::from((byte << 4) as i8 >> 4) * scale;
            }
        } else {
            for (x, &byte) in x.iter_mut().zip(body) {
                *x = f32::from(byte as i8) * scale;
            }
        }
        hadamard(x, self.block, self.fused);
        for (x, sign) in x.iter_mut().zip(&self.signs[..]) {
            *x *= sign;
        }
    }
}

/// `floor(x / scale + uniform)` within `-top..=top`, as the low bits of a byte.
#[inline(always)]
fn level(x: f32, inverse: f32, uniform: f32, top: f32) -> u8 {
    let value = x.mul_add(inverse, uniform).floor();
    let value = if value > top { top } else { value };
    let value = if value < -top { -top } else { value };
    (value + INTEGER).to_bits() as u8
}

/// A half as a number centred in its 65536th of (0, 1), so that rounding is unbiased.
#[inline(always)]
fn uniform(half: u32) -> f32 {
    (half as i32 as f32 + 0.5) / 65536.0
}

/// `+-magnitude` per column: bit `c % 32` of word `c / 32 % 4` of Philox at counter
/// `(c / 128, 0, tensor low, tensor high)` in the signs domain of the run; a set bit is minus.
fn draw_signs(signs: &mut [f32], magnitude: f32, key: RoundingKey) {
    let philox = domain_key(key.run, Domain::Signs);
    for (group, signs) in (0u32..).zip(signs.chunks_mut(128)) {
        let words = philox4x32([group, 0, low(key.tensor), high(key.tensor)], philox);
        for (c, sign) in signs.iter_mut().enumerate() {
            *sign = if words[c / 32] >> (c % 32) & 1 == 1 { -magnitude } else { magnitude };
        }
    }
}

/// Walsh-Hadamard transform of every `block` numbers of `x`, in natural order, not normalised; `block` is a power
/// of two that divides the length. `fused` where multiply-adds are instructions: faster there, the same bits everywhere.
#[inline(always)]
fn hadamard(x: &mut [f32], block: usize, fused: bool) {
    let mut half = 1;
    if block >= LANES {
        // Not known to the compiler, or it makes sums and differences of them and no vectors of those.
        let signs = black_box(&SIGNS);
        for chunk in x.as_chunks_mut::<LANES>().0 {
            *chunk = if fused {
                chunk_stages::<true>(*chunk, signs)
            } else {
                chunk_stages::<false>(*chunk, signs)
            };
            // Chunk by chunk: the loop over several chunks at a time gathers single numbers.
            black_box(());
        }
        half = LANES;
    }
    while 2 * half < block {
        two_stages(x, half);
        half *= 4;
    }
    if half < block {
        one_stage(x, half);
    }
}

/// The signs of the first number in each butterfly of [`chunk_stages`].
const SIGNS: [[f32; LANES]; 4] = {
    let mut signs = [[1.0; LANES]; 4];
    let mut stage = 0;
    while stage < signs.len() {
        let mut lane = 0;
        while lane < LANES {
            if lane >> stage & 1 == 1 {
                signs[stage][lane] = -1.0;
            }
            lane += 1;
        }
        stage += 1;
    }
    signs
};

/// All butterflies within one chunk.
#[inline(always)]
fn chunk_stages<const FUSED: bool>(x: [f32; LANES], signs: &[[f32; LANES]; 4]) -> [f32; LANES] {
    let x = chunk_stage::<2, FUSED>(chunk_stage::<1, FUSED>(x, &signs[0]), &signs[1]);
    chunk_stage::<8, FUSED>(chunk_stage::<4, FUSED>(x, &signs[2]), &signs[3])
}

/// One stage as a shuffle and `a + b` or `a - b`, which a multiplication by a sign makes alike.
#[inline(always)]
fn chunk_stage<const HALF: usize, const FUSED: bool>(x: [f32; LANES], signs: &[f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        // A product with a sign is exact, so fusing it rounds nothing away.
        out[i] = if FUSED { x[i].mul_add(signs[i], x[i ^ HALF]) } else { x[i] * signs[i] + x[i ^ HALF] };
    }
    out
}

/// The butterflies whose halves are `half` apart, then those whose halves are `2 half` apart, in one pass.
#[inline(always)]
fn two_stages(x: &mut [f32], half: usize) {
    for x in x.chunks_exact_mut(4 * half) {
        let (lower, upper) = x.split_at_mut(2 * half);
        let ((a, b), (c, d)) = (lower.split_at_mut(half), upper.split_at_mut(half));
        for (((a, b), c), d) in a.iter_mut().zip(b).zip(c).zip(d) {
            let (p, q, r, s) = (*a + *b, *a - *b, *c + *d, *c - *d);
            (*a, *b, *c, *d) = (p + r, q + s, p - r, q - s);
        }
    }
}

/// The butterflies whose halves are `half` apart.
#[inline(always)]
fn one_stage(x: &mut [f32], half: usize) {
    for x in x.chunks_exact_mut(2 * half) {
        let (a, b) = x.split_at_mut(half);
        for (a, b) in a.iter_mut().zip(b) {
            (*a, *b) = (*a + *b, *a - *b);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        Backend, Error, PackedFormat, PackingError, RoundingKey,
        cpu::{
            CpuTensor,
            check::{cpu, numbers, same_on_any_threads, tensor},
        },
    };
    use PackedFormat::{Bf16, F32, Q4, Q8};
    use proptest::prelude::*;

    const KEY: RoundingKey = RoundingKey { run: 3, tensor: 1 << 40 };
    const FORMATS: [PackedFormat; 4] = [F32, Bf16, Q8, Q4];

    fn pack(x: &CpuTensor, rows: usize, width: usize, format: PackedFormat, key: RoundingKey) -> Vec<u8> {
        let mut bytes = vec![7; 3];
        cpu().pack(&mut bytes, x, rows, width, format, key).unwrap();
        assert_eq!(bytes.len(), format.packed_len(rows, width).unwrap());
        bytes
    }

    fn round_trip(
        x: &CpuTensor,
        rows: usize,
        width: usize,
        format: PackedFormat,
        key: RoundingKey,
    ) -> Vec<f32> {
        let mut back = tensor(rows * width, 99);
        let bytes = pack(x, rows, width, format, key);
        cpu().unpack(&mut back, &bytes, rows, width, format, key).unwrap();
        back.as_slice().to_vec()
    }

    /// Largest error, relative to the root of the mean square.
    fn error(x: &[f32], y: &[f32]) -> f32 {
        let size = (x.iter().map(|x| x * x).sum::<f32>() / x.len() as f32).sqrt();
        x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max) / size
    }

    #[test]
    fn a_round_trip_stays_within_its_bound() {
        // Per row: absmax after the rotation is below 5 deviations; each level errs by less than one step, and
        // the rotation back adds random errors: four deviations of a step's error, step / sqrt(3).
        for (rows, width) in [(1, 1), (4, 3), (3, 7), (5, 64), (2, 96), (3, 688)] {
            let x = tensor(rows * width, 1);
            let bounds = [(F32, 0.0), (Bf16, 2.0_f32.powi(-8) * 4.0), (Q8, 0.12), (Q4, 2.0)];
            for (format, bound) in bounds {
                let found = error(x.as_slice(), &round_trip(&x, rows, width, format, KEY));
                assert!(found <= bound, "{format:?} {rows}x{width}: {found}");
            }
        }
    }

    #[test]
    fn outliers_are_spread() {
        // Without the rotation, one number 100 times the others would cost them all their levels.
        let mut x = numbers(256, 1);
        x[17] = 100.0;
        let back = round_trip(&x.clone().into(), 1, 256, Q8, KEY);
        let worst = x.iter().zip(&back).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
        assert!(worst < 0.3, "{worst}");
    }

    #[test]
    fn equal_keys_give_equal_bytes_and_different_keys_do_not() {
        let x = tensor(6 * 64, 1);
        for format in [Q8, Q4] {
            let bytes = pack(&x, 6, 64, format, KEY);
            assert_eq!(bytes, pack(&x, 6, 64, format, KEY));
            let others = [RoundingKey { run: 4, ..KEY }, RoundingKey { tensor: 2, ..KEY }];
            for key in others {
                assert_ne!(bytes, pack(&x, 6, 64, format, key));
            }
        }
    }

    #[test]
    fn the_mean_over_keys_is_the_input() {
        const KEYS: u64 = 4000;
        let (rows, width) = (2, 24);
        let x = tensor(rows * width, 1);
        for format in [Q8, Q4] {
            let mut sums = vec![[0.0_f64; 2]; rows * width];
            for index in 0..KEYS {
                let back = round_trip(&x, rows, width, format, RoundingKey { run: 1, tensor: index });
                for ((sum, &y), &x) in sums.iter_mut().zip(&back).zip(x.as_slice()) {
                    let off = f64::from(y) - f64::from(x);
                    *sum = [sum[0] + off, sum[1] + off * off];
                }
            }
            for [off, square] in sums {
                let mean = off / KEYS as f64;
                let deviation = (square / KEYS as f64 / KEYS as f64).sqrt();
                assert!(mean.abs() < 4.5 * deviation, "{format:?}: {mean} is beyond {deviation}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_has_scale_zero() {
        let x = CpuTensor::from(vec![0.0; 40]);
        for format in FORMATS {
            assert!(pack(&x, 2, 20, format, KEY).iter().all(|&byte| byte == 0));
            assert!(round_trip(&x, 2, 20, format, KEY).iter().all(|&x| x == 0.0));
        }
    }

    #[test]
    fn what_is_not_finite_is_refused_with_its_row() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = tensor(40, 1);
            x.as_mut_slice()[29] = bad;
            for format in FORMATS {
                let refused = cpu().pack(&mut Vec::new(), &x, 4, 10, format, KEY);
                assert!(matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 2 }))));
            }
        }
    }

    #[test]
    fn what_would_overflow_is_refused() {
        for format in [Bf16, Q8, Q4] {
            let refused = cpu().pack(&mut Vec::new(), &vec![f32::MAX; 8].into(), 1, 8, format, KEY);
            assert!(matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 0 }))));
        }
    }

    #[test]
    fn bytes_that_do_not_fit_are_refused() {
        for format in FORMATS {
            let mut bytes = pack(&tensor(40, 1), 4, 10, format, KEY);
            bytes.push(0);
            let refused = cpu().unpack(&mut tensor(40, 1), &bytes, 4, 10, format, KEY);
            assert!(matches!(refused, Err(Error::Packing(PackingError::Length { .. }))));
        }
        // A scale of infinity in row 1.
        let mut bytes = pack(&tensor(40, 1), 4, 10, Q8, KEY);
        bytes[12..14].copy_from_slice(&half::bf16::INFINITY.to_le_bytes());
        let refused = cpu().unpack(&mut tensor(40, 1), &bytes, 4, 10, Q8, KEY);
        assert!(matches!(refused, Err(Error::Packing(PackingError::NonFinite { row: 1 }))));
    }

    #[test]
    fn threads_do_not_show() {
        let x = tensor(150 * 48, 1);
        same_on_any_threads(|cpu| {
            [Q8, Q4, Bf16]
                .map(|format| {
                    let mut bytes = Vec::new();
                    cpu.pack(&mut bytes, &x, 150, 48, format, KEY).unwrap();
                    let mut back = tensor(150 * 48, 2);
                    cpu.unpack(&mut back, &bytes, 150, 48, format, KEY).unwrap();
                    back
                })
                .to_vec()
        });
    }

    proptest! {
        #[test]
        fn no_bytes_panic(
            bytes in prop::collection::vec(any::<u8>(), 0..200),
            rows in 0_usize..5,
            width in 0_usize..40,
            which in 0_usize..4,
        ) {
            let format = FORMATS[which];
            let mut x = tensor(rows * width, 1);
            let _ = cpu().unpack(&mut x, &bytes, rows, width, format, KEY);
            let mut fitting = bytes;
            fitting.resize(format.packed_len(rows, width).unwrap(), 0x7F);
            if cpu().unpack(&mut x, &fitting, rows, width, format, KEY).is_ok() {
                prop_assert!(x.as_slice().iter().all(|x| x.is_finite()));
            }
        }

        #[test]
        fn finite_rows_pack_to_finite_rows(
            row in prop::collection::vec(-1e30_f32..1e30, 1..50),
            exponent in -45_i32..0,
            which in 0_usize..4,
        ) {
            let width = row.len();
            let row: Vec<f32> = row.iter().map(|x| x * 10.0_f32.powi(exponent)).collect();
            let back = round_trip(&row.into(), 1, width, FORMATS[which], KEY);
            prop_assert!(back.iter().all(|x| x.is_finite()));
        }
    }
}
