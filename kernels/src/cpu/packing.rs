//! Numbers to bytes and back; [`PackedFormat`] has the layout.

use super::{lanes, threads::Threads};
use crate::{
    PackedFormat, PackingError, RoundingKey,
    random::{Domain, LANES, high, key as domain_key, low, philox_lanes, philox4x32},
};
use half::bf16;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Rows of one job.
const BLOCK_ROWS: usize = 32;
/// Numbers rounded by one group of sixteen Philox calls: eight 16-bit halves each.
const GROUP: usize = 8 * LANES;

/// Packs `x[rows,width]` into `bytes`, which has the packed length.
pub(super) fn pack(
    threads: &Threads,
    bytes: &mut [u8],
    x: &[f32],
    width: usize,
    format: PackedFormat,
    key: RoundingKey,
) -> Result<(), PackingError> {
    if width == 0 {
        return Ok(());
    }
    check_finite(threads, x, width)?;
    match format {
        PackedFormat::F32 => pack_each(bytes, x, |x| x.to_le_bytes()),
        PackedFormat::Bf16 => {
            pack_each(bytes, x, |x| bf16::from_f32(x).to_le_bytes());
            // Rounding can carry the largest numbers over to infinity.
            if let Some(at) = bytes.as_chunks().0.iter().position(|&b| !bf16::from_le_bytes(b).is_finite()) {
                return Err(PackingError::NonFinite { row: at / width });
            }
        }
        PackedFormat::Q8 => return Quantiser::new(width, 127, key).pack(threads, bytes, x),
        PackedFormat::Q4 => return Quantiser::new(width, 7, key).pack(threads, bytes, x),
    }
    Ok(())
}

/// Reads `x[rows,width]` from `bytes`, which has the packed length.
pub(super) fn unpack(
    threads: &Threads,
    x: &mut [f32],
    bytes: &[u8],
    width: usize,
    format: PackedFormat,
    key: RoundingKey,
) -> Result<(), PackingError> {
    if width == 0 {
        return Ok(());
    }
    match format {
        PackedFormat::F32 => unpack_each(x, bytes, f32::from_le_bytes),
        PackedFormat::Bf16 => unpack_each(x, bytes, |b| bf16::from_le_bytes(b).to_f32()),
        PackedFormat::Q8 => Quantiser::new(width, 127, key).unpack(threads, x, bytes),
        PackedFormat::Q4 => Quantiser::new(width, 7, key).unpack(threads, x, bytes),
    }
    check_finite(threads, x, width)
}

/// Refuses the first row with a number that is not finite.
fn check_finite(threads: &Threads, x: &[f32], width: usize) -> Result<(), PackingError> {
    let bad = FirstBad::default();
    threads.each(
        x.chunks(BLOCK_ROWS * width).enumerate(),
        #[inline(always)]
        |(block, x)| {
            for (row, x) in x.chunks_exact(width).enumerate() {
                let mut finite = true;
                for x in x {
                    finite &= x.is_finite();
                }
                if !finite {
                    bad.add(block * BLOCK_ROWS + row);
                }
            }
        },
    );
    bad.check()
}

/// The first of the rows that jobs on any thread found bad.
#[derive(Debug)]
struct FirstBad(AtomicUsize);

impl Default for FirstBad {
    fn default() -> Self {
        Self(AtomicUsize::new(usize::MAX))
    }
}

impl FirstBad {
    fn add(&self, row: usize) {
        self.0.fetch_min(row, Ordering::Relaxed);
    }

    fn check(self) -> Result<(), PackingError> {
        match self.0.into_inner() {
            usize::MAX => Ok(()),
            row => Err(PackingError::NonFinite { row }),
        }
    }
}

fn pack_each<const N: usize>(bytes: &mut [u8], x: &[f32], encode: impl Fn(f32) -> [u8; N]) {
    for (bytes, &x) in bytes.as_chunks_mut().0.iter_mut().zip(x) {
        *bytes = encode(x);
    }
}

fn unpack_each<const N: usize>(x: &mut [f32], bytes: &[u8], decode: impl Fn([u8; N]) -> f32) {
    for (x, &bytes) in x.iter_mut().zip(bytes.as_chunks().0) {
        *x = decode(bytes);
    }
}

/// The rotation and rounding of one tensor in `Q8` or `Q4`.
#[derive(Debug)]
struct Quantiser {
    width: usize,
    /// Largest level.
    top: i8,
    /// Width of a Hadamard block.
    block: usize,
    /// Magnitude from which adding up a block, here or in unpacking, could overflow.
    limit: f32,
    /// `+-1/sqrt(block)` per column.
    signs: Vec<f32>,
    rounding: [u32; 2],
    tensor: u64,
}

impl Quantiser {
    fn new(width: usize, top: i8, key: RoundingKey) -> Self {
        let block = 1 << width.trailing_zeros();
        let root = (block as f32).sqrt();
        Self {
            limit: f32::MAX / (2.0 * root * root * root),
            width,
            top,
            block,
            signs: signs(width, 1.0 / root, key),
            rounding: domain_key(key.run, Domain::Rounding),
            tensor: key.tensor,
        }
    }

    fn row_bytes(&self) -> usize {
        2 + if self.top == 7 { self.width.div_ceil(2) } else { self.width }
    }

    fn pack(&self, threads: &Threads, bytes: &mut [u8], x: &[f32]) -> Result<(), PackingError> {
        let bad = FirstBad::default();
        let blocks = bytes.chunks_mut(BLOCK_ROWS * self.row_bytes()).zip(x.chunks(BLOCK_ROWS * self.width));
        threads.each(
            blocks.enumerate(),
            #[inline(always)]
            |(block, (bytes, x))| {
                if let Some(row) = self.pack_block(bytes, x, block * BLOCK_ROWS) {
                    bad.add(row);
                }
            },
        );
        bad.check()
    }

    /// Packs the rows from `first` on; the first row that cannot be packed ends it.
    #[inline(always)]
    fn pack_block(&self, bytes: &mut [u8], x: &[f32], first: usize) -> Option<usize> {
        let mut turned = vec![0.0; self.width];
        let mut levels = vec![0; self.width];
        let rows = bytes.chunks_exact_mut(self.row_bytes()).zip(x.chunks_exact(self.width));
        for (row, (bytes, x)) in (first..).zip(rows) {
            if lanes::max_abs(x) >= self.limit {
                return Some(row);
            }
            for ((turned, x), sign) in turned.iter_mut().zip(x).zip(&self.signs) {
                *turned = x * sign;
            }
            for block in turned.chunks_exact_mut(self.block) {
                hadamard(block);
            }
            let scale = self.scale(&turned);
            self.round(&mut levels, &turned, scale.to_f32(), row);
            self.write_row(bytes, scale, &levels);
        }
        None
    }

    /// The step between levels: absmax / top, rounded up to bf16.
    #[inline(always)]
    fn scale(&self, turned: &[f32]) -> bf16 {
        let step = lanes::max_abs(turned) / f32::from(self.top);
        // Below the normal numbers 1/step would overflow; such a row is zero for every purpose.
        if step < f32::MIN_POSITIVE {
            return bf16::ZERO;
        }
        let bits = step.to_bits();
        bf16::from_bits(((bits >> 16) + u32::from(bits & 0xFFFF != 0)) as u16)
    }

    /// `levels = floor(turned / scale + u)`, `u` uniform in (0, 1).
    ///
    /// Column `c` of row `r` draws the low (`c / 16` even) or high half of word `c / 32 % 4` of Philox at counter
    /// `(16 (c / 128) + c % 16, r, tensor low, tensor high)` in the rounding domain of the run.
    #[inline(always)]
    fn round(&self, levels: &mut [i8], turned: &[f32], scale: f32, row: usize) {
        if scale == 0.0 {
            levels.fill(0);
            return;
        }
        let inverse = 1.0 / scale;
        let top = f32::from(self.top);
        for (group, (levels, turned)) in (0u32..).zip(levels.chunks_mut(GROUP).zip(turned.chunks(GROUP))) {
            let counter = [row as u32, low(self.tensor), high(self.tensor)];
            let uniform = uniforms(philox_lanes(group * LANES as u32, counter, self.rounding));
            for ((level, x), uniform) in levels.iter_mut().zip(turned).zip(&uniform) {
                let value = x.mul_add(inverse, *uniform).floor();
                let value = if value > top { top } else { value };
                let value = if value < -top { -top } else { value };
                *level = value as i32 as i8;
            }
        }
    }

    #[inline(always)]
    fn write_row(&self, bytes: &mut [u8], scale: bf16, levels: &[i8]) {
        let (head, body) = bytes.split_at_mut(2);
        head.copy_from_slice(&scale.to_le_bytes());
        if self.top == 7 {
            for (byte, pair) in body.iter_mut().zip(levels.chunks(2)) {
                let upper = pair.get(1).copied().unwrap_or(0);
                *byte = (pair[0] as u8 & 0xF) | (upper as u8) << 4;
            }
        } else {
            body.iter_mut().zip(levels).for_each(|(byte, &level)| *byte = level as u8);
        }
    }

    fn unpack(&self, threads: &Threads, x: &mut [f32], bytes: &[u8]) {
        threads.each(
            x.chunks_mut(BLOCK_ROWS * self.width).zip(bytes.chunks(BLOCK_ROWS * self.row_bytes())),
            #[inline(always)]
            |(x, bytes)| {
                for (x, bytes) in x.chunks_exact_mut(self.width).zip(bytes.chunks_exact(self.row_bytes())) {
                    self.unpack_row(x, bytes);
                }
            },
        );
    }

    #[inline(always)]
    fn unpack_row(&self, x: &mut [f32], bytes: &[u8]) {
        let (head, body) = bytes.split_at(2);
        let scale = bf16::from_le_bytes([head[0], head[1]]).to_f32();
        if self.top == 7 {
            for (pair, &byte) in x.chunks_mut(2).zip(body) {
                let levels = [(byte << 4) as i8 >> 4, byte as i8 >> 4];
                for (x, level) in pair.iter_mut().zip(levels) {
                    *x = f32::from(level) * scale;
                }
            }
        } else {
            for (x, &byte) in x.iter_mut().zip(body) {
                *x = f32::from(byte as i8) * scale;
            }
        }
        for block in x.chunks_exact_mut(self.block) {
            hadamard(block);
        }
        for (x, sign) in x.iter_mut().zip(&self.signs) {
            *x *= sign;
        }
    }
}

/// The halves of the words as numbers centred in their 65536th of (0, 1), so that rounding is unbiased.
#[inline(always)]
fn uniforms(words: [[u32; LANES]; 4]) -> [f32; GROUP] {
    let mut uniforms = [0.0; GROUP];
    for (word, out) in words.iter().zip(uniforms.as_chunks_mut::<{ 2 * LANES }>().0) {
        for lane in 0..LANES {
            out[lane] = ((word[lane] & 0xFFFF) as i32 as f32 + 0.5) / 65536.0;
            out[LANES + lane] = ((word[lane] >> 16) as i32 as f32 + 0.5) / 65536.0;
        }
    }
    uniforms
}

/// `+-magnitude` per column: bit `c % 32` of word `c / 32 % 4` of Philox at counter
/// `(c / 128, 0, tensor low, tensor high)` in the signs domain of the run; a set bit is minus.
fn signs(width: usize, magnitude: f32, key: RoundingKey) -> Vec<f32> {
    let philox = domain_key(key.run, Domain::Signs);
    let mut signs = vec![magnitude; width];
    for (group, signs) in (0u32..).zip(signs.chunks_mut(128)) {
        let words = philox4x32([group, 0, low(key.tensor), high(key.tensor)], philox);
        for (c, sign) in signs.iter_mut().enumerate() {
            if words[c / 32] >> (c % 32) & 1 == 1 {
                *sign = -magnitude;
            }
        }
    }
    signs
}

/// Walsh-Hadamard transform in natural order, not normalised; the length is a power of two.
#[inline(always)]
fn hadamard(x: &mut [f32]) {
    let (chunks, short) = x.as_chunks_mut::<LANES>();
    if chunks.is_empty() {
        stages(short, 1);
        return;
    }
    for chunk in chunks {
        chunk_stages(chunk);
    }
    stages(x, LANES);
}

/// The butterflies whose halves are `half` and more apart.
#[inline(always)]
fn stages(x: &mut [f32], mut half: usize) {
    while half < x.len() {
        for pair in x.chunks_exact_mut(2 * half) {
            let (a, b) = pair.split_at_mut(half);
            for (a, b) in a.iter_mut().zip(b) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// All butterflies within one chunk, of a length known to the compiler.
#[inline(always)]
fn chunk_stages(x: &mut [f32; LANES]) {
    *x = chunk_stage::<8>(chunk_stage::<4>(chunk_stage::<2>(chunk_stage::<1>(*x))));
}

/// One stage as a shuffle and a fused `a + b` or `a - b`, which one multiplication by a sign makes alike.
#[inline(always)]
fn chunk_stage<const HALF: usize>(x: [f32; LANES]) -> [f32; LANES] {
    let mut out = [0.0; LANES];
    for i in 0..LANES {
        let sign = if i & HALF == 0 { 1.0 } else { -1.0 };
        out[i] = x[i].mul_add(sign, x[i ^ HALF]);
    }
    out
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
