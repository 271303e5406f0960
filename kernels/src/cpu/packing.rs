//! Numbers to bytes and back; [`PackedFormat`] has the layout.

use super::threads::Threads;
use crate::{
    PackedFormat, PackingError, RoundingKey,
    random::{Domain, high, key as domain_key, low, philox4x32},
};
use half::bf16;

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
    if let Some(row) = x.chunks_exact(width).position(|row| row.iter().any(|x| !x.is_finite())) {
        return Err(PackingError::NonFinite { row });
    }
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
    match x.chunks_exact(width).position(|row| row.iter().any(|x| !x.is_finite())) {
        Some(row) => Err(PackingError::NonFinite { row }),
        None => Ok(()),
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
    /// `+-1/sqrt(block)` per column.
    signs: Vec<f32>,
    rounding: [u32; 2],
    tensor: u64,
}

impl Quantiser {
    fn new(width: usize, top: i8, key: RoundingKey) -> Self {
        let block = 1 << width.trailing_zeros();
        Self {
            width,
            top,
            block,
            signs: signs(width, 1.0 / (block as f32).sqrt(), key),
            rounding: domain_key(key.run, Domain::Rounding),
            tensor: key.tensor,
        }
    }

    fn row_bytes(&self) -> usize {
        2 + if self.top == 7 { self.width.div_ceil(2) } else { self.width }
    }

    fn pack(&self, _threads: &Threads, bytes: &mut [u8], x: &[f32]) -> Result<(), PackingError> {
        let mut turned = vec![0.0; self.width];
        let mut levels = vec![0; self.width];
        let rows = bytes.chunks_exact_mut(self.row_bytes()).zip(x.chunks_exact(self.width));
        for (row, (bytes, x)) in rows.enumerate() {
            for ((turned, x), sign) in turned.iter_mut().zip(x).zip(&self.signs) {
                *turned = x * sign;
            }
            turned.chunks_exact_mut(self.block).for_each(hadamard);
            let scale = self.scale(&turned).ok_or(PackingError::NonFinite { row })?;
            self.round(&mut levels, &turned, scale.to_f32(), row);
            self.write_row(bytes, scale, &levels);
        }
        Ok(())
    }

    /// The step between levels: absmax / top, rounded up to bf16. `None` if unpacking could overflow.
    fn scale(&self, turned: &[f32]) -> Option<bf16> {
        let top = turned.iter().fold(0.0_f32, |top, x| if x.abs() <= top { top } else { x.abs() });
        // Unpacking adds up a block of numbers, each at most a little larger than `top`.
        if !(top < f32::MAX / (2.0 * self.block as f32)) {
            return None;
        }
        let step = top / f32::from(self.top);
        // Below the normal numbers 1/step would overflow; such a row is zero for every purpose.
        if step < f32::MIN_POSITIVE {
            return Some(bf16::ZERO);
        }
        let bits = step.to_bits();
        Some(bf16::from_bits(((bits >> 16) + u32::from(bits & 0xFFFF != 0)) as u16))
    }

    fn round(&self, levels: &mut [i8], turned: &[f32], scale: f32, row: usize) {
        if scale == 0.0 {
            levels.fill(0);
            return;
        }
        let inverse = 1.0 / scale;
        let top = f32::from(self.top);
        for (group, (levels, turned)) in (0u32..).zip(levels.chunks_mut(8).zip(turned.chunks(8))) {
            let counter = [group, row as u32, low(self.tensor), high(self.tensor)];
            let words = philox4x32(counter, self.rounding);
            for (i, (level, x)) in levels.iter_mut().zip(turned).enumerate() {
                let bits = words[i / 2] >> (16 * (i % 2)) & 0xFFFF;
                // Centred in its 65536th, so that the rounding is unbiased.
                let uniform = (bits as f32 + 0.5) / 65536.0;
                *level = (x * inverse + uniform).floor().clamp(-top, top) as i8;
            }
        }
    }

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

    fn unpack(&self, _threads: &Threads, x: &mut [f32], bytes: &[u8]) {
        for (x, bytes) in x.chunks_exact_mut(self.width).zip(bytes.chunks_exact(self.row_bytes())) {
            let (head, body) = bytes.split_at(2);
            let scale = bf16::from_le_bytes([head[0], head[1]]).to_f32();
            if self.top == 7 {
                for (pair, &byte) in x.chunks_mut(2).zip(body) {
                    let levels = [(byte << 4) as i8 >> 4, byte as i8 >> 4];
                    pair.iter_mut().zip(levels).for_each(|(x, level)| *x = f32::from(level) * scale);
                }
            } else {
                x.iter_mut().zip(body).for_each(|(x, &byte)| *x = f32::from(byte as i8) * scale);
            }
            x.chunks_exact_mut(self.block).for_each(hadamard);
            x.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= sign);
        }
    }
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
    let mut half = 1;
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
