//! Rows of numbers to levels of a few bits and back.

use super::{hadamard::hadamard, magnitude::largest_bits};
use crate::{
    RoundingKey,
    cpu::scratch::{Loan, Scratch},
    random::{Domain, LANES, high, key as domain_key, low, philox4x32},
};
use half::bf16;

/// Numbers rounded by one group of sixteen Philox calls: eight 16-bit halves each.
pub(super) const GROUP: usize = 8 * LANES;
/// Added to a small integer, it leaves that integer in the low bits of the sum: 1.5 * 2^23.
const INTEGER: f32 = 12_582_912.0;

/// The rotation and rounding of one tensor in `Q8` or `Q4`.
#[derive(Debug)]
pub(super) struct Quantiser<'a> {
    /// Largest level.
    top: i8,
    /// Width of a Hadamard block.
    block: usize,
    /// Whether the instruction set has fused multiply-adds.
    fused: bool,
    /// Magnitude from which adding up a block, here or in unpacking, could overflow.
    pub(super) limit: f32,
    /// `+-1/sqrt(block)` per column.
    signs: Loan<'a>,
    rounding: [u32; 2],
    tensor: u64,
}

impl<'a> Quantiser<'a> {
    pub(super) fn new(scratch: &'a Scratch, width: usize, top: i8, fused: bool, key: RoundingKey) -> Self {
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

    /// Packs row `row` of the tensor; `turned` and `uniforms` are scratch.
    #[inline(always)]
    pub(super) fn pack_row(
        &self,
        bytes: &mut [u8],
        x: &[f32],
        row: usize,
        turned: &mut [f32],
        uniforms: &mut [f32],
    ) {
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
        // For a step below the normal numbers, 1/step would overflow; such a row packs to zeros.
        if step < f32::MIN_POSITIVE {
            return bf16::ZERO;
        }
        let bits = step.to_bits();
        bf16::from_bits(((bits >> 16) + u32::from(bits & 0xFFFF != 0)) as u16)
    }

    /// Draws the numbers that round row `row`: column `c` takes the low (`c / 16` even) or high half of word
    /// `c / 32 % 4` of Philox at counter `(16 (c / 128) + c % 16, r, tensor low, tensor high)` in the rounding
    /// domain of the run.
    #[inline(always)]
    fn draw_uniforms(&self, uniforms: &mut [f32], row: usize) {
        for (group, uniforms) in (0u32..).zip(uniforms.as_chunks_mut::<GROUP>().0) {
            let mut columns = [[0.0; LANES]; GROUP / LANES];
            for lane in 0..LANES {
                let counter =
                    [group * LANES as u32 + lane as u32, row as u32, low(self.tensor), high(self.tensor)];
                // One statement a row: with a loop over the words, the loop over the lanes would not use registers.
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
    pub(super) fn unpack_row(&self, x: &mut [f32], bytes: &[u8]) {
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
