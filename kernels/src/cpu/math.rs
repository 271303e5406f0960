//! Elementary functions whose bits do not depend on a platform's library.
//!
//! The f32 functions are branch-free, so loops over them vectorise; `mul_add` is exact by IEEE 754, so every
//! instruction set gives the same bits. The f64 ones serve tables and rare scalars.

use pulp::Simd;
use std::f64::consts::{FRAC_PI_2, LN_2, LOG2_E, SQRT_2};

/// The sum of this and a small f32 has the rounded integer in its low mantissa bits.
const ROUND_F32: f32 = 12_582_912.0; // 1.5 * 2^23

/// `ln 2` cut off after nine bits: its product with a small whole number is exact.
const LN_2_HIGH: f32 = 355.0 / 512.0;

/// Coefficients of `(e^x - 1 - x) / x^2`, the highest first.
const EXP_SERIES: [f32; 6] = [1.987_569_1e-4, 1.398_2e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5];

/// `e^x` within 2 ulp; below -87.3 it stays at the smallest normal number, above 88.3 at the largest power.
/// NaN stays NaN.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Comparisons keep NaN, which `clamp` and `max` would drop.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 88.3 { 88.3 } else { x };
    let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND_F32);
    let whole = shifted - ROUND_F32;
    let rest = whole.mul_add(-LN_2_HIGH, x);
    let rest = whole.mul_add(2.121_944_4e-4, rest);
    let mut p = EXP_SERIES[0];
    for term in &EXP_SERIES[1..] {
        p = p.mul_add(rest, *term);
    }
    let value = p.mul_add(rest * rest, rest) + 1.0;
    let power = (shifted.to_bits() << 23).wrapping_add(0x3F80_0000);
    value * f32::from_bits(power)
}

/// [`exp`] of every lane, with the same bits: for loops that the compiler does not vectorise by itself.
#[inline(always)]
pub(super) fn exp_f32s<S: Simd>(simd: S, x: S::f32s) -> S::f32s {
    let x = simd.select_f32s(simd.less_than_f32s(x, simd.splat_f32s(-87.3)), simd.splat_f32s(-87.3), x);
    let x = simd.select_f32s(simd.less_than_f32s(simd.splat_f32s(88.3), x), simd.splat_f32s(88.3), x);
    let shifted = simd.mul_add_f32s(x, simd.splat_f32s(std::f32::consts::LOG2_E), simd.splat_f32s(ROUND_F32));
    let whole = simd.sub_f32s(shifted, simd.splat_f32s(ROUND_F32));
    let rest = simd.mul_add_f32s(whole, simd.splat_f32s(-LN_2_HIGH), x);
    let rest = simd.mul_add_f32s(whole, simd.splat_f32s(2.121_944_4e-4), rest);
    let mut p = simd.splat_f32s(EXP_SERIES[0]);
    for term in &EXP_SERIES[1..] {
        p = simd.mul_add_f32s(p, rest, simd.splat_f32s(*term));
    }
    let value = simd.mul_add_f32s(p, simd.mul_f32s(rest, rest), rest);
    let value = simd.add_f32s(value, simd.splat_f32s(1.0));
    let power = simd.wrapping_dyn_shl_u32s(simd.transmute_u32s_f32s(shifted), simd.splat_u32s(23));
    let power = simd.add_u32s(power, simd.splat_u32s(0x3F80_0000));
    simd.mul_f32s(value, simd.transmute_f32s_u32s(power))
}

/// `1 / (1 + e^-x)`
#[inline(always)]
pub(super) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
}

/// `e^x` for |x| < 700.
pub(super) fn exp_f64(x: f64) -> f64 {
    let whole = (x * LOG2_E).round();
    let rest = (x - whole * 6.931_471_803_691_238e-1) - whole * 1.908_214_929_270_587_7e-10;
    let series = (1..=14).rev().fold(1.0, |sum, i| 1.0 + sum * rest / f64::from(i));
    series * f64::from_bits(((whole as i64 + 1023) as u64) << 52)
}

/// Natural logarithm of a positive normal number; NaN and infinity are returned as they are.
#[inline(always)]
pub(super) fn ln_f64(x: f64) -> f64 {
    if !x.is_finite() {
        return x;
    }
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) as i64 - 1023) as f64;
    let mut mantissa = f64::from_bits((bits & 0x000F_FFFF_FFFF_FFFF) | 0x3FF0_0000_0000_0000);
    if mantissa > SQRT_2 {
        mantissa *= 0.5;
        exponent += 1.0;
    }
    // ln m = 2 atanh((m-1)/(m+1)); |s| < 0.172, so eleven terms reach f64.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let mut series = 0.0;
    for i in (0..11).rev() {
        series = series * s * s + 1.0 / f64::from(2 * i + 1);
    }
    2.0 * s * series + exponent * LN_2
}

/// Sine and cosine of an angle of up to some millions of radians.
pub(super) fn sin_cos_f64(x: f64) -> (f64, f64) {
    let quarter = (x / FRAC_PI_2).round();
    // pi/2 in two parts; the first has 33 bits, so its product with `quarter` is exact.
    let rest = (x - quarter * 1.570_796_326_734_125_6) - quarter * 6.077_100_506_506_192e-11;
    let square = rest * rest;
    let sin = rest * (1..=9).rev().fold(1.0, |sum, i| 1.0 - sum * square / f64::from((2 * i) * (2 * i + 1)));
    let cos = (1..=9).rev().fold(1.0, |sum, i| 1.0 - sum * square / f64::from((2 * i - 1) * (2 * i)));
    match (quarter as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::isa::Isa;
    use pulp::WithSimd;

    #[test]
    fn exp_is_close_everywhere() {
        for i in -870_000..880_000 {
            let x = i as f32 * 1e-4;
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 2.5e-7, "exp({x}) is off by {relative}");
        }
    }

    #[test]
    fn exp_of_lanes_has_the_bits_of_exp() {
        struct Lanes<'a>(&'a mut [f32]);
        impl WithSimd for Lanes<'_> {
            type Output = ();

            fn with_simd<S: Simd>(self, simd: S) {
                for x in S::as_mut_simd_f32s(self.0).0 {
                    *x = exp_f32s(simd, *x);
                }
            }
        }
        let ends = [0.0, -0.0, -1e30, 1e30, f32::INFINITY, f32::NEG_INFINITY, 1e-40];
        let inputs: Vec<f32> = (-90_000..90_000).map(|i| i as f32 * 1e-3).chain(ends).collect();
        for isa in Isa::available() {
            let mut found = [&inputs[..], &[0.0; 32]].concat();
            isa.arch().dispatch(Lanes(&mut found));
            for (x, found) in inputs.iter().zip(found) {
                assert_eq!(found.to_bits(), exp(*x).to_bits(), "exp({x}) on {isa:?}");
            }
        }
    }

    #[test]
    fn exp_keeps_nan_and_saturates() {
        assert!(exp(f32::NAN).is_nan());
        assert!(exp(-1e30) < 1.3e-38 && exp(-1e30) >= 0.0);
        assert!(exp(1e30).is_finite());
        assert_eq!(exp(0.0), 1.0);
    }

    #[test]
    fn f64_functions_agree_with_the_platform() {
        for i in 1..20_000 {
            let x = f64::from(i) * 0.37;
            assert!((ln_f64(x) - x.ln()).abs() < 1e-14 * x.ln().abs().max(1.0), "ln {x}");
            let (sin, cos) = sin_cos_f64(x);
            assert!((sin - x.sin()).abs() < 1e-12 && (cos - x.cos()).abs() < 1e-12, "sin, cos {x}");
            let y = x * 0.01 - 40.0;
            assert!((exp_f64(y) - y.exp()).abs() < 1e-14 * y.exp(), "exp {y}");
        }
        assert!(ln_f64(f64::NAN).is_nan());
    }
}
